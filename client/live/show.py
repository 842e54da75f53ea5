"""What a person sees of an audited run."""

from typing import Any

from rich.console import Console
from rich.table import Table

from client.live.audited import Audited
from common.audit.verdict import in_words


def show(made: Audited) -> None:
    """Print an audit."""
    console, table = Console(highlight=False), made.to_json()
    console.print(_layers(table))
    console.print(_checks(table))
    for sentence in in_words(made.findings):
        console.print(sentence, markup=False)
    missing = made.charged - made.rounds
    lost = f", {missing} more were charged and not seen" if missing else ""
    console.print(f"Run {made.run}: the pad was seen in {made.rounds} rounds{lost}.", markup=False)
    console.print(f"{made.folder}/audit.json, and an AUDIT entry in the ledger.", markup=False, soft_wrap=True)


def _layers(table: dict[str, Any]) -> Table:
    grid = Table(title="What the owner's canaries found", title_justify="left")
    for heading in ("layer", "kind", "verdict", ""):
        grid.add_column(heading)
    for layer in table["layers"]:
        grid.add_row(layer["name"], layer["kind"], _word(layer), layer["says"])
    return grid


def _checks(table: dict[str, Any]) -> Table:
    grid = Table(title="Whether the run did what the ledger says", title_justify="left")
    for heading in ("check", "expected", "allowed", "measured", "verdict"):
        grid.add_column(heading, justify="right" if heading in {"expected", "allowed", "measured"} else "left")
    for check in table["checks"]:
        allowed = f"{_figure(check['low'])} to {_figure(check['high'])}"
        grid.add_row(check["name"], _figure(check["expected"]), allowed, _figure(check["measured"]), _word(check))
    return grid


def _word(part: dict[str, Any]) -> str:
    return "[bold red]REFUTED[/]" if part["is_refuted"] else "not refuted"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
