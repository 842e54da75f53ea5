"""How well scores tell members from others: receiver operating characteristics, and how sure they are.

Shapes: T thresholds, from the strictest down.

    >>> curve = trace(np.array([3.0, 1.0]), np.array([2.0, 0.0]))
    >>> curve.area, curve.hits(0.0), curve.hits(0.5)
    (0.75, 0.5, 1.0)
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import beta

from common import checks

RATES = (0.01, 0.001)  # of false positives at which attacks are compared
CONFIDENCE = 0.95

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """What each threshold accuses, the first of them nobody and the last everybody.

    Args:
        false_T: share of the others that are accused, increasing.
        true_T: share of the members that are accused, increasing.
    """

    false_T: npt.NDArray[np.float64]
    true_T: npt.NDArray[np.float64]

    @property
    def area(self) -> float:
        """The area under the curve: how often a member's score is above another's, a tie counting half."""
        return float(np.trapezoid(self.true_T, self.false_T))

    def hits(self, rate: float) -> float:
        """Return the largest share of members that a threshold accuses with at most this share of the others."""
        return float(self.true_T[self.false_T <= rate].max())


@dataclass(frozen=True, kw_only=True)
class Hits:
    """Members recognised at one rate of false positives, with an interval of 95 %: both rates were only counted."""

    rate: float
    value: float
    low: float
    high: float


def trace(members: Scores, others: Scores) -> Curve:
    """Return the curve of scores, of which higher ones speak for membership.

    Guarantees:
        Equal scores are accused together: no threshold parts them.

    Edge cases:
        no members, or no others   raises ValueError
    """
    checks.positive(members=len(members), others=len(others))
    scores, place = np.unique(np.concatenate([members, others]), return_inverse=True)
    true_T, false_T = (
        np.cumsum(np.bincount(part, minlength=len(scores))[::-1]) / len(part)
        for part in (place[: len(members)], place[len(members) :])
    )
    return Curve(false_T=np.concatenate([[0.0], false_T]), true_T=np.concatenate([[0.0], true_T]))


def hits_at(curve: Curve, rate: float, *, members: int, others: int) -> Hits:
    """Return the true-positive rate at a rate of false positives, with its interval.

    The threshold that truly has this rate is not known: it lies between the loosest one whose rate is surely lower and
    the strictest one whose rate is surely higher. The interval goes from the lower limit of what the former recognises
    to the upper limit of what the latter does.

    Args:
        curve: of the scores.
        rate: of false positives.
        members: how many of them count as independent; with several models of the same records those of one.
        others: the same of the others.

    Source: Clopper and Pearson 1934, four one-sided limits that share the error.
    """
    error = (1 - CONFIDENCE) / 4
    is_strict = upper_limit(curve.false_T, others, error=error) <= rate
    is_loose = lower_limit(curve.false_T, others, error=error) >= rate
    return Hits(
        rate=rate,
        value=curve.hits(rate),
        low=float(np.max(lower_limit(curve.true_T[is_strict], members, error=error), initial=0.0)),
        high=float(np.min(upper_limit(curve.true_T[is_loose], members, error=error), initial=1.0)),
    )


def lower_limit(share_T: npt.NDArray[np.float64], trials: int, *, error: float) -> npt.NDArray[np.float64]:
    """Return what a probability is not below, save with probability `error`, when a share of the trials came true."""
    with np.errstate(invalid="ignore"):
        limit_T = beta.ppf(error, share_T * trials, trials - share_T * trials + 1)
    return np.where(share_T > 0, limit_T, 0.0)


def upper_limit(share_T: npt.NDArray[np.float64], trials: int, *, error: float) -> npt.NDArray[np.float64]:
    """Return what a probability is not above, save with probability `error`."""
    return 1 - lower_limit(1 - share_T, trials, error=error)
