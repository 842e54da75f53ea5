"""What an audit would see of runs, honest and not, by numbers alone: no model is trained.

Shapes: K views, R rounds, M canaries of a view, D other weights.
"""

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache

import numpy as np

from common.audit.observations import Claim, Observations
from common.privacy.accounting import epsilon
from common.privacy.calibration import calibrate
from common.privacy.events import SampledGaussian

DELTA = 1e-5


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run: what was planned, and what it does instead.

    Args:
        rounds: R.
        noise, rate, contribution: what is done, as a multiple of what was planned.
        is_stale: whether each round has the first one's noise.
    """

    target_epsilon: float
    views: int = 2
    rounds: int = 40
    canaries: int = 500
    steps: int = 1
    sampling_rate: Fraction = Fraction(1, 4)
    noise: float = 1.0
    rate: float = 1.0
    contribution: float = 1.0
    is_stale: bool = False

    @property
    def mechanism(self) -> SampledGaussian:
        """What one round should be."""
        return SampledGaussian(
            noise_multiplier=planned_noise(self.target_epsilon, self.sampling_rate, self.rounds * self.steps),
            sampling_rate=self.sampling_rate,
            steps=self.steps,
        )

    def observed(self, rng: np.random.Generator) -> Observations:
        """Return what is seen of it; in the first view nothing but noise moves 300 other weights."""
        shape_KRM = (self.views, self.rounds, self.canaries)
        deviation = self.noise * self.mechanism.noise_multiplier * self.steps**0.5
        noise_KRD = rng.normal(size=(self.views, self.rounds, self.canaries + 300)) * deviation
        if self.is_stale:
            noise_KRD[:] = noise_KRD[:, :1]
        is_in_KM = rng.random((self.views, self.canaries)) < 1 / 2
        rate = min(self.rate * float(self.sampling_rate), 1.0)
        hits_KRM = rng.binomial(self.steps, rate, size=shape_KRM) * is_in_KM[:, None] * self.contribution
        body_KRD = noise_KRD[:1, :, self.canaries :]
        return Observations(
            moves_KRM=hits_KRM + noise_KRD[:, :, : self.canaries],
            is_in_KM=is_in_KM,
            body_KRD={"0.weight": body_KRD[:, :, :290], "0.bias": body_KRD[:, :, 290:]},
            steps=self.steps,
        )

    def claimed(self) -> Claim:
        """Return what an honest ledger and report say of it."""
        mechanism = self.mechanism
        return Claim(
            epsilon=epsilon((mechanism.times(self.rounds),), delta=DELTA),
            delta=DELTA,
            events=(mechanism,) * self.rounds,
            mechanism=mechanism,
            orders=self.rounds,
        )


def of_last_round_only(claim: Claim) -> Claim:
    """The accountant begins anew with every round."""
    return replace(claim, epsilon=epsilon(claim.events[-1:], delta=claim.delta))


def half_uncharged(claim: Claim) -> Claim:
    """Every other round is charged, and the claim is that of what is charged."""
    events = claim.events[::2]
    return replace(claim, events=events, epsilon=epsilon(events, delta=claim.delta))


@cache
def planned_noise(target_epsilon: float, sampling_rate: Fraction, steps: int) -> float:
    """The noise multiplier of so many steps in all."""
    shape = SampledGaussian(noise_multiplier=1.0, sampling_rate=sampling_rate, steps=steps)
    return calibrate(shape, target_epsilon=target_epsilon, delta=DELTA)
