"""The charts of a report, as SVG that a page takes in whole.

Nothing in it comes from a network, nothing changes from one drawing to the next, and no identifier is used twice on a
page. Colours are the page's own: a chart follows its light, dark and printed form.
"""

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

INK, FAINT, ACCENT, OTHER = "#010101", "#020202", "#030303", "#040404"  # stand for the page's colours
_COLOURS = {INK: "var(--ink)", FAINT: "var(--line)", ACCENT: "var(--accent)", OTHER: "var(--other)"}
_STYLE = {
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
_WIDE, _NARROW = (8.4, 3.0), (3.6, 2.5)  # inches


def trade_off(
    name: str,
    *,
    rates: Sequence[float],
    limits: Mapping[str, Sequence[float]],
    point: tuple[float, float, str],
    label: str,
) -> str:
    """Draw the highest true-positive rates over the rates of false positives, and one point of them with its words."""
    with rc_context(_STYLE | {"svg.hashsalt": name}):
        figure, axes = _axes(_WIDE)
        for (legend, values), (colour, dash) in zip(limits.items(), ((ACCENT, "-"), (OTHER, "--")), strict=False):
            axes.plot(rates, values, dash, color=colour, label=legend)
        axes.plot(rates, rates, ":", color=INK, linewidth=1, label="guessing blindly")
        axes.plot(*point[:2], "o", color=ACCENT, markersize=5)
        axes.annotate(point[2], point[:2], xytext=(7, -11), textcoords="offset points", color=ACCENT)
        axes.set(xscale="log", xlim=(rates[0], 1), ylim=(0, 1.02))
        axes.set(xlabel="wrongly accused, of those not in the data", ylabel="recognised, of those in it")
        axes.xaxis.set_major_formatter(lambda rate, _: f"{100 * rate:g}%")
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.xaxis.set_minor_locator(MaxNLocator(1))
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
        return _svg(figure, name, label)


def over_rounds(
    name: str, *, lines: Mapping[str, tuple[Sequence[int], Sequence[float]]], axis: str, top: float | None, label: str
) -> str:
    """Draw figures over the rounds of a run; `lines` names one or two of them."""
    with rc_context(_STYLE | {"svg.hashsalt": name}):
        figure, axes = _axes(_NARROW)
        for (legend, (rounds, values)), (colour, dash) in zip(
            lines.items(), ((ACCENT, "-"), (OTHER, "--")), strict=False
        ):
            marker = "o" if len(rounds) == 1 else ""
            axes.plot(rounds, values, dash, marker=marker, color=colour, label=legend)
        axes.set(xlabel="round", ylabel=axis)
        axes.set_ylim(0, top or 1.08 * max(max(values) for _, values in lines.values()) or 1)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if len(lines) > 1:
            axes.legend(loc="best")
        return _svg(figure, name, label)


def spread(name: str, *, values: Sequence[float], axis: str, label: str) -> str:
    """Draw how many accounts lie where."""
    with rc_context(_STYLE | {"svg.hashsalt": name}):
        figure, axes = _axes(_NARROW)
        axes.hist(values, bins=min(20, max(5, len(set(values)))), color=ACCENT, rwidth=0.92)
        axes.set(xlabel=axis, ylabel="accounts")
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.grid(visible=False, axis="x")
        return _svg(figure, name, label)


def _axes(size_inches: tuple[float, float]) -> tuple[Figure, Any]:
    figure = Figure(figsize=size_inches, layout="constrained")
    return figure, figure.add_subplot()


def _svg(figure: Figure, name: str, label: str) -> str:
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
    text = re.sub(r'<(g|text|path) id="[^"]*"', r"<\1", text)
    used = set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in {*used, said} else "", text)
    for stand_in, colour in _COLOURS.items():
        text = text.replace(stand_in, colour)
    return re.sub(r"\s*\n\s*", "\n", text).strip()
