"""The examples are valid, run, and explain themselves."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from autotune.jobs.spec import JobSpec
from search_spaces.discovery import discover
from search_spaces.layer import Layer
from search_spaces.space import build_space
from workers.candidate import Candidate, QualityLimit
from workers.measurement import Split
from workers.task import Task, splits
from workers.tasks import build_task, load_task_file

EXAMPLES = Path(__file__).parents[3] / "examples"
OWN_TASK = EXAMPLES / "own_task.py"
GUIDE = EXAMPLES.parent / "docs" / "tasks.md"
JOBS = sorted(EXAMPLES.glob("*.yaml"))

each_job = pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)


@pytest.fixture(autouse=True)
def _cached_weights(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("AUTOTUNE_CACHE", str(tmp_path_factory.getbasetemp() / "weights"))


def task_of(spec: JobSpec) -> Task:
    for own in EXAMPLES.glob("own_*.py"):
        load_task_file(str(own))
    return build_task(spec.task.name, spec.task.parameters)


def layers_of(task: Task) -> tuple[Layer, ...]:
    batch = task.latency_batch(1)
    return discover(task.build_model(), lambda model: task.forward(model, batch))


def keys(data: object, path: str = "") -> set[str]:
    """Every key of parsed YAML, behind the keys above it."""
    if isinstance(data, list):
        return {key for item in data for key in keys(item, path)}
    if not isinstance(data, dict):
        return set()
    here = {f"{path}{key}" for key in data}
    return here.union(*(keys(value, f"{path}{key}.") for key, value in data.items()))


def explained_keys(path: Path) -> set[str]:
    """Keys with a comment beside or above them, and those that only hold other keys."""
    above, stack, found = "", [], set()
    for line in path.read_text().splitlines():
        if match := re.match(r"^((?: |- )*)([a-z0-9_]+):(.*)$", line):
            depth, key, rest = len(match[1]), match[2], match[3]
            stack = [*((d, k) for d, k in stack if d < depth), (depth, key)]
            value, comment, _ = rest.partition("#")
            if comment or above.startswith("#") or not value.strip():
                full = ".".join(k for _, k in stack)
                found |= {full, *(f"{full}.{inner}" for inner in re.findall(r"(\w+): ", value))}
        above = line.strip()
    return found


def test_there_are_examples() -> None:
    assert {path.stem for path in JOBS} >= {"minilm", "minilm-slo", "digits-cnn", "digits-vit", "own-task", "own-model"}


@each_job
def test_job_is_valid_and_its_rules_fit_the_model(path: Path) -> None:
    spec = JobSpec.load(path)
    task = task_of(spec)
    assert isinstance(task, Task)
    layers = layers_of(task)
    space = build_space(layers, choices=spec.search.choices, supports=lambda *_: None, rules=spec.rules())
    assert space.size > spec.search.trials
    for rule in spec.rules():
        free = build_space(layers, choices=spec.search.choices, supports=lambda *_: None)
        alone = build_space(layers, choices=spec.search.choices, supports=lambda *_: None, rules=[rule])
        assert alone.size < free.size or rule.sensitivity, f"the rule for {rule.pattern!r} changes nothing"


@each_job
def test_job_says_how_to_run_it(path: Path) -> None:
    (command,) = re.findall(r"^#     (autotune run .*)$", path.read_text(), re.MULTILINE)
    files = [EXAMPLES.parent / word for word in command.split() if "/" in word]
    assert files[0] == path
    assert all(file.is_file() for file in files)


def test_every_key_is_explained() -> None:
    explained = explained_keys(EXAMPLES / "minilm.yaml")
    assert explained >= keys(yaml.safe_load((EXAMPLES / "minilm.yaml").read_text()))
    explained |= explained_keys(EXAMPLES / "minilm-slo.yaml")
    assert explained >= keys(yaml.safe_load((EXAMPLES / "minilm-slo.yaml").read_text()))


def test_demo_job_is_what_the_demo_promises() -> None:
    spec = JobSpec.load(EXAMPLES / "minilm.yaml")
    assert spec.objectives == ("latency_p50_ms", "divergence")
    assert [str(constraint) for constraint in spec.constraints.constraints()] == [
        "accuracy_drop <= 0.02",
        "divergence <= 0.005",
    ]
    assert (spec.search.trials, spec.search.time_limit_s, spec.search.seed) == (100, 150, 0)
    assert (spec.workers.pool, spec.workers.count) == ("ray", 1)


def test_examples_show_every_section_and_constraint() -> None:
    shown = set().union(*(keys(yaml.safe_load(path.read_text())) for path in JOBS))
    schema = JobSpec.model_json_schema()
    assert set(schema["properties"]) <= shown
    for section, keyword in (("SearchSection", "search"), ("CalibrationSection", "calibration")):
        assert {f"{keyword}.{name}" for name in schema["$defs"][section]["properties"]} <= shown
    assert {f"measurement.{name}" for name in schema["$defs"]["MeasurementSection"]["properties"]} <= shown


def test_own_task_is_short() -> None:
    assert len(OWN_TASK.read_text().splitlines()) < 40


def test_own_task_is_measured_quantized() -> None:
    from workers.backends.cpu.backend import CpuBackend
    from workers.evaluation.evaluator import Evaluator

    if CpuBackend().unavailable() is not None:
        pytest.skip("needs the x86 backend")
    spec = JobSpec.load(EXAMPLES / "own-task.yaml")
    setup = spec.worker_setup(str(OWN_TASK))
    evaluator = Evaluator(setup)
    layers = evaluator.description.layers
    found = evaluator.measure(
        Candidate(
            number=0,
            choices={layer.name: "int8_dynamic" for layer in layers},
            limits={Split.EVALUATION: QualityLimit(least_accuracy=2.0)},
        )
    )
    assert [layer.name for layer in layers] == ["0", "2", "4"]
    assert found.accuracy > 0.9
    assert 0.0 < found.divergence < 0.1


def test_guide_shows_a_task_that_works(tmp_path: Path) -> None:
    (source,) = re.findall(r"^```python\n(@?.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "guide.py").write_text(source)
    load_task_file(str(tmp_path / "guide.py"))
    (name,) = re.findall(r'@register\("(.*)"\)', source)
    task = build_task(name, {"width": 32})
    model = task.build_model()
    assert isinstance(task, Task)
    assert len(layers_of(task)) >= 2
    for split in splits(task):
        outputs = torch.cat([task.forward(model, batch) for batch in task.evaluation(split)])
        assert 0.5 < task.accuracy(outputs.detach(), split) <= 1.0
