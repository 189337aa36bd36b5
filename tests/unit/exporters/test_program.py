"""The program of torch.export: called as the model is, for every batch size, and with nothing of this machine in it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from autotune.errors import ExportError
from autotune.exporters.base import Source
from autotune.exporters.program_exporter import PROGRAM, ProgramExporter
from autotune.maps.map_file import MapFile
from search_spaces.discovery import discover
from search_spaces.quantization_map import QuantizationMap

CHOSEN = {"first": "int8_dynamic", "second": "int4_weight_only"}


class Network(nn.Module):
    """Two layers, called with one tensor by position and one by name."""

    def __init__(self, *, stubborn: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 64), nn.Linear(64, 8)
        self.stubborn = stubborn

    def forward(self, x: torch.Tensor, *, offset: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.stubborn and x.sum() > 0:
            x = -x
        return {"logits": self.second(self.first(x + offset).relu())}


class Task:
    """What an exporter asks of a task."""

    def evaluation(self, split: object) -> list[torch.Tensor]:
        return [torch.ones(4, 32), torch.ones(3, 32)]

    def forward(self, model: nn.Module, batch: torch.Tensor) -> Any:
        return model(batch, offset=torch.zeros(32))


class _File(MapFile):
    """A map file of which the exporter reads the map only."""

    def quantization_map(self) -> QuantizationMap:
        return QuantizationMap.from_names(CHOSEN)


def source(*, stubborn: bool) -> Source:
    torch.manual_seed(0)
    model, task = Network(stubborn=stubborn).eval(), Task()
    layers = discover(model, lambda m: task.forward(m, task.evaluation(None)[0]))
    return Source(file=_File.model_construct(backend="x86"), task=task, model=model, layers=layers)  # type: ignore[arg-type]


def test_program_takes_any_batch_as_the_model_does(tmp_path: Path) -> None:
    made = source(stubborn=False)
    details = ProgramExporter().write(made, tmp_path)
    loaded = ProgramExporter().load(tmp_path, details, lambda: Network(stubborn=False)).eval()
    for size in (1, 4, 7):
        x = torch.randn(size, 32)
        expected = made.model(x, offset=torch.ones(32))["logits"]
        assert torch.equal(loaded(x, offset=torch.ones(32))["logits"], expected)


def test_program_tells_no_folders(tmp_path: Path) -> None:
    ProgramExporter().write(source(stubborn=False), tmp_path)
    written = (tmp_path / PROGRAM).read_bytes()
    assert b"int4" in written or b"qdata" in written, "the archive is not compressed, so that this can be read"
    for module in (__file__, torch.__file__):
        assert str(Path(module).parent).encode() not in written


def test_model_that_cannot_be_traced_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"torch\.export cannot trace the model: .*Use the format torchao"):
        ProgramExporter().write(source(stubborn=True), tmp_path)
    assert list(tmp_path.iterdir()) == []
