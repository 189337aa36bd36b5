"""Entry point of the ``autotune`` command."""

import json
import os
import sys
from dataclasses import asdict
from typing import Annotated

import typer

import autotune
from autotune.cli import bundle, jobs, maps, queued, recover, sensitivity, service, system, tokens, tune
from autotune.cli.exit_codes import EXIT_CODES, FAILED, INTERRUPTED, exit_code
from autotune.client.json_records import Problem
from autotune.console.output import JSON_SCHEMA, say
from search_spaces.errors import AutotuneError

_CODES = {0: "success", FAILED: "failed", **dict(EXIT_CODES.values()), INTERRUPTED: "interrupted"}

app = typer.Typer(
    help="Search per-layer precision and static-versus-dynamic quantization against measured latency and memory.",
    epilog="Exit codes: " + ", ".join(f"{code} {meaning}" for code, meaning in sorted(_CODES.items())) + ".",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    add_completion=True,
)
tune.add_to(app)
recover.add_to(app)
jobs.add_to(app)
queued.add_to(app)
service.add_to(app)
sensitivity.add_to(app)
maps.add_to(app)
bundle.add_to(app)
system.add_to(app)
tokens.add_to(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"quant-autotune {autotune.__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; errors that users can act on become a message and an exit code."""
    try:
        app()
    except AutotuneError as error:
        _report(error)
        sys.exit(exit_code(error))
    except KeyboardInterrupt:
        say("Interrupted.")
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader of the output has closed it, as in ``autotune jobs | head``; the rest cannot be printed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)


def _report(error: AutotuneError) -> None:
    if "--json" in sys.argv:
        print(json.dumps({"schema": JSON_SCHEMA, "error": asdict(Problem.of(error))}), file=sys.stderr)
    else:
        say(f"Error: {error}")


if __name__ == "__main__":
    main()
