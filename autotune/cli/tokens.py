"""Commands about access tokens: add, list, revoke."""

from contextlib import closing
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from autotune.cli.options import AsJson, Database, Token, Url, client, reader
from autotune.console.output import out, print_json, say
from autotune.jobs.records import Scope, TokenRecord
from autotune.jobs.timestamps import now


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    tokens = typer.Typer(help="Manage access tokens of the HTTP API.", no_args_is_help=True)
    tokens.command("add")(add)
    tokens.command("list")(show)
    tokens.command("revoke")(revoke)
    app.add_typer(tokens, name="token")


def add(
    name: Annotated[str, typer.Argument(help="Holder of the token; jobs submitted with it belong to this name.")],
    database: Database,
    scope: Annotated[
        Scope, typer.Option(help="viewer reads, submitter submits and changes own jobs, admin changes all jobs.")
    ] = Scope.SUBMITTER,
    days: Annotated[float | None, typer.Option(help="Days until it expires; by default, it never does.")] = None,
    url: Url = None,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Create an access token (shown once)."""
    with closing(client(database, url, token)) as service:
        made = service.add_token(name, scope=scope, days=days)
    say(f"Token {made.token.id} of {name} has scope {scope}. Save it now: it is not shown again.")
    if as_json:
        print_json({"token": _token_json(made.token), "text": made.text})
    else:
        print(made.text)


def show(database: Database, url: Url = None, token: Token = None, as_json: AsJson = False) -> None:
    """List the access tokens, oldest first."""
    with closing(reader(database, url, token)) as service:
        tokens = service.tokens()
    if as_json:
        print_json({"tokens": [_token_json(record) for record in tokens]})
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("token", "name", "scope", "created", "state"):
        table.add_column(heading, overflow="fold")
    for record in tokens:
        created = f"{record.created_at.astimezone():%Y-%m-%d %H:%M}"
        table.add_row(*map(Text, (record.id, record.name, record.scope.value, created, _state(record))))
    out.print(table)


def revoke(
    token_id: Annotated[str, typer.Argument(metavar="TOKEN-ID", help="Id of the token, as 'list' prints it.")],
    database: Database,
    url: Url = None,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Revoke an access token."""
    with closing(client(database, url, token)) as service:
        revoked = service.revoke_token(token_id)
    say(f"Token {revoked.id} of {revoked.name} is revoked.")
    if as_json:
        print_json({"token": _token_json(revoked)})


def _state(token: TokenRecord) -> str:
    if token.revoked_at:
        return "revoked"
    if token.expires_at is None:
        return "valid"
    until = f"{token.expires_at.astimezone():%Y-%m-%d %H:%M}"
    return f"valid until {until}" if token.is_valid(now()) else "expired"


def _token_json(token: TokenRecord) -> dict[str, Any]:
    return {
        "id": token.id,
        "name": token.name,
        "scope": token.scope.value,
        "created_at": token.created_at.isoformat(),
        "expires_at": token.expires_at and token.expires_at.isoformat(),
        "revoked_at": token.revoked_at and token.revoked_at.isoformat(),
    }
