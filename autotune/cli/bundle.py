"""The command that writes the maps of a front into one folder to deploy: bundle."""

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from autotune.cli.options import AsJson, Database, JobReference, Token, Url, reader
from autotune.console.front import front_members
from autotune.console.output import mix, print_json, say
from autotune.metrics.from_measurement import MIB
from autotune.serving import bundle as bundles
from autotune.serving.selection import selected
from autotune.store.artifacts import learned_weights


def add_to(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(bundle)


def bundle(
    job: JobReference,
    database: Database,
    max_mib: Annotated[
        float | None, typer.Option(min=0.0, help="Most MiB that the weights of all maps may take together.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("bundle"),
    url: Url = None,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Write the maps of a front into one folder, to deploy them together in little more memory than one.

    The recommended map is always among them. Under a limit, the others are those worth most together.
    """
    with closing(reader(database, url, token)) as client:
        record = client.find(job)
        trials = client.records.trials(record.id)
        members = front_members(client.records, record)
        selection = selected(record, trials, members, None if max_mib is None else int(max_mib * MIB))
        learned = {trial.number: learned_weights(client.records, trial) for trial in selection.trials}
    written = bundles.write(record, selection, learned, output)
    if as_json:
        print_json({"path": str(output), "bundle": written.model_dump(mode="json", by_alias=True)})
        return
    together = f"which take at most {written.weight_bytes / MIB:.1f} MiB together"
    say(f"Wrote {len(written.maps)} map{'s' * (len(written.maps) != 1)}, {together}, to {output}.")
    say(f"Recommended: trial {written.recommended} ({mix(selection.recommended.choices)}).")
    for number, why in written.left_out.items():
        say(f"Left out: trial {number}; {why}.")
