"""Times on the command line may have units, as in job files."""

from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from autotune.cli.main import app
from autotune.client.actions import submit
from autotune.jobs.spec import JobSpec
from autotune.store.open import open_store


@pytest.mark.parametrize(("written", "seconds"), [("90", 90.0), ("5min", 300.0), ("1.5 h", 5400.0)])
def test_a_time_limit_may_have_a_unit(written: str, seconds: float, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    with closing(open_store(url)) as store:
        job_id = submit(store, JobSpec.parse({"name": "x", "task": {"name": "digits-cnn"}})).id
        done = CliRunner().invoke(app, ["plan", job_id, "--time-limit", written, "--database", url])
        assert done.exit_code == 0
        assert store.job(job_id).spec.search.time_limit_s == seconds


def test_another_time_limit_is_refused() -> None:
    done = CliRunner().invoke(app, ["plan", "last", "--time-limit", "5 minutes"])
    assert done.exit_code == 2
    assert "alone or with a unit" in " ".join(done.stderr.replace("│", " ").split())
