"""What a person sees of a deployed run, and of a trial."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from server.coordinator.outcome import Outcome


def show_run(outcome: Outcome) -> None:
    """Print what a run reached, and what each organisation was asked."""
    _show(Console(), outcome.to_json())


def show(result: Mapping[str, Any]) -> None:
    """Print a trial's run, what each organisation's ledger says, and what each process took."""
    console = Console()
    _show(console, result)
    ledgers = Table(title="What each organisation's own ledger says", title_justify="left")
    for heading in ("organisation", "ε spent", "of", "entries", "witnessed"):
        ledgers.add_column(heading, justify="left" if heading == "organisation" else "right")
    for one in result["ledgers"]:
        spent = "none" if one["epsilon"] is None else f"{one['epsilon']:.3f}"
        of = "" if one["budget"] is None else f"{one['budget']:g}"
        ledgers.add_row(one["name"], spent, of, str(one["entries"]), "yes" if one["is_witnessed"] else "no")
    console.print(ledgers)
    processes = Table(title="Processes", title_justify="left")
    for heading in ("process", "ready after", "memory"):
        processes.add_column(heading, justify="left" if heading == "process" else "right")
    for one in result["processes"]:
        ready = "" if one["ready_s"] is None else f"{one['ready_s']:.1f} s"
        processes.add_row(one["name"], ready, f"{one['memory_mb']:.0f} MB")
    console.print(processes)
    console.print(f"The run took {result['run_seconds']:.1f} s, all of the trial {result['trial_seconds']:.1f} s.")


def _show(console: Console, run: Mapping[str, Any]) -> None:
    table = Table(title="Organisations", title_justify="left")
    for heading in ("organisation", "records", "asked", "refused"):
        table.add_column(heading, justify="left" if heading == "organisation" else "right")
    for one in run["organisations"]:
        table.add_row(one["name"], str(one["records"]), str(one["asked"]), str(one["refusals"]))
    console.print(table)
    if run["epsilon"] is not None:
        console.print(
            f"Asked of a record: ε {run['epsilon']['max']:.3f} at most, at δ = {run['delta']:g}, zero-out adjacency. "
            f"What was spent stands in the organisations' own ledgers."
        )
    metrics = "  ".join(f"{name} {value:.4f}" for name, value in run["metrics"].items())
    console.print(f"[bold]On public test data after {run['rounds']} rounds: {metrics}[/bold]")
    console.print(f"Run folder: {run['run_dir']}", soft_wrap=True)
