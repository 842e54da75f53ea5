"""What the link knows at this moment: who is online, which runs there were."""

from pathlib import Path
from typing import Any

from common.consortium import roster
from common.errors import RunFailedError
from server.coordinator.flower_link import FlowerLink
from server.link.settings import LinkFolder, read_link


def table(consortium: Path) -> dict[str, Any]:
    """Return the organisations of the roster with their nodes' state, and the link's runs, newest first."""
    known = roster.load(consortium / "roster.json")
    link = FlowerLink(read_link(LinkFolder(consortium)))
    states = {node.public_key: node.status for node in link.nodes()}
    return {
        "consortium": known.consortium,
        "organisations": [
            {"name": owner.name, "status": states.get(owner.node.encode(), "not registered")} for owner in known.owners
        ],
        "runs": [{"flower_run": run.id, "status": run.state} for run in link.runs()],
    }


def show(found: dict[str, Any]) -> None:
    """Print it for people."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    who = Table(title=f"Organisations of {found['consortium']}", title_justify="left")
    who.add_column("organisation")
    who.add_column("node")
    for one in found["organisations"]:
        who.add_row(one["name"], one["status"])
    console.print(who)
    runs = Table(title="Runs at the link, newest first", title_justify="left")
    runs.add_column("Flower run")
    runs.add_column("status")
    for run in found["runs"]:
        runs.add_row(str(run["flower_run"]), run["status"])
    console.print(runs)


def stop(consortium: Path) -> str:
    """End the run that goes on, or raise RunFailedError when there is none."""
    link = FlowerLink(read_link(LinkFolder(consortium)))
    going_on = next((run for run in link.runs() if not run.is_over), None)
    if going_on is None:
        raise RunFailedError("No run is going on.")
    link.stop_run(going_on)
    return f"Stopped run {going_on.id}. It can be resumed: discreet run --resume DIR"
