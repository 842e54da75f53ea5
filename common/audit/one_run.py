"""Tests of a claim by one run: too many right guesses about coins refute it.

Shapes: M canaries. Each of m canaries is in the run if its own fair coin says so. An attack guesses g of the coins, a
number that is fixed beforehand, and `correct` of the guesses are right.

**f-DP** (`is_refuted`). Let p_i = P[i guesses are right]. Turning one coin makes a right guess about it wrong, so that
for every t, averaged over canaries and coins (1 - f, called F below, is concave),

    sum_{i >= t} i p_i / m  <=  F( sum_{i >= t} (g - i + 1) p_{i-1} / m )

The left side r_t counts right guesses, the sum inside is h_{t-1}, with h_t = sum_{i >= t} (g - i) p_i / m counting
wrong ones. So h_{t-1} >= F^-1(r_t), where F^-1 is `TradeOff.least_false_positives`. Suppose P[correct or more] >= tau.
Then r and h at t = correct are at least as if all of tau lay there. Going down in t, the cheapest way to reach each
bound on h is mass just there: mass at a larger i adds more to r for the same h, and r only raises later bounds. At
last a mass of (r_0 + h_0) m / g has been needed; more than 1 is impossible, and the claim is refuted at level tau.

**Steinke** (`steinke_p_value`) uses one pair (epsilon, delta) and nothing else.

Source: Mahloujifar et al. 2024, Algorithm 1 for k = 2, https://arxiv.org/abs/2410.22235; Steinke et al. 2023,
Theorem 5.2, https://arxiv.org/abs/2305.08846.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.stats import binom

from common.audit.trade_off import TradeOff, gaussian, gaussian_epsilon

GUESSED = (Fraction(1, 4), Fraction(1, 2), Fraction(3, 4))  # of the coins: few are surer, many say more
MOST_CANARIES = 1_000_000
LEAST_EPSILON, LARGEST_EPSILON = 1e-3, 100.0  # that are looked for
LEAST_MU, LARGEST_MU = 1e-3, 12.0
PRECISION = 1.01
STRIDE = 2.0  # of the search for it


@dataclass(frozen=True, kw_only=True)
class Attack:
    """How well one attack guessed.

    Args:
        canaries: m.
        guesses: of coins, a number that was fixed before the run.
        correct: guesses.
    """

    canaries: int
    guesses: int
    correct: int

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.guesses <= self.canaries:
            raise ValueError(f"expected correct <= guesses <= canaries, got {self}")


def attacks(scores_M: npt.NDArray[np.float64], is_in_M: npt.NDArray[np.bool_]) -> tuple[Attack, ...]:
    """Return how well the surest guesses do: `in` for the highest scores, `out` for as many of the lowest.

    One attack for each share of the coins in GUESSED.

    Guarantees:
        How many are guessed depends on M alone, which ones on the scores alone.
    """
    order_M = np.argsort(scores_M, kind="stable")
    found = []
    for share in GUESSED:
        half = _half(len(scores_M), share)
        right = np.count_nonzero(~is_in_M[order_M[:half]]) + np.count_nonzero(is_in_M[order_M[len(order_M) - half :]])
        found.append(Attack(canaries=len(scores_M), guesses=2 * half, correct=int(right)))
    return tuple(found)


def refuting(trade_off: TradeOff, found: Sequence[Attack], *, level: float) -> Attack | None:
    """Return the first of these attacks that refutes a claim, each at its equal share of `level`, or None."""
    return next((attack for attack in found if is_refuted(trade_off, attack, level=level / len(found))), None)


def is_refuted(trade_off: TradeOff, attack: Attack, *, level: float) -> bool:
    """Return whether so many right guesses are less likely than `level` under the claim.

    Guarantees:
        Under a true claim, True with a probability of at most `level`.

    Edge cases:
        no guess right    False
    """
    g, correct = attack.guesses, attack.correct
    right, wrong = level * correct, level * (g - correct)  # r and h, times m
    for i in range(correct - 1, -1, -1):
        needed = trade_off.least_false_positives(min(right / attack.canaries, 1.0)) * attack.canaries
        if needed > wrong:
            right += i / (g - i) * (needed - wrong)
            wrong = needed
        if right + wrong > g:
            return True
    return False


def steinke_p_value(attack: Attack, *, epsilon: float, delta: float) -> float:
    """Return how likely so many right guesses are at most, under (epsilon, delta) alone."""
    right = 1 / (1 + np.exp(-epsilon))  # e^epsilon / (1 + e^epsilon)
    beta = float(binom.sf(attack.correct - 1, attack.guesses, right))
    below_M = binom.pmf(np.arange(attack.correct - 1, -1, -1), attack.guesses, right).cumsum()
    alpha = float(np.max(below_M / np.arange(1, len(below_M) + 1), initial=0.0))
    return min(1.0, beta + 2 * attack.canaries * delta * alpha)


def steinke_refuting(found: Sequence[Attack], *, epsilon: float, delta: float, level: float) -> Attack | None:
    """Return the first of these attacks that refutes a pair, each at its equal share of `level`, or None."""
    share = level / len(found)
    return next((a for a in found if steinke_p_value(a, epsilon=epsilon, delta=delta) <= share), None)


def largest_refuted(is_refuted_at: Callable[[float], bool], *, low: float, high: float, precision: float) -> float:
    """Return the largest number, within a factor of `precision`, of those that are refuted; 0 where `low` is not.

    Whatever is refuted, all below it must be. The search begins at 1; much beyond `high` nothing is looked at.
    """
    below = 1.0
    while not is_refuted_at(below):
        below /= STRIDE
        if below < low:
            return 0.0
    above = below * STRIDE
    while above < high and is_refuted_at(above):
        below, above = above, above * STRIDE
    while above > precision * below:
        middle = math.sqrt(below * above)
        below, above = (middle, above) if is_refuted_at(middle) else (below, middle)
    return below


def steinke_bound(found: Sequence[Attack], *, delta: float, level: float) -> float:
    """Return the largest epsilon that is refuted at `level`, 0 where none is."""
    return largest_refuted(
        lambda epsilon: steinke_refuting(found, epsilon=epsilon, delta=delta, level=level) is not None,
        low=LEAST_EPSILON,
        high=LARGEST_EPSILON,
        precision=PRECISION,
    )


def gaussian_bound(found: Sequence[Attack], *, delta: float, level: float) -> float:
    """Return the largest epsilon at `delta` of a Gaussian trade-off that is refuted at `level`, 0 where none is."""
    mu = largest_refuted(
        lambda mu: refuting(gaussian(mu), found, level=level) is not None,
        low=LEAST_MU,
        high=LARGEST_MU,
        precision=PRECISION,
    )
    return gaussian_epsilon(mu, delta=delta)


def would_do(trade_off: TradeOff, *, canaries: int, level: float) -> bool:
    """Return whether an attack on so many canaries that is always right would refute the claim at `level`."""
    guesses = 2 * _half(canaries, GUESSED[-1])
    always = Attack(canaries=canaries, guesses=guesses, correct=guesses)
    return is_refuted(trade_off, always, level=level / len(GUESSED))


@lru_cache(maxsize=64)
def least_canaries(trade_off: TradeOff, *, level: float) -> int | None:
    """Return the least number of canaries with which a claim can be refuted at `level`, or None.

    Edge cases:
        not even a million would do    None
    """
    high = 2
    while not would_do(trade_off, canaries=high, level=level):
        if high >= MOST_CANARIES:
            return None
        high = min(2 * high, MOST_CANARIES)
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if would_do(trade_off, canaries=middle, level=level) else (middle, high)
    return high


def _half(canaries: int, share: Fraction) -> int:
    """Half of the guesses."""
    return int(canaries * share) // 2
