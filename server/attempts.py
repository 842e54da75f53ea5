"""Which round is attempted, by whom, how often, and what that is charged.

Each attempt is noted on disk before anybody is asked. A round that was lost, to a crash or to too few replies, is
attempted again as one of the plan's spare rounds: what was charged for it stays charged.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

import numpy as np

from common.config import Scenario
from common.errors import BudgetSpentError, RunFailedError
from common.ledger import Ledger, Share
from common.privacy.accounts import population_account, terms_of
from common.privacy.entropy import Entropy
from common.privacy.plan import Plan
from common.transparency.drafts import Charge
from server.cohorts import Clients, poisson_cohort, schedule
from server.run_folder import LEDGER, LEDGER_SEEN, RunFolder
from server.spending import Spending

_EVERYBODY = np.arange(0)  # who is asked does not matter where all are charged
SPENT = "The model so far is saved. See `discreet report` for what was spent; only the data's owner can allow more."


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
        self._schedule = schedule(scenario) if plan.unit != "client" else []  # whose cohorts are drawn, and secret
        self._spending = Spending(plan)
        self._ledger: Ledger | None = None
        self._charge: Charge | None = None  # of the attempt that is under way
        self._lost_here = 0
        for number, times in folder.attempts().items():
            self._spending.charge(self._schedule[number - 1] if self._schedule else _EVERYBODY, times=times)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Hold the ledger of the one account that the coordinator keeps; other clients keep their own."""
        if self._plan.unit != "client":
            yield
            return
        account, (planned,) = population_account(self._scenario), self._plan.accounts
        path = self._folder.path
        with closing(Ledger(path / LEDGER, memory=path / LEDGER_SEEN)) as self._ledger:
            known = self._ledger.books.accounts.get(account)
            if known is None or self._plan.run not in known.runs:  # a run that resumes leaves the terms as they are
                self._ledger.open_accounts(terms_of(self._scenario, self._plan))
            share = Share(events=planned.events, wanted=planned.reserved)
            self._ledger.begin_run(self._plan.run, {account: share})
            yield

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
        self._reserve(attempt)
        self._spending.charge(cohort)
        return attempt

    def commit(self) -> None:
        """Note that the attempt under way changed the model."""
        if self._ledger is not None and self._charge is not None:
            self._ledger.settle([self._charge])

    def lose(self) -> None:
        """Note that the attempt under way came to nothing; it stays charged."""
        self._lost_here += 1
        if self._ledger is not None and self._charge is not None:
            self._ledger.settle([], [self._charge])

    def retract(self, attempt: Attempt) -> None:
        """Forget the attempt under way: everybody refused it, and nothing was charged."""
        self._folder.retract()
        self._spending.charge(attempt.cohort, times=-1)

    def epsilon_max(self) -> float | None:
        """Return an upper bound on what any account has spent; None without privacy."""
        return self._spending.epsilon_max()

    def _reserve(self, attempt: Attempt) -> None:
        """Charge the whole population, durably; BudgetSpentError when it has nothing left."""
        if self._ledger is None:
            return
        self._charge = Charge(
            account=population_account(self._scenario), run=self._plan.run, round=attempt.round,
            attempt=attempt.number, events=self._plan.accounts[0].events,
        )  # fmt: skip
        (refusal,) = self._ledger.reserve([self._charge])
        if refusal is not None:
            self._folder.retract()
            raise BudgetSpentError(f"Round {attempt.round} was not begun: {refusal.value}. {SPENT}")

    def _lost(self, number: int) -> int:
        """How many attempts came to nothing: in all under privacy, in this process without."""
        if self._plan.unit == "none":
            return self._lost_here
        return self._folder.attempts().total() - (number - 1)
