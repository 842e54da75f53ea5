"""`discreet bench`: every benchmark by name, and how its figures are shown.

Each is a module with one function `figures`, which is imported when it is asked for, and `REPEATS`, how often its
contestants alternate unless somebody wants it otherwise.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from common.errors import BadInputError
from simulations.bench.contest import Figure

BENCHES: Mapping[str, str] = {
    "engine": "clients a second, against bare training loops",
    "dp-step": "a private step, against a plain one and against Opacus's hooks",
    "growth": "10,000 clients, against 100: time a client, and memory",
    "stacking": "clients stacked by vmap, against one after another, on this machine's device",
    "startup": "from the command to the end of a first round",
    "aggregation": "100 updates of a million parameters, against Flower's",
    "peers": "the same work in Flower on Ray, Flower with Opacus, and pfl (make peers)",
    "ledger": "what keeping the budget costs",
}


def run(name: str, *, repeats: int | None = None) -> tuple[list[Figure], int]:
    """Run a benchmark by name; return its figures, and how often the contestants alternated."""
    if name not in BENCHES:
        raise BadInputError(f"bench: expected one of {', '.join(BENCHES)}, got '{name}'.")
    module = import_module(f"simulations.bench.{name.replace('-', '_')}_bench")
    turns: int = repeats or module.REPEATS
    return module.figures(turns), turns


def to_json(name: str, figures: Sequence[Figure], *, repeats: int) -> dict[str, Any]:
    """Return the figures as scripts read them."""
    return {"bench": name, "repeats": repeats, "ratio": {figure.name: figure.summary() for figure in figures}}


def show(name: str, figures: Sequence[Figure], *, repeats: int) -> None:
    """Print the figures for people."""
    table = Table(title=f"bench {name}, {repeats} turns: {BENCHES[name]}", title_justify="left")
    for heading in ("figure", "median", "min", "max", "target", "met"):
        table.add_column(heading, justify="left" if heading == "figure" else "right", overflow="fold")
    for figure in figures:
        numbers = (f"{number:.2f}" for number in (figure.median, min(figure.turns), max(figure.turns)))
        bound = f"{'≥' if figure.at_least else '≤'} {figure.target:g}"
        table.add_row(figure.name, *numbers, bound, "yes" if figure.is_met else "no")
    Console().print(table)


def save(name: str, figures: Sequence[Figure], folder: Path) -> None:
    """Write every turn as NAME.csv, and a plot of them beside their targets as NAME.png."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "figure": figure.name,
            "turn": turn,
            "value": value,
            "ours": figure.sides[turn - 1][0] if figure.sides else None,
            "theirs": figure.sides[turn - 1][1] if figure.sides else None,
            "target": figure.target,
        }
        for figure in figures
        for turn, value in enumerate(figure.turns, 1)
    ]
    pd.DataFrame(rows).to_csv(folder / f"{name}.csv", index=False)
    _plot(name, figures, folder / f"{name}.png")


def _plot(name: str, figures: Sequence[Figure], path: Path) -> None:
    """Draw each figure's turns as shares of its target."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    drawing, axes = plt.subplots(figsize=(9, 1.2 + 0.55 * len(figures)), layout="constrained")
    for position, figure in enumerate(figures):
        color = "tab:green" if figure.is_met else "tab:red"
        shares = [value / figure.target for value in figure.turns]
        axes.plot(shares, [position] * len(shares), "o", color=color, alpha=0.4)
        axes.plot(figure.median / figure.target, position, "|", color=color, markersize=22, markeredgewidth=3)
    axes.axvline(1, color="black", linewidth=1)
    signs = ("≥" if figure.at_least else "≤" for figure in figures)
    labels = [
        f"{figure.name}\n{figure.median:.3g}, target {sign} {figure.target:g}"
        for figure, sign in zip(figures, signs, strict=True)
    ]
    axes.set_yticks(range(len(figures)), labels)
    axes.set_ylim(len(figures) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("share of the target (line at 1); dots are turns, the bar is their median, green is met")
    axes.set_title(f"discreet bench {name}: {BENCHES[name]}", loc="left")
    drawing.savefig(path, dpi=120)
    plt.close(drawing)
