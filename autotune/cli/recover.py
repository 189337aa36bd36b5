"""The command that gives back what quantization loses: recover."""

from contextlib import closing
from typing import Annotated

import typer

from autotune.cli.jobs import stop_like_ctrl_c
from autotune.cli.options import AsJson, Database, JobReference, TaskFile, client, one_of, path_text
from autotune.cli.task_prints import prints_on_stderr
from autotune.console.front import print_front
from autotune.console.output import say
from autotune.console.progress import ConsoleListener
from autotune.errors import JobFailedError
from autotune.jobs.front import PICKS
from autotune.jobs.spec import PROMISING, RecoverySection
from autotune.store.open import open_store
from autotune.validation import validated

_DEFAULTS = RecoverySection()
#: Kinds of events that say what came of a recovery, and the one of them that is an error.
_TOLD = ("recovered", "recovery_kept", _FAILED := "recovery_failed")
_NOTHING = "No map was recovered: none is promising that is not recovered already."


def add_to(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(recover)


def recover(
    job: JobReference,
    database: Database,
    pick: Annotated[
        list[str] | None,
        typer.Option(
            help="promising, knee, fastest, smallest, most-accurate, or a trial number; may be repeated. The default, "
            "promising, is the recommended map, and faster ones that miss nothing but limits on quality.",
            autocompletion=one_of(lambda: (PROMISING, *PICKS)),
        ),
    ] = None,
    time_limit: Annotated[str, typer.Option(help="Time for all maps together, such as 90s or 5min.")] = "5min",
    epochs: Annotated[int, typer.Option(help="Passes over the calibration data for each block.")] = _DEFAULTS.epochs,
    task_file: TaskFile = None,
    as_json: AsJson = False,
) -> None:
    """Learn weights for maps of a job, and record each as a trial beside its parent.

    Choices, latency and memory stay as they are; what quantization loses comes back in part.
    """
    section = validated(RecoverySection, {"time_limit_s": time_limit, "epochs": epochs}, "the options are wrong")
    with closing(client(database, None, None)) as jobs:
        record = jobs.find(job)
    # Imported here because it imports Optuna, which read-only commands do not need.
    from autotune.search.run import recover_maps

    stop_like_ctrl_c()
    with closing(open_store(database)) as store:
        before = len(store.events(record.id))
        with prints_on_stderr(), ConsoleListener(record.spec.objectives[0]) as listener:
            recover_maps(
                store,
                record.id,
                pick or [PROMISING],
                section.settings(record.spec.search.seed),
                listener=listener,
                task_file=path_text(task_file),
            )
        told = [event for event in store.events(record.id)[before:] if event.kind in _TOLD]
        if told and all(event.kind == _FAILED for event in told):
            raise JobFailedError("; ".join(event.message for event in told))
        for message in [event.message for event in told] or [_NOTHING]:
            say(message)
        print_front(store, store.job(record.id), as_json)
