"""What an audit goes by: what was seen of the canaries, and what the run says of itself.

Shapes: K views (clients with noise of their own), R rounds, M canaries of each view, D other weights, L steps a round.

Movements are in units of what one canary may add to a step: a canary that is in moves its weight in a round by
x = Binomial(L, q) + N(0, L sigma^2), one that is out by N(0, L sigma^2).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln, xlog1py, xlogy
from scipy.stats import binom

from common import checks
from common.privacy.events import History, SampledGaussian

UNLIKELY = 1e-12  # more hits in a round than are likelier than this are left out of a score
LARGEST_MOVE, LEAST_VARIANCE = 1e9, 1e-12  # beyond which a score says no more

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Observations:
    """What whoever sees every update saw of the canaries.

    Args:
        moves_KRM: the pad's movement in each round, finite.
        is_in_KM: each canary's coin.
        body_KRD: movements of other weights, by parameter, of those views in which nothing but noise moves them.
        steps: L.
        cohorts: where clients are the unit, how many were asked in all rounds, and of how many; else None.
    """

    moves_KRM: Floats
    is_in_KM: npt.NDArray[np.bool_]
    body_KRD: Mapping[str, Floats] = field(default_factory=dict)
    steps: int
    cohorts: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        checks.positive(steps=self.steps)
        views, _, canaries = self.moves_KRM.shape
        if self.is_in_KM.shape != (views, canaries):
            raise ValueError(f"is_in_KM: expected {views} views of {canaries} canaries, got {self.is_in_KM.shape}")
        for name, moves in {"moves_KRM": self.moves_KRM, **self.body_KRD}.items():
            if not np.isfinite(moves).all():
                raise ValueError(f"{name}: expected finite movements")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a run says of itself.

    Args:
        epsilon: that the run reported, or None where it claims nothing (unit none).
        delta: of that epsilon.
        events: what was charged to one view's account, an entry a round as they stand in the ledger, not merged.
        mechanism: what one round should be, from the plan; None for unit none.
        orders: how many orders each view was seen to carry out.
    """

    epsilon: float | None
    delta: float
    events: History
    mechanism: SampledGaussian | None
    orders: int


def scores(observations: Observations, mechanism: SampledGaussian | None) -> Floats:
    """Return how much each canary looks as if it were in: the log-likelihood ratio of in against out, (K, M).

    Guarantees:
        Finite. The coins are not looked at.

    Edge cases:
        no mechanism    the plain sum of a canary's movements

    Args:
        observations: what was seen.
        mechanism: what one round should be.

    Source: Neyman and Pearson's lemma: no other score is a better test of the mechanism.
    """
    if mechanism is None:
        return np.asarray(observations.moves_KRM.sum(axis=1), np.float64)
    rate = float(mechanism.sampling_rate)
    moves_KRM = np.clip(observations.moves_KRM, -LARGEST_MOVE, LARGEST_MOVE)
    variance = max(observations.steps * mechanism.noise_multiplier**2, LEAST_VARIANCE)
    ratio_KRM = np.full(moves_KRM.shape, -np.inf)
    for hits in _likely_hits(observations.steps, rate):
        weight = _log_binomial(hits, observations.steps, rate)
        ratio_KRM = np.logaddexp(ratio_KRM, weight + (2 * moves_KRM - hits) * (hits / (2 * variance)))
    return np.asarray(ratio_KRM.sum(axis=1), np.float64)


def _likely_hits(steps: int, rate: float) -> range:
    low, high = binom.ppf(UNLIKELY, steps, rate), binom.isf(UNLIKELY, steps, rate)
    return range(int(low), max(int(high), 1) + 1)


def _log_binomial(hits: int, steps: int, rate: float) -> float:
    choices = gammaln(steps + 1) - gammaln(hits + 1) - gammaln(steps - hits + 1)
    return float(choices + xlogy(hits, rate) + xlog1py(steps - hits, -rate))
