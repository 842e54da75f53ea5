"""What the rounds of a run add up to, while it goes on and from its folder."""

import csv
from collections import Counter
from pathlib import Path

from server.observer import Observer, RoundRecord


class Tally(Observer):
    """Adds up what the figures need, and passes all on."""

    def __init__(self, watcher: Observer) -> None:
        self._watcher = watcher
        self.updates, self.seconds = 0, 0.0
        self.refusals: Counter[int] = Counter()
        self.metrics: dict[str, float] = {}

    def run_started(self, *, rounds: int, done: int) -> None:
        """Pass it on."""
        self._watcher.run_started(rounds=rounds, done=done)

    def round_started(self, *, round_number: int, cohort: int) -> None:
        """Pass it on."""
        self._watcher.round_started(round_number=round_number, cohort=cohort)

    def client_done(self) -> None:
        """Pass it on."""
        self._watcher.client_done()

    def round_done(self, record: RoundRecord) -> None:
        """Add the round up, and pass it on."""
        self.updates += record.replies
        self.seconds += record.seconds
        self.refusals.update(client for client, _ in record.refused)
        self.metrics = dict(record.metrics)
        self._watcher.round_done(record)


def rounds_done(folder: Path) -> int:
    """Return the number of the last round in rounds.csv."""
    return max((int(line["round"]) for line in _lines(folder)), default=0)


def last_metrics(folder: Path) -> dict[str, float]:
    """The metrics of the last round that was evaluated, or none."""
    evaluated = [line for line in _lines(folder) if line["accuracy"]]
    return {name: float(evaluated[-1][name]) for name in ("accuracy", "loss")} if evaluated else {}


def _lines(folder: Path) -> list[dict[str, str]]:
    """The lines of rounds.csv by column; none before the first round."""
    path = folder / "rounds.csv"
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []
