"""The auditor's verb: does a ledger extend what a witness cosigned?"""

import json
import os
from pathlib import Path
from typing import Annotated

import typer


def mount(app: typer.Typer) -> None:
    """Add `witnessed`."""
    app.command(epilog="Example: discreet witnessed export.jsonl --identity identity")(witnessed)


def witnessed(
    ledger: Annotated[Path, typer.Argument(help="A ledger, or an export of it.")],
    identity: Annotated[Path, typer.Option(metavar="DIR", help="Who asks: a member's identity.")] = Path("identity"),
    witness: Annotated[str, typer.Option(metavar="NAME", help="Whom to ask; may be left out where there is one.")] = "",
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, for scripts.")] = False,
) -> None:
    """Compare a ledger with what a witness cosigned last.

    Fails when it is an older copy, or another past of the ledger.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what TLS did is no line of ours
    from client import auditing

    table = auditing.witnessed(ledger, identity=identity, witness=witness)
    if as_json:
        typer.echo(json.dumps(table))
        return
    for sentence in auditing.in_words(table):
        typer.echo(sentence)
