"""``autotune.tune`` in a notebook: a real kernel runs the cells, and what they show is what a reader sees."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

SETUP = f"""
import signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import autotune, test_tune

inputs, labels = test_tune.samples()
job = {{**test_tune.JOB, "search": {{"choices": ["fp32", "int8_weight_only"], "trials": 3}}}}
"""
TUNE = 'result = autotune.tune(test_tune.model(), inputs, labels=labels, limits={"accuracy_drop": "50%"}, job=job)'
INTERRUPTED = """
calls = 0

def metric(outputs, labels):
    global calls
    calls += 1
    if calls == 4:  # full precision, and a map after it
        signal.raise_signal(signal.SIGINT)  # what a notebook's stop button sends
    return test_tune.top1(outputs, labels)

kept = autotune.tune(test_tune.model(), inputs, labels=labels, metric=metric, job=test_tune.JOB)
print(kept.job.state.value, len(kept.trials))
"""
#: Outputs of the cell that tunes: sentences, and the bar.
MOST_OUTPUTS = 12


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[list[nbformat.NotebookNode]]:
    """The outputs of each cell."""
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in (SETUP, TUNE, "result", INTERRUPTED)]
    )
    folder = tmp_path_factory.mktemp("notebook")
    client = NotebookClient(notebook, timeout=180, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        patch.delenv("AUTOTUNE_DATABASE", raising=False)
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        client.execute()
    return [cell.outputs for cell in notebook.cells]


def test_a_result_shows_one_page_with_the_recommendation_first(cells: list[list[nbformat.NotebookNode]]) -> None:
    (shown,) = cells[2]
    page = shown.data["text/html"]
    places = [page.find(part) for part in ("Recommended", "Pareto front", "Baselines")]
    assert -1 not in places
    assert places == sorted(places)
    assert page.count("<table>") == 2


def test_progress_is_one_bar_that_is_gone_at_the_end(cells: list[list[nbformat.NotebookNode]]) -> None:
    shown = cells[1]
    assert len(shown) <= MOST_OUTPUTS
    assert not any("<progress" in output.get("data", {}).get("text/html", "") for output in shown)
    assert not any("rich" in str(output.get("data", {})) for output in shown), "no code of the console library"


def test_stopping_the_cell_keeps_what_was_measured(cells: list[list[nbformat.NotebookNode]]) -> None:
    printed = "".join(output.text for output in cells[3] if output.output_type == "stream")
    state, trials = printed.split()[-2:]
    assert state == "paused"
    assert 1 <= int(trials) < 6
