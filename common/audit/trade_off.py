"""Trade-off functions: what an attack's true positives cost in false positives.

A claim of differential privacy is a set of pairs (epsilon, delta) that hold at once. From any one of them, an attack
with a rate y of true positives has a rate of false positives of at least

    max(0, (y - delta) e^-epsilon, 1 - delta - (1 - y) e^epsilon)

and so of at least the largest of these over all pairs. A finite set claims less than the whole curve, and less is
harder to refute: whatever is refuted of a finite set is refuted of the curve.

    >>> round(gaussian(1.0).least_false_positives(0.5), 4)  # Phi(Phi^-1(0.5) - 1) = 0.1587
    0.1587

Source: Dong et al. 2019, Section 2, https://arxiv.org/abs/1905.02383.
"""

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import log_ndtr

from common import checks
from common.errors import AccountingError
from common.privacy.accounting import COARSE, profile, renyi_epsilon
from common.privacy.events import History

EPSILONS = np.concatenate([[0.0], np.geomspace(1e-3, 300.0, 700)])  # 1.8 % apart
RENYI_DELTAS = tuple(10.0**-digits for digits in range(1, 11))
LARGEST_EXPONENT = 700.0  # e^700 is a float
ROUNDING = 1e-15  # of the closed formula
LARGEST_MU = 100.0  # beyond which an epsilon, about mu^2 / 2, is in the thousands: no claim at all


@dataclass(frozen=True, kw_only=True)
class TradeOff:
    """A claim: for neighbours in both directions, each of these pairs holds.

    Args:
        epsilons: at least 0.
        deltas: from 0 to 1, as many.
    """

    epsilons: tuple[float, ...]
    deltas: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.epsilons) != len(self.deltas):
            raise ValueError(f"deltas: expected {len(self.epsilons)}, got {len(self.deltas)}")
        for epsilon, delta in zip(self.epsilons, self.deltas, strict=True):
            checks.not_negative(epsilon=epsilon, delta=delta)

    def least_false_positives(self, true_positives: float) -> float:
        """Return the least rate of false positives that the claim allows beside this rate of true positives.

        Guarantees:
            Convex, never falling, and 0 at 0.

        Edge cases:
            no pairs    0: nothing is claimed
        """
        begins, lines = self._envelope
        at_zero, slope = lines[bisect_right(begins, true_positives) - 1]
        return at_zero + slope * true_positives

    @cached_property
    def _envelope(self) -> tuple[list[float], list[tuple[float, float]]]:
        """The lower bounds that are somewhere the largest, with their begins: their slopes rise from left to right."""
        begins, lines = [-1.0], [(0.0, 0.0)]
        for slope, at_zero in sorted(self._slopes()):
            while begins and at_zero + slope * begins[-1] >= lines[-1][0] + lines[-1][1] * begins[-1]:
                begins.pop()
                lines.pop()
            begin = (lines[-1][0] - at_zero) / (slope - lines[-1][1]) if lines else -1.0
            begins.append(begin)
            lines.append((at_zero, slope))
        return begins, lines

    def _slopes(self) -> Iterator[tuple[float, float]]:
        """How each lower bound rises, and where it is at no true positives."""
        for epsilon, delta in zip(self.epsilons, self.deltas, strict=True):
            yield math.exp(-epsilon), -delta * math.exp(-epsilon)
            rising = math.exp(min(epsilon, LARGEST_EXPONENT))
            yield rising, 1 - delta - rising


@lru_cache(maxsize=256)
def of_history(history: History, *, grid: float = COARSE) -> TradeOff:
    """Return the claim that follows from events: their privacy profile, or what RDP knows where PLD cannot answer.

    Guarantees:
        Sound: each pair is an upper bound.
        For a Gaussian without sampling, 98 % of the exact least rate of false positives, where that is above 1e-8.

    Args:
        history: what was done.
        grid: step of the discretised privacy loss; a coarser one claims less, faster.
    """
    try:
        return _of(EPSILONS, profile(history, epsilons=EPSILONS, grid=grid))
    except AccountingError:
        epsilons = np.array([renyi_epsilon(history, delta=delta) for delta in RENYI_DELTAS])
        is_finite = np.isfinite(epsilons)
        return _of(epsilons[is_finite], np.array(RENYI_DELTAS)[is_finite])


def gaussian(mu: float) -> TradeOff:
    """Return the claim of telling N(0, 1) from N(mu, 1), by its closed formula.

    Source: Balle and Wang 2018, Theorem 8, https://arxiv.org/abs/1805.06530.
    """
    checks.positive(mu=mu)
    return _of(EPSILONS, np.array([_gaussian_delta(mu, epsilon) for epsilon in EPSILONS]))


def gaussian_epsilon(mu: float, *, delta: float) -> float:
    """Return epsilon at `delta` of telling N(0, 1) from N(mu, 1).

    Edge cases:
        mu <= 0      0
        mu > 100     infinity: epsilon is in the thousands
    """
    if not mu > 0 or _gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    if mu > LARGEST_MU:
        return float("inf")
    return float(brentq(lambda epsilon: _gaussian_delta(mu, epsilon) - delta, 0.0, mu * mu / 2 + 10 * mu))


def _gaussian_delta(mu: float, epsilon: float) -> float:
    beyond = np.exp(log_ndtr(mu / 2 - epsilon / mu)) - np.exp(epsilon + log_ndtr(-mu / 2 - epsilon / mu))
    return float(min(max(beyond, 0.0) + ROUNDING, 1.0))


def _of(epsilons: npt.NDArray[np.float64], deltas: npt.NDArray[np.float64]) -> TradeOff:
    """The pairs that say something: a delta no smaller than an earlier one's says less at a larger epsilon."""
    before = np.minimum.accumulate(np.append(1.0, deltas[:-1]))
    kept = deltas < before
    return TradeOff(epsilons=tuple(epsilons[kept].tolist()), deltas=tuple(deltas[kept].tolist()))
