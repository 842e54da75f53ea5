"""An audit for people: a verdict, what it rests on, and what it does not say."""

from rich.console import Console

from common.audit.findings import in_words
from common.audit.tables import bounds, checks
from simulations.audit.audit import Audit


def show(made: Audit) -> None:
    """Print an audit."""
    console = Console(highlight=False)
    console.print(bounds(made.findings))
    if made.findings.checks:
        console.print(checks(made.findings))
    for sentence in (*in_words(made.findings), *_scope(made)):
        console.print(sentence)


def _scope(made: Audit) -> list[str]:
    """What was attacked, and what was put in the scenario's place."""
    cut = (
        f"The scenario has {made.scenario_rounds} rounds; {made.rounds} were attacked, with noise planned for these. "
        if made.rounds < made.scenario_rounds
        else ""
    )
    attacked = (
        f"{cut}Attacked was the scenario's model, mechanism and engine, on synthetic rows and with plain SGD; "
        f"gradients by {made.way}."
    )
    noted = "audit.json, and an AUDIT entry in ledger.db" if made.plan.accounts else "audit.json"
    return [attacked, f"{made.run_dir} has {noted}. It took {made.seconds:.1f} s."]
