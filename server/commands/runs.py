"""Verbs of the coordinator about runs that go on: `status` and `stop`."""

import json
from pathlib import Path
from typing import Annotated

import typer

Consortium = Annotated[Path, typer.Option(help="The consortium's folder, whose link runs on this machine.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, for scripts.")]


def mount(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command(epilog="Example: discreet status --consortium consortium")(status)
    app.command(epilog="Example: discreet stop --consortium consortium")(stop)


def status(consortium: Consortium = Path("consortium"), as_json: AsJson = False) -> None:  # noqa: FBT002 - typer
    """Show which organisations are online, and which runs the link knows."""
    from server.coordinator import overview

    table = overview.table(consortium)
    if as_json:
        typer.echo(json.dumps(table))
    else:
        overview.show(table)


def stop(consortium: Consortium = Path("consortium")) -> None:
    """End the run that is going on; what was trained stays charged, and the run can be resumed."""
    from server.coordinator import overview

    typer.echo(overview.stop(consortium))
