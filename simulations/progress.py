"""What a person sees of a run: a live line on a terminal, plain lines elsewhere, and the figures at its end.

Progress goes to stderr, so that stdout is free for results.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from server.observer import Observer, RoundRecord
from simulations.campaign import Campaign, spread
from simulations.figures import Outcome

MANY = 20  # clients; with more, alike ones share a line
PLAIN_EVERY_S = 10.0


@contextmanager
def watcher() -> Iterator[Observer]:
    """Yield an observer for where stderr goes."""
    console = Console(stderr=True)
    handler = RichHandler(console=console, show_path=False, show_time=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    if not console.is_terminal:
        yield PlainLines()
        return
    columns = (
        TextColumn("[bold]{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[clients]}"),
        TextColumn("{task.fields[figures]}"), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as bar:
        yield LiveLine(bar)


class _Pace:
    """Clients a second, and the time left."""

    def __init__(self) -> None:
        self.rounds, self.done, self.begun = 0, 0, 0
        self.started, self.updates, self.seconds = time.monotonic(), 0, 0.0

    def start(self, rounds: int, done: int) -> None:
        self.rounds, self.done, self.begun = rounds, done, done
        self.started = time.monotonic()

    def add(self, record: RoundRecord) -> None:
        self.done = record.round
        self.updates += record.replies
        self.seconds += record.seconds

    def speed(self) -> str:
        rate = self.updates / self.seconds if self.seconds else 0.0
        return f"{rate:.1f} clients/s" if rate >= 1 else f"{rate:.2g} clients/s"

    def left(self) -> str:
        fresh = self.done - self.begun
        seconds = (time.monotonic() - self.started) / max(fresh, 1) * (self.rounds - self.done)
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d} left"


class PlainLines(Observer):
    """A line now and then: for logs, pipes and files."""

    def __init__(self) -> None:
        self._pace, self._last = _Pace(), 0.0

    def run_started(self, *, rounds: int, done: int) -> None:
        """Say that a run begins, or goes on."""
        self._pace.start(rounds, done)
        _print(f"{'continuing after round ' + str(done) if done else 'starting'}: {rounds} rounds")

    def round_done(self, record: RoundRecord) -> None:
        """Say how it stands, for rounds that were evaluated, and at least every ten seconds."""
        self._pace.add(record)
        now = time.monotonic()
        if not record.metrics and now - self._last < PLAIN_EVERY_S and record.round < self._pace.rounds:
            return
        self._last = now
        parts = [f"round {record.round}/{self._pace.rounds}", f"{record.replies} of {record.cohort} clients"]
        parts += [figures(record)] if record.metrics else []
        parts += [self._pace.speed(), self._pace.left()]
        _print("  ".join(parts))


class LiveLine(Observer):
    """One line that moves."""

    def __init__(self, bar: Progress) -> None:
        self._bar, self._pace = bar, _Pace()
        self._task: TaskID | None = None
        self._cohort, self._answered, self._figures = 0, 0, ""

    def run_started(self, *, rounds: int, done: int) -> None:
        """Draw the line."""
        self._pace.start(rounds, done)
        self._figures = ""
        self._task = self._bar.add_task(
            f"round {done}/{rounds}", total=rounds, completed=done, clients="starting workers", figures=""
        )

    def round_started(self, *, round_number: int, cohort: int) -> None:
        """Count clients anew."""
        self._cohort, self._answered = cohort, 0
        self._draw(round_number)

    def client_done(self) -> None:
        """Count a client."""
        self._answered += 1
        self._draw()

    def round_done(self, record: RoundRecord) -> None:
        """Move the bar."""
        self._pace.add(record)
        if record.metrics:
            self._figures = figures(record)
        self._draw(record.round, completed=record.round)

    def _draw(self, round_number: int | None = None, *, completed: int | None = None) -> None:
        if self._task is None:
            return
        pace = f"  {self._pace.speed()}" if self._pace.updates else ""
        self._bar.update(
            self._task,
            completed=completed,
            description=None if round_number is None else f"round {round_number}/{self._pace.rounds}",
            clients=f"{self._answered}/{self._cohort} clients",
            figures=self._figures + pace,
        )


def figures(record: RoundRecord) -> str:
    """Return a round's figures in one line."""
    parts = [f"accuracy {record.metrics['accuracy']:.4f}", f"loss {record.metrics['loss']:.3f}"]
    if "f1" in record.metrics:
        parts.insert(1, f"F1 {record.metrics['f1']:.3f}")
    if record.epsilon_max is not None:
        parts.append(f"ε ≤ {record.epsilon_max:.2f}")
    return "  ".join(parts)


