"""GPTQ (Frantar et al., arXiv:2210.17323), in a time that is linear in the weights.

Columns are rounded one after the other, and those still to come make up for the errors so far as well as they can.
With the second moments ``H = D + U U^T``, ``D`` diagonal and ``U`` of ``rank`` columns, that needs no inverse of
``H``: if ``delta`` are the errors of those that are rounded, the best change of the others is

    -(D_F + U_F U_F^T)^-1 U_F (U_S^T delta) = -D_F^-1 U_F (I + U_F^T D_F^-1 U_F)^-1 (U_S^T delta)

where ``S`` are the rounded columns and ``F`` the others. All that is carried along is ``U_S^T delta``, which is
``rank`` numbers for each output.
"""

import numpy as np
import torch

from search_spaces.quantization_map import SecondMoments

#: Share of the mean square of all channels that is added to each, as in the paper: moments are estimates.
_DAMPING = 0.01
#: Columns rounded before those after them are told at once, which reads their errors once.
_BLOCK = 64


def rounded_steps(
    weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, group: int, moments: SecondMoments
) -> torch.Tensor:
    """Return int32 steps in [-8, 7], shape ``(out, in)``; ``weight`` is about ``steps * scales + zeros``.

    Columns whose inputs are largest are rounded first, when the most others can make up for them.

    Args:
        weight: shape ``(out, in)``, fp32.
        scales: one for each group of input features, shape ``(out, in / group)``, fp32.
        zeros: of the same shape.
        group: input features in a group.
        moments: of the layer's inputs.
    """
    diagonal, factors = _parts(moments)
    order = torch.argsort(torch.tensor(moments.squares, dtype=torch.float64), descending=True, stable=True)
    factors = factors[order]
    directions = _directions(diagonal[order], factors)
    # In fp64, or sums taken in another order would now and then round a value elsewhere on another machine.
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
    """Return the steps of some columns and what they are off by, without zeros; shapes ``(columns, out)``.

    Args:
        wanted: the columns after what those of earlier blocks are off by.
        exact: the columns themselves.
        scale: of each column and output.
        seen: what an error of the second column changes the first by, if it is rounded before it.
    """
    steps, errors = torch.empty_like(exact), torch.empty_like(exact)
    for place, column in enumerate(wanted):
        column.addmv_(errors[:place].T, seen[place, :place], alpha=-1.0)
        torch.clamp(column.div_(scale[place]).round_(), -8, 7, out=steps[place])
        torch.sub(steps[place] * scale[place], exact[place], out=errors[place])
    return steps, errors


def _parts(moments: SecondMoments) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the damped diagonal ``D``, shape ``(in,)``, and ``U``, shape ``(in, rank)``; fp64."""
    squares = torch.tensor(moments.squares, dtype=torch.float64)
    integers = np.frombuffer(moments.integers(), dtype=np.int8).reshape(len(moments.scales), len(squares))
    factors = torch.from_numpy(integers.T * np.array(moments.scales))
    damping = _DAMPING * float(squares.mean()) or 1.0  # inputs that are all zero leave every rounding free
    return (squares - factors.square().sum(dim=1)).clamp(min=0.0) + damping, factors


def _directions(diagonal: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Return what the carried errors change each column by, shape ``(in, rank)``, fp64: ``K_F^-1 u / d``.

    ``K_F = I + sum u u^T / d`` over the column and those after it.
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
