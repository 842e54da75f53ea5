"""The charts of a report, as SVG that a page takes in whole.

Nothing in it comes from a network, nothing changes from one drawing to the next, and no identifier is used twice on a
page. Colours are the page's own: a chart follows its light, dark and printed form.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from common.privacy.odds import FALSE_POSITIVES, most_hits
from simulations.report_facts import Odds

Lines = Mapping[str, tuple[Sequence[int], Sequence[float]]]  # rounds and figures, by what they are of

INK, FAINT, ACCENT, OTHER = "#010101", "#020202", "#030303", "#040404"  # stand for the page's colours
RATES = [10 ** (exponent / 20) for exponent in range(-60, 1)]  # of false positives, from 0.1 %
_SERIES = (
    ("accuracy", "accuracy", "Accuracy on public test data", 1.0),
    ("f1", "F1", "F1 on public test data", 1.0),
    ("loss", "loss", "Loss on public test data", None),
    ("epsilon_max", "ε", "ε of this run so far, the largest of any account", None),
)  # column of rounds.csv, axis, caption, top of the axis
_COLOURS = {INK: "var(--ink)", FAINT: "var(--line)", ACCENT: "var(--accent)", OTHER: "var(--other)"}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.handlelength": 1.4,
}
_PENS = ((ACCENT, "-"), (OTHER, "--"))
WIDE, NARROW = (8.4, 3.0), (3.2, 2.3)  # inches


def of_odds(odds: Odds, *, words: str) -> str:
    """Draw the highest true-positive rates over the rates of false positives; `words` stand at the rate compared."""
    label = f"The most that any attack can recognise, over the share that it accuses wrongly: at most {words}."
    with rc_context(STYLE | {"svg.hashsalt": "odds"}):
        figure, axes = axes_of(WIDE)
        axes.plot(RATES, [most_hits(odds.pairs, x) for x in RATES], color=ACCENT, label="from all that was done")
        axes.plot(RATES, [most_hits(odds.pairs[:1], x) for x in RATES], "--", color=OTHER, label="from ε and δ alone")
        axes.plot(RATES, RATES, ":", color=INK, linewidth=1, label="guessing blindly")
        point = (FALSE_POSITIVES, odds.hits)
        axes.plot(*point, "o", color=ACCENT, markersize=5)
        axes.annotate(words, point, xytext=(7, -11), textcoords="offset points", color=ACCENT)
        axes.set(xscale="log", xlim=(RATES[0], 1), ylim=(0, 1.02))
        axes.set(xlabel="wrongly accused, of those not in the data", ylabel="recognised, of those in it")
        axes.xaxis.set_major_formatter(lambda rate, _: f"{100 * rate:g}%")
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.xaxis.set_minor_locator(MaxNLocator(1))
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
        return svg(figure, "odds", label)


def of_rounds(rounds: pd.DataFrame) -> list[tuple[str, str]]:
    """Draw each figure that the rounds of a run have; return drawings and their captions."""
    drawn = []
    for column, axis, caption, top in _SERIES:
        lines = _lines(rounds, column)
        if lines:
            numbers, values = next(iter(lines.values()))
            if column == "epsilon_max":
                values = [math.ceil(1000 * value) / 1000 for value in values]  # what is spent is rounded up
            label = f"{caption}: {values[0]:.4g} in round {numbers[0]}, {values[-1]:.4g} in round {numbers[-1]}."
            drawn.append((over_rounds(f"rounds-{column}", lines=lines, axis=axis, top=top, label=label), label))
    return drawn


def over_rounds(name: str, *, lines: Lines, axis: str, top: float | None, label: str) -> str:
    """Draw figures over rounds; `lines` has one or two of them by their names."""
    with rc_context(STYLE | {"svg.hashsalt": name}):
        figure, axes = axes_of(NARROW)
        for (legend, (rounds, values)), (colour, dash) in zip(lines.items(), _PENS, strict=False):
            marker = "o" if len(rounds) == 1 else ""
            axes.plot(rounds, values, dash, marker=marker, color=colour, label=legend)
        axes.set(xlabel="round", ylabel=axis)
        axes.set_ylim(0, top or 1.08 * max(max(values) for _, values in lines.values()) or 1)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if len(lines) > 1:
            axes.legend(loc="best")
        return svg(figure, name, label)


def _lines(rounds: pd.DataFrame, column: str) -> Lines:
    """What to draw of a column, and with the accuracy that on the clients' own records."""
    names = {column: "public test data"}
    if column == "accuracy":
        names["client_accuracy"] = "clients' records, noised"
    lines = {}
    for name, legend in names.items():
        if name in rounds and rounds[name].notna().any():
            known = rounds[rounds[name].notna()]
            lines[legend] = (known["round"].astype(int).tolist(), known[name].astype(float).tolist())
    return lines


def spread(name: str, *, values: Sequence[float], axis: str, label: str) -> str:
    """Draw how many accounts lie where."""
    with rc_context(STYLE | {"svg.hashsalt": name}):
        figure, axes = axes_of(NARROW)
        axes.hist(values, bins=min(12, max(5, len(set(values)))), color=ACCENT, rwidth=0.92)
        axes.set(xlabel=axis, ylabel="accounts")
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.grid(visible=False, axis="x")
        return svg(figure, name, label)


def axes_of(size_inches: tuple[float, float]) -> tuple[Figure, Any]:
    """Return a new figure and its axes."""
    figure = Figure(figsize=size_inches, layout="constrained")
    return figure, figure.add_subplot()


def svg(figure: Figure, name: str, label: str) -> str:
    """Write a figure as one <svg> element that says what it shows."""
    page = io.BytesIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(page, format="svg", transparent=True, metadata=nothing)
    text = page.getvalue().decode()
    text = text[text.index("<svg") :]
    width, height = (round(72 * inches) for inches in figure.get_size_inches())
    said = f"{escape(name)}-label"
    head = (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-labelledby="{said}" data-width="{width}">'
        f'<title id="{said}">{escape(label)}</title>'
    )
    text = head + text[text.index(">") + 1 :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    used = set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in {*used, said} else "", text)
    for stand_in, colour in _COLOURS.items():
        text = text.replace(stand_in, colour)
    return re.sub(r"\s*\n\s*", "\n", text).strip()