def show(campaign: Campaign) -> None:
    """Print what a finished run, or several, reached and spent."""
    console = Console()
    for outcome in campaign.outcomes:
        _show_outcome(console, outcome, campaign)
    if len(campaign.outcomes) > 1:
        table = Table(title=f"{len(campaign.outcomes)} seeds", title_justify="left")
        for heading in ("", "mean", "std", "min", "max"):
            table.add_column(heading, justify="right" if heading else "left")
        for name, row in spread(campaign.outcomes).items():
            table.add_row(name, *(f"{row[column]:.4f}" for column in ("mean", "std", "min", "max")))
        console.print(table)
        if campaign.epsilon_all_runs is not None:
            console.print(f"A record that was in every run has spent ε ≤ {campaign.epsilon_all_runs:.3f} in all.")


def _show_outcome(console: Console, outcome: Outcome, campaign: Campaign) -> None:
    if outcome.epsilon is not None:
        console.print(_spent(outcome, campaign))
        unit = campaign.plan.accounts[0].event.unit
        console.print(
            f"Each figure holds for one {unit}, at δ = {outcome.delta:g}, zero-out adjacency. "
            f"Reserved, with spare rounds: ε {campaign.plan.epsilon_reserved:.3f}."
        )
    if outcome.lifetime_epsilon is not None and outcome.lifetime_epsilon != outcome.epsilon:
        console.print(f"All runs in the ledger together: ε {outcome.lifetime_epsilon['max']:.3f} at most.")
    metrics = "  ".join(f"{name} {value:.4f}" for name, value in outcome.metrics.items())
    console.print(f"[bold]On public test data after {outcome.rounds} rounds: {metrics}[/bold]")
    console.print(
        f"{outcome.client_updates_per_second:.1f} client updates a second, {outcome.wall_seconds:.1f} s in all."
    )
    console.print(f"Run folder: {outcome.run_dir}", soft_wrap=True)


def _spent(outcome: Outcome, campaign: Campaign) -> Table:
    """A line for each client, or for each group of clients that are alike."""
    import pandas as pd  # once, at a run's end: its import would keep a first round waiting

    clients = pd.read_csv(f"{outcome.run_dir}/clients.csv")
    facts = ["records", "sampling_rate", "noise_multiplier", "steps", "epsilon"]
    table = Table(title="What each client spent", title_justify="left")
    if len(clients) > MANY:
        grouped = clients.groupby(facts, as_index=False).size().rename(columns={"size": "clients"})
        rows, first = grouped.nlargest(MANY, "epsilon"), "clients"
    else:
        rows, first = clients, "client"
    for heading in (first, "records", "sampling rate", "noise", "steps", "ε"):
        table.add_column(heading, justify="right")
    for _, row in rows.iterrows():
        table.add_row(
            f"{row[first]:.0f}", f"{row['records']:.0f}", f"{row['sampling_rate']:.4f}",
            f"{row['noise_multiplier']:.3f}", f"{row['steps']:.0f}", f"{row['epsilon']:.3f}",
        )  # fmt: skip
    if campaign.plan.unit == "client":
        table.caption = "one account for the whole population: who takes part or not, all are charged each round"
    return table


def _print(line: str) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False).print(line, markup=False)
