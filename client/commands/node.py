"""Verbs of an organisation's node: `join`, and `runs`, `approve`, `refuse` for the person who decides."""

import json
from pathlib import Path
from typing import Annotated

import typer

PolicyFile = Annotated[Path, typer.Option(help="The owner's policy, a TOML file; `discreet policy init` prints one.")]
NodeFile = Annotated[Path | None, typer.Option(help="The node's settings; default node.toml beside the policy.")]
Run = Annotated[str, typer.Argument(help="The run's identifier, or how it begins.")]
Name = Annotated[str, typer.Option("--by", help="Who decides: the ledger keeps the name.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, for scripts.")]

POLICY = Path("policy.toml")


def mount(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command(epilog="Example: discreet join --policy policy.toml")(join)
    app.command(epilog="Example: discreet runs --json")(runs)
    app.command(epilog="Example: discreet approve 3f1c09aa --by 'Dr Grey'")(approve)
    app.command(epilog="Example: discreet refuse 3f1c09aa --by 'Dr Grey'")(refuse)


def join(policy: PolicyFile = POLICY, node: NodeFile = None) -> None:
    """Take part in runs with this organisation's data, within its policy, until told to stop (SIGTERM, Ctrl-C).

    It prints `ready:` once it is connected, reconnects for ever, and never runs what a coordinator ships.
    """
    from client.node import node_process

    node_process.run(policy=policy, node=_settings(policy, node))


def runs(policy: PolicyFile = POLICY, node: NodeFile = None, *, as_json: AsJson = False) -> None:
    """Show the runs that ask for an approval: what they are for, and what they would cost."""
    from client.node import decisions

    rows = decisions.runs(_settings(policy, node), policy)
    if as_json:
        typer.echo(json.dumps({"runs": rows}))
    else:
        decisions.show(rows)


def approve(run: Run, by: Name, policy: PolicyFile = POLICY, node: NodeFile = None) -> None:
    """Let a proposed run train on this organisation's data; the ledger keeps who said so."""
    from client.node import decisions

    typer.echo(decisions.decide(_settings(policy, node), policy, run, decision="approved", by=by))


def refuse(run: Run, by: Name, policy: PolicyFile = POLICY, node: NodeFile = None) -> None:
    """Keep a proposed run from this organisation's data; the ledger keeps who said so."""
    from client.node import decisions

    typer.echo(decisions.decide(_settings(policy, node), policy, run, decision="refused", by=by))


def _settings(policy: Path, node: Path | None) -> Path:
    return node or policy.parent / "node.toml"
