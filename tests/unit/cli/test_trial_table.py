"""The table of layers that ``autotune show JOB TRIAL`` prints."""

from dataclasses import replace
from datetime import UTC, datetime

from rich.console import Console

from autotune.cli.jobs import _layers_table, _refused
from autotune.jobs.records import JobRecord, JobState, TrialKind, TrialRecord, TrialState
from autotune.jobs.spec import JobSpec
from search_spaces.layer import Layer, LayerKind
from search_spaces.quantization_map import ActivationRange
from workers.measurement import Environment
from workers.setup import Calibration, ModelDescription

AT = datetime(2026, 1, 2, tzinfo=UTC)


def layer(name: str, frozen_reason: str | None = None) -> Layer:
    return Layer(
        name=name, kind=LayerKind.LINEAR, weight_shape=(4, 4), has_bias=True, weight_bytes=80, input_shape=(1, 4),
        flops=32, calls=1, order=0, group=name, frozen_reason=frozen_reason,
    )  # fmt: skip


DESCRIPTION = ModelDescription(
    fingerprint="f" * 64, layers=(layer("fc"),), refusals={}, layer_bytes={}, other_bytes=0,
    calibration=Calibration(ranges={"fc": ActivationRange(low=-1.5, high=2.0)}, samples=1, seconds=0.0),
    environment=Environment(hardware="cpu", backend="x86", threads=1, load=0.0, versions={}),
)  # fmt: skip


def printed(description: ModelDescription, **choices: str) -> list[list[str]]:
    job = JobRecord(
        id="a1", name="x", task="t", document={}, state=JobState.FINISHED, created_at=AT, updated_at=AT,
        description=description,
    )  # fmt: skip
    trial = TrialRecord(
        job_id="a1", number=0, kind=TrialKind.SEARCH, label=None, state=TrialState.COMPLETE, choices=choices, key="k",
        finished_at=AT,
    )  # fmt: skip
    table = _layers_table(job, trial)
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return [line.split() for line in capture.get().splitlines() if line.strip(" ─")]


def test_static_layers_show_their_range_and_what_it_clips() -> None:
    clipping = replace(DESCRIPTION, calibration=replace(DESCRIPTION.calibration, clipped={"fc": 0.1234}))
    assert printed(clipping, fc="int8_static")[1:] == [["fc", "int8_static", "-1.5", "..", "2", "12", "%"]]
    assert printed(DESCRIPTION, fc="int8_static")[1:] == [["fc", "int8_static", "-1.5", "..", "2"]]
    assert printed(clipping, fc="fp32") == [["layer", "choice"], ["fc", "fp32"]]


def test_what_stays_in_full_precision_says_why() -> None:
    described = replace(DESCRIPTION, layers=(layer("fc"), layer("head", "is tied")), skipped={"lstm": "has no kernel"})
    found = printed(described, fc="int8_dynamic", head="fp32")
    assert found[1:] == [
        ["fc", "int8_dynamic"],
        ["head", "fp32", "is", "tied"],
        ["lstm", "fp32", "has", "no", "kernel"],
    ]


def test_neighbours_that_are_alike_share_a_row() -> None:
    found = printed(DESCRIPTION, a="bf16", b="bf16", c="bf16", fc="int8_static", z="bf16")
    assert found[1:] == [
        ["a", "…", "c", "(3", "layers)", "bf16"],
        ["fc", "int8_static", "-1.5", "..", "2"],
        ["z", "bf16"],
    ]


def test_layers_that_cannot_take_a_choice_are_listed_by_reason() -> None:
    refusals = {
        "a": {"bf16": "needs BF16", "fp16": "needs BF16", "fp8_static": "needs CUDA"},
        "b": {"bf16": "needs BF16"},
        "head": {"bf16": "is tied"},
    }
    layers = (layer("a"), layer("b"), layer("head", "is tied"))
    document = JobSpec.parse({"name": "x", "task": {"name": "t"}}).dump()
    job = JobRecord(
        id="a1", name="x", task="t", document=document, state=JobState.FINISHED, created_at=AT, updated_at=AT,
        description=replace(DESCRIPTION, layers=layers, refusals=refusals),
    )  # fmt: skip
    assert list(_refused(job, "")) == [
        "a and 1 more cannot take bf16: needs BF16.",
        "a cannot take fp16: needs BF16.",
    ]
