"""An audit for people: a verdict, what it rests on, and what it does not say."""

from rich.console import Console
from rich.table import Table

from common.audit.verdict import LARGEST_EPSILON, Findings, in_words
from simulations.audit.audit import Audit

KINDS = {"f-DP": "rigorous", "Steinke": "rigorous, assumes nothing", "Gaussian": "an estimate"}


def show(made: Audit) -> None:
    """Print an audit."""
    console = Console(highlight=False)
    console.print(_bounds(made.findings))
    if made.findings.checks:
        console.print(_checks(made.findings))
    for sentence in (*in_words(made.findings), *_scope(made)):
        console.print(sentence)


def _bounds(findings: Findings) -> Table:
    claimed = "nothing" if findings.claimed_epsilon is None else f"ε ≤ {findings.claimed_epsilon:.3f}"
    grid = Table(title=f"What an attacker finds out; claimed is {claimed}", title_justify="left")
    for heading in ("by", "kind", "ε is at least, at 95 %", "claim"):
        grid.add_column(heading, justify="right" if heading.startswith("ε") else "left")
    bounds = (findings.lower_bounds.f_dp, findings.lower_bounds.steinke, findings.lower_bounds.gaussian)
    for layer, bound in zip(findings.layers, bounds, strict=True):
        figure = f"{bound:.2f}" if bound < LARGEST_EPSILON else f"{LARGEST_EPSILON:.0f} or more"
        grid.add_row(layer.name, KINDS[layer.name], figure, _word(layer.is_refuted, findings))
    return grid


def _checks(findings: Findings) -> Table:
    grid = Table(title="Whether the run did what it says", title_justify="left")
    for heading in ("check", "planned", "measured", "allowed", "verdict"):
        grid.add_column(heading, justify="left" if heading in {"check", "verdict"} else "right")
    for check in findings.checks:
        allowed = f"{_figure(check.low)} to {_figure(check.high)}".removesuffix(" to ") + " or more" * (
            check.high is None
        )
        grid.add_row(
            check.name, _figure(check.expected), _figure(check.measured),
            allowed if check.low is not None else f"{_figure(check.high)} or less", _word(check.is_refuted, findings),
        )  # fmt: skip
    return grid


def _word(is_refuted: bool, findings: Findings) -> str:  # noqa: FBT001 - a column's value
    if findings.claimed_epsilon is None:
        return "–"
    return "[bold red]REFUTED[/]" if is_refuted else "not refuted"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


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
