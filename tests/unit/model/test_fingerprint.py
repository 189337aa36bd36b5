"""What a model's fingerprint depends on."""

from typing import Any

import pytest
import torch
from torch import nn

from workers.model.fingerprint import fingerprint


class WithState(nn.Linear):
    """A layer with state that is no tensor."""

    def __init__(self, state: Any) -> None:
        super().__init__(2, 2)
        self.weight.data.fill_(1.0)
        assert self.bias is not None
        self.bias.data.zero_()
        self.state = state

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        self.state = state


class Opaque:
    """Whose repr has its address."""


def test_equal_extra_state_is_equal() -> None:
    assert fingerprint(WithState({"version": 3, "scales": [torch.ones(2), None]})) == fingerprint(
        WithState({"version": 3, "scales": [torch.ones(2), None]})
    )
    assert fingerprint(WithState(Opaque())) == fingerprint(WithState(Opaque()))


@pytest.mark.parametrize("other", [{"version": 4}, {"version": "3"}, {}, torch.ones(1), None])
def test_other_extra_state_is_another_model(other: Any) -> None:
    assert fingerprint(WithState({"version": 3})) != fingerprint(WithState(other))
