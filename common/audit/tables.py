"""Findings as tables for a terminal: what was proved, and what was measured."""

from rich.table import Table

from common.audit.findings import Findings
from common.audit.verdict import LARGEST_EPSILON

KINDS = {"f-DP": "rigorous", "Steinke": "rigorous, assumes nothing", "Gaussian": "an estimate"}


def bounds(findings: Findings) -> Table:
    """Return what the attack proves or estimates, a line a layer."""
    claimed = "nothing" if findings.claimed_epsilon is None else f"ε ≤ {findings.claimed_epsilon:.3f}"
    grid = Table(title=f"What an attacker finds out; claimed is {claimed}", title_justify="left")
    for heading in ("by", "kind", "ε is at least, at 95 %", "claim"):
        grid.add_column(heading, justify="right" if heading.startswith("ε") else "left")
    found = (findings.lower_bounds.f_dp, findings.lower_bounds.steinke, findings.lower_bounds.gaussian)
    for layer, bound in zip(findings.layers, found, strict=True):
        figure = f"{bound:.2f}" if bound < LARGEST_EPSILON else f"{LARGEST_EPSILON:.0f} or more"
        grid.add_row(layer.name, KINDS[layer.name], figure, _word(layer.is_refuted, findings))
    return grid


def checks(findings: Findings) -> Table:
    """Return what was planned, measured and allowed, a line a check."""
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
