"""Which round is attempted, by whom, how often, and what that is charged.

Each attempt is noted on disk before anybody is asked. A round that was lost, to a crash or to too few replies, is
attempted again as one of the plan's spare rounds: what was charged for it stays charged.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from common.config import Scenario
from common.errors import RunFailedError
from common.privacy.entropy import Entropy
from common.privacy.event_log import Entry, EventLog
from common.privacy.plan import POPULATION, Plan
from server.cohorts import Clients, poisson_cohort, schedule
from server.run_folder import RunFolder
from server.spending import Spending


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One try at a round: its number, which try it is, and who is asked, in increasing order."""

    round: int
    number: int
    cohort: Clients


class Attempts:
    """The attempts of a run.

    Guarantees:
        For unit `client` the population's charge is on disk when `begin` returns.
        A private run never begins more attempts than rounds done plus `spare_rounds` plus one.
    """

    def __init__(self, scenario: Scenario, plan: Plan, folder: RunFolder) -> None:
        self._scenario, self._plan, self._folder = scenario, plan, folder
        self._schedule = schedule(scenario)
        self._spending = Spending(plan)
        self._events: EventLog | None = None
        self._lost_here = 0
        for number, times in folder.attempts().items():
            self._spending.charge(self._schedule[number - 1], times=times)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Hold the event log of the one account that the coordinator keeps; other clients keep their own."""
        if self._plan.unit != "client":
            yield
            return
        self._events = EventLog(self._folder.path / "events.jsonl")
        try:
            yield
        finally:
            self._events.close()

    def begin(self, number: int) -> Attempt:
        """Begin a round, durably; RunFailedError when it was lost and no spare is left."""
        lost = self._lost(number)
        if lost > self._scenario.server.spare_rounds:
            raise RunFailedError(
                f"Round {number}: {lost} rounds were lost so far and server.spare_rounds is "
                f"{self._scenario.server.spare_rounds}. What was spent stays spent; start a new run with more spares."
            )
        private_cohort = self._plan.unit == "client"
        cohort = poisson_cohort(self._plan, Entropy()) if private_cohort else self._schedule[number - 1]
        attempt = Attempt(round=number, number=self._folder.begin(number), cohort=cohort)
        if self._events is not None:
            event = self._plan.accounts[0].event
            entry = Entry(run=self._plan.run, round=number, attempt=attempt.number, account=POPULATION, event=event)
            self._events.append([entry])
        self._spending.charge(cohort)
        return attempt

    def lose(self) -> None:
        """Note that an attempt of this process came to nothing."""
        self._lost_here += 1

    def epsilon_max(self) -> float | None:
        """Return an upper bound on what any account has spent; None without privacy."""
        return self._spending.epsilon_max()

    def _lost(self, number: int) -> int:
        """How many attempts came to nothing: in all under privacy, in this process without."""
        if self._plan.unit == "none":
            return self._lost_here
        return self._folder.attempts().total() - (number - 1)
