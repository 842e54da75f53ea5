"""What a run has spent so far, for those who watch it.

The figures are upper bounds on the coarse grid of the accountant, computed for the rounds that are evaluated; the final
ones are computed once, on the fine grid, from the events.
"""

from collections import Counter

import numpy as np
import numpy.typing as npt

from common.privacy.accounting import COARSE, epsilon
from common.privacy.plan import Plan


class Spending:
    """Counts the participations of each account."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._taken = np.zeros(len(plan.account_of), np.int64)

    def charge(self, cohort: npt.NDArray[np.intp], *, times: int = 1) -> None:
        """Count an attempt, or with -1 take one back; for unit `client` everybody is charged, whoever is asked."""
        if self._plan.unit == "client":
            self._taken += times
        elif self._plan.unit == "record":
            self._taken[cohort] += times

    def epsilon_max(self) -> float | None:
        """Return an upper bound on the largest epsilon of any account so far; None without privacy."""
        histories = Counter(zip(self._plan.account_of, self._taken.tolist(), strict=True))
        return max(
            (
                epsilon(self._plan.accounts[account].history(taken), delta=self._plan.delta, grid=COARSE)
                for account, taken in histories
            ),
            default=None,
        )
