"""GPTQ (Frantar et al., arXiv:2210.17323) in time linear in the number of weights.

Columns are rounded one by one, and the remaining columns compensate for the errors so far as well as they can.
With second moments ``H = D + U U^T``, where ``D`` is diagonal and ``U`` has ``rank`` columns, this needs no inverse of
``H``. If ``delta`` are the errors of the rounded columns, the best change of the others is

    -(D_F + U_F U_F^T)^-1 U_F (U_S^T delta) = -D_F^-1 U_F (I + U_F^T D_F^-1 U_F)^-1 (U_S^T delta)

where ``S`` are the rounded columns and ``F`` the others. Only ``U_S^T delta`` is carried along, which has
``rank`` numbers per output.
"""

import numpy as np
import torch

from search_spaces.quantization_map import SecondMoments

#: Share of the mean square of all channels that is added to each, as in the paper, because moments are estimates.
_DAMPING = 0.01
#: Columns per block; later columns are updated once per block, which reads its errors only once.
_BLOCK = 64


def rounded_steps(
    weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, group: int, moments: SecondMoments
) -> torch.Tensor:
    """Return int32 steps in [-8, 7], shape ``(out, in)``; ``weight`` is approximately ``steps * scales + zeros``.

    Columns with the largest inputs are rounded first, when most other columns can still compensate for them.

    Args:
        weight: shape ``(out, in)``, fp32.
        scales: one per group of input features, shape ``(out, in / group)``, fp32.
        zeros: same shape as ``scales``.
        group: number of input features per group.
        moments: second moments of the layer's inputs.
    """
    diagonal, factors = _parts(moments)
    order = torch.argsort(torch.tensor(moments.squares, dtype=torch.float64), descending=True, stable=True)
    factors = factors[order]
    directions = _directions(diagonal[order], factors)
    # In fp64, because another order of summation on another machine could otherwise round a value differently.
    columns, of_groups = weight.T.contiguous().cpu(), [part.T.contiguous().cpu().double() for part in (scales, zeros)]
    carried = torch.zeros(factors.shape[1], columns.shape[1], dtype=torch.float64)  # U_S^T delta, outputs last
    steps = torch.empty(columns.shape, dtype=torch.int32)
    for start in range(0, len(order), _BLOCK):
        block = order[start : start + _BLOCK]
        own, seen = factors[start : start + _BLOCK], directions[start : start + _BLOCK]
        exact, (scale, zero) = columns[block].double(), (part[block // group] for part in of_groups)
        wanted = torch.addmm(exact, seen, carried, alpha=-1.0) - zero
        rounded, errors = _rounded_block(wanted, exact - zero, scale, seen @ own.T)
        steps[block] = rounded.int()
        carried.addmm_(own.T, errors)
    return steps.T.contiguous().to(weight.device)


def _rounded_block(
    wanted: torch.Tensor, exact: torch.Tensor, scale: torch.Tensor, seen: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the steps of the columns of one block and their errors; shapes ``(columns, out)``.

    Zeros are already subtracted from both kinds of columns.

    Args:
        wanted: the columns, compensated for the errors of earlier blocks.
        exact: the original columns.
        scale: scale of each column and output.
        seen: ``seen[i, j]`` is the change of column i per error of column j, if j is rounded before i.
    """
    steps, errors = torch.empty_like(exact), torch.empty_like(exact)
    for index, column in enumerate(wanted):
        column.addmv_(errors[:index].T, seen[index, :index], alpha=-1.0)
        torch.clamp(column.div_(scale[index]).round_(), -8, 7, out=steps[index])
        torch.sub(steps[index] * scale[index], exact[index], out=errors[index])
    return steps, errors


def _parts(moments: SecondMoments) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the damped diagonal ``D``, shape ``(in,)``, and ``U``, shape ``(in, rank)``; fp64."""
    squares = torch.tensor(moments.squares, dtype=torch.float64)
    integers = np.frombuffer(moments.integers(), dtype=np.int8).reshape(len(moments.scales), len(squares))
    factors = torch.from_numpy(integers.T * np.array(moments.scales))
    damping = _DAMPING * float(squares.mean()) or 1.0  # if all inputs are zero, any rounding will do
    return (squares - factors.square().sum(dim=1)).clamp(min=0.0) + damping, factors


def _directions(diagonal: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Return the change of each column per carried error, shape ``(in, rank)``, fp64: ``K_F^-1 u / d``.

    ``K_F = I + sum u u^T / d`` over the column and all later ones.
    """
    rank = factors.shape[1]
    tail = torch.eye(rank, dtype=torch.float64)
    found = torch.empty_like(factors)
    for end in range(len(factors), 0, -_BLOCK):
        block = slice(max(0, end - _BLOCK), end)
        products = factors[block, :, None] * factors[block, None, :] / diagonal[block, None, None]
        sums = products.flip(0).cumsum(dim=0).flip(0) + tail
        tail = sums[0]
        found[block] = torch.linalg.solve(sums, factors[block]) / diagonal[block, None]
    return found
