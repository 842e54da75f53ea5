"""The owner's verb after a run with canaries: `audited`."""

import json
from pathlib import Path
from typing import Annotated

import typer


def mount(app: typer.Typer) -> None:
    """Add `audited`."""
    app.command(epilog="Example: discreet audited 3f1c09aa --policy policy.toml")(audited)


def audited(
    run: Annotated[str, typer.Argument(help="The run, or how it begins; may be left out where there is one.")] = "",
    policy: Annotated[Path, typer.Option(help="The owner's policy, a TOML file.")] = Path("policy.toml"),
    node: Annotated[Path | None, typer.Option(help="The node's settings; default node.toml beside the policy.")] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, for scripts.")] = False,
) -> None:
    """Judge a run by the canaries that stood beside this organisation's records: does its epsilon survive?

    The ledger keeps the verdict. Exit code 1 when epsilon is refuted. No record is read.
    """
    from client.live import audited as live
    from client.live.show import show

    made = live.audited(node or policy.parent / "node.toml", policy, run)
    if as_json:
        typer.echo(json.dumps(made.to_json()))
    else:
        show(made)
    if made.findings.is_refuted:
        raise typer.Exit(1)
