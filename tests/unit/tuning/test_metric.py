"""Which part a user's metric plays, and the one that labels have without any."""

import operator
from functools import partial
from typing import Any

import pytest
import torch

from autotune.tuning.metric import roles, share_right
from workers.errors import TaskError


def of_both(outputs: Any, labels: Any) -> float:
    return 0.0


def of_model(model: Any, *, batch_size: int = 4) -> float:
    return 0.0


def with_default(outputs: Any, labels: Any = None) -> float:
    return 0.0


@pytest.mark.parametrize(
    ("metric", "has_labels", "judges"),
    [
        pytest.param(of_both, False, False, id="two arguments"),
        pytest.param(of_model, False, True, id="one argument"),
        pytest.param(with_default, False, True, id="one required argument"),
        pytest.param(with_default, True, False, id="labels are given"),
        pytest.param(partial(of_both, labels=1), False, True, id="the other is bound"),
        pytest.param(torch.nn.MSELoss(), False, False, id="any arguments"),
        pytest.param(operator.eq, False, False, id="C code"),
    ],
)
def test_a_metric_judges_models_or_outputs(metric: Any, has_labels: bool, judges: bool) -> None:
    assert roles(metric, has_labels=has_labels) == ((metric, None) if judges else (None, metric))


def test_labels_alone_are_compared_with_decisions() -> None:
    assert roles(None, has_labels=True) == (None, share_right)
    assert roles(None, has_labels=False) == (None, None)


def test_the_share_of_right_decisions() -> None:
    outputs = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0], [float("nan"), 1.0]])
    assert share_right(outputs, torch.tensor([1, 0, 0, 1])) == pytest.approx(0.5)


@pytest.mark.parametrize("labels", [torch.ones(2), torch.ones(3, dtype=torch.long), ["a", "b"]])
def test_labels_that_are_no_classes_need_a_metric(labels: Any) -> None:
    with pytest.raises(TaskError, match="must be class numbers of shape"):
        share_right(torch.ones(2, 3), labels)
