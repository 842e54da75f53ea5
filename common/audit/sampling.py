"""Checks of sampling: how often canaries are in a batch, how far that moves them, whether always the same are.

Shapes: K views, R rounds, M canaries, L steps a round. A canary's whole movement over n = RL steps is
X = Binomial(n, q) + N(0, n sigma^2); limits are its exact quantiles, or Chernoff's bound with its exact moments.
"""

from collections.abc import Iterator

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, ndtr
from scipy.stats import binom

from common.audit.check import FALSE_ALARMS, ROUNDING, Check
from common.audit.observations import Observations
from common.privacy.events import SampledGaussian

UNLIKELY = 1e-15  # further hits need not be looked at


def sampling(observations: Observations, mechanism: SampledGaussian) -> Iterator[Check]:
    """Yield the checks of contribution, sampling rate and spread, none where no canary is in; and of cohorts' sizes."""
    if observations.is_in_KM.any():
        yield from _hits(observations, mechanism)
        yield _apart(observations, mechanism)
    if observations.cohorts is not None:
        yield _cohorts(*observations.cohorts, float(mechanism.sampling_rate))


def _hits(observations: Observations, mechanism: SampledGaussian) -> Iterator[Check]:
    """How far included canaries move in a step, on average: the sampling rate times what one may add.

    The sum over n steps is Binomial(n, q) + N(0, n sigma^2), whose quantiles are exact sums.
    """
    rounds = observations.moves_KRM.shape[1]
    count = int(np.count_nonzero(observations.is_in_KM)) * rounds * observations.steps
    rate, noise = float(mechanism.sampling_rate), mechanism.noise_multiplier
    measured = float(np.moveaxis(observations.moves_KRM, 1, 0)[:, observations.is_in_KM].sum()) / count
    highest = _quantile(count, rate, noise, 1 - FALSE_ALARMS["contribution"]) + rate * ROUNDING
    yield Check(
        name="contribution",
        is_refuted=not measured <= highest,
        measured=measured,
        expected=rate,
        low=None,
        high=highest,
        says=f"On average a canary moves {measured / rate:.4g} times as far as sampling and clipping let it.",
    )
    level = FALSE_ALARMS["sampling rate"] / 2
    low, high = (_quantile(count, rate, noise, p) for p in (level, 1 - level))
    low, high = low - rate * ROUNDING, high + rate * ROUNDING
    yield Check(
        name="sampling rate",
        is_refuted=not low <= measured <= high,
        measured=measured,
        expected=rate,
        low=low,
        high=high,
        says=f"By how far canaries move, they are sampled at a rate of {measured:.4g}; planned was {rate:.4g}.",
    )


def _apart(observations: Observations, mechanism: SampledGaussian) -> Check:
    """How far apart included canaries come: batches that are not drawn anew move some always and others never.

    A canary's whole movement is X = Binomial(n, q) + N(0, n sigma^2) about nq. The limit on the sum of squares is
    Chernoff's, min over t of (M log E exp(t (X - nq)^2) - log level) / t, with the expectation as an exact sum.
    """
    moved_M = observations.moves_KRM.sum(axis=1)[observations.is_in_KM]
    steps = observations.moves_KRM.shape[1] * observations.steps
    rate, noise = float(mechanism.sampling_rate), mechanism.noise_multiplier
    variance = steps * noise**2
    hits = np.arange(int(binom.ppf(UNLIKELY, steps, rate)), int(binom.isf(UNLIKELY, steps, rate)) + 1)
    masses, squares = binom.logpmf(hits, steps, rate), np.square(hits - steps * rate)

    def limit(share: float) -> float:
        left = 1 - share  # of 1 - 2 t variance
        growth = logsumexp(masses + share / (2 * variance) * squares / left) - np.log(left) / 2
        return float((len(moved_M) * growth - np.log(FALSE_ALARMS["spread"])) * 2 * variance / share)

    total = len(moved_M) * (variance + steps * rate * (1 - rate))
    highest = float(minimize_scalar(limit, bounds=(1e-9, 1 - 1e-9), method="bounded").fun) / total
    measured = float(np.square(moved_M - steps * rate).sum()) / total
    return Check(
        name="spread",
        is_refuted=not measured <= highest + ROUNDING,
        measured=measured,
        expected=1.0,
        low=None,
        high=highest + ROUNDING,
        says=f"Canaries come {measured:.4g} times as far apart, squared, as batches that are drawn anew put them.",
    )


def _cohorts(asked: int, chances: int, rate: float) -> Check:
    """How many clients are asked in all is Binomial(chances, q)."""
    level = FALSE_ALARMS["cohorts"] / 2
    low, high = (float(binom.ppf(p, chances, rate)) / chances for p in (level, 1 - level))
    measured = asked / chances
    return Check(
        name="cohorts",
        is_refuted=not low <= measured <= high,
        measured=measured,
        expected=rate,
        low=low,
        high=high,
        says=f"Clients are asked at a rate of {measured:.4g}; planned was {rate:.4g}.",
    )


def _quantile(count: int, rate: float, noise: float, level: float) -> float:
    """Of (Binomial(count, rate) + N(0, count noise^2)) / count, by bisection of its distribution function."""
    first, last = binom.ppf(UNLIKELY, count, rate), binom.isf(UNLIKELY, count, rate)
    hits = np.arange(int(first), int(last) + 1)
    masses = binom.pmf(hits, count, rate)
    deviation = noise * np.sqrt(count)
    low, high = float(first) - 10 * deviation, float(last) + 10 * deviation
    for _ in range(60):
        middle = (low + high) / 2
        below = float(masses @ ndtr((middle - hits) / deviation))
        low, high = (middle, high) if below < level else (low, middle)
    return float((low if level < 1 / 2 else high) / count)
