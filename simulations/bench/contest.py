"""How contestants take turns, and what their turns say.

Machines are noisy, so contestants alternate within one call, in an order that turns round, and only ratios count.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Turn = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What was measured, once a turn, beside its target.

    Args:
        name: what it says, with its unit where it has one.
        turns: what each turn gave.
        target: what is aimed at.
        at_least: whether the target is a floor; else a ceiling.
        sides: for a ratio what it is of, ours and theirs, one pair a turn.
    """

    name: str
    turns: tuple[float, ...]
    target: float
    at_least: bool
    sides: tuple[tuple[float, float], ...] = ()

    @property
    def median(self) -> float:
        """The median of all turns."""
        return statistics.median(self.turns)

    @property
    def is_met(self) -> bool:
        """Whether the median reaches the target."""
        return self.median >= self.target if self.at_least else self.median <= self.target

    def summary(self) -> dict[str, Any]:
        """Return the figure as scripts read it."""
        return {
            "median": self.median,
            "min": min(self.turns),
            "max": max(self.turns),
            "target": self.target,
            "met": self.is_met,
        }


def alternate(contestants: Mapping[str, Turn], repeats: int) -> dict[str, list[float]]:
    """Give each contestant one turn that does not count, then `repeats` turns, every other time in reverse order."""
    for turn in contestants.values():
        turn()
    came: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(repeats):
        names = list(contestants) if number % 2 == 0 else list(contestants)[::-1]
        for name in names:
            came[name].append(contestants[name]())
    return came


def ratio(name: str, ours: Sequence[float], theirs: Sequence[float], *, target: float, at_least: bool) -> Figure:
    """Return ours over theirs, turn by turn."""
    sides = tuple(zip(ours, theirs, strict=True))
    return Figure(name=name, turns=tuple(a / b for a, b in sides), target=target, at_least=at_least, sides=sides)
