"""Noise from a target epsilon.

>>> from fractions import Fraction
>>> shape = SampledGaussian(noise_multiplier=1.0, sampling_rate=Fraction(1, 10), steps=512)
>>> round(calibrate(shape, target_epsilon=1.0, delta=1e-6), 2)
9.67
"""

import math
from collections.abc import Callable
from dataclasses import replace

from common import checks
from common.errors import AccountingError
from common.privacy.accounting import COARSE, FINE, check_delta, epsilon
from common.privacy.events import History, SampledGaussian

LARGEST_NOISE, SMALLEST_NOISE = 1e6, 1e-3  # beyond which no model is trained
ROUGH = 1e-2  # of the search: ten times cheaper than the coarse grid, and mostly as good
LEAST_GUESS = 0.5  # the search begins no lower: with less noise a privacy loss has millions of points
FIRST_STEP, FURTHER_STEP = 1.2, 2.0  # how the search widens around a guess
AIM = 0.9997  # of the target, so that rounding does not exceed it


def calibrate(shape: SampledGaussian, *, target_epsilon: float, delta: float, beside: History = ()) -> float:
    """Return a noise multiplier with which `shape` (its own is ignored) and `beside` spend at most `target_epsilon`.

    Guarantees:
        `epsilon` of the result, with `beside`, is at most the target, and at least 0.998 of it.

    Raises:
        AccountingError: when no noise multiplier up to a million is enough.

    Args:
        shape: sampling rate and number of steps.
        target_epsilon: above 0.
        delta: in [1e-10, 1).
        beside: what is done as well, whatever the noise.
    """
    checks.positive(target_epsilon=target_epsilon)
    check_delta(delta)

    def spent(noise_multiplier: float, grid: float) -> float:
        return epsilon((replace(shape, noise_multiplier=noise_multiplier), *beside), delta=delta, grid=grid)

    # where the noise is to be looked for: Abadi et al. 2016, Theorem 1, whose constant is about the square root of 2
    guess = float(shape.sampling_rate) * math.sqrt(2 * shape.steps * math.log(1 / delta)) / target_epsilon
    noise = max(guess, LEAST_GUESS)
    for grid in (ROUGH, COARSE, FINE):  # a grid overstates: where it does so by much, less noise is enough
        noise = _root(spent, noise, target=target_epsilon, grid=grid)
        if _is_close(spent(noise, FINE), target_epsilon):
            break
    while spent(noise, FINE) > target_epsilon:
        noise = _rounded_up(noise * 1.0002)
    return noise


def _root(spent: Callable[[float, float], float], guess: float, *, target: float, grid: float) -> float:
    """The noise multiplier, rounded up to six decimals, that spends `target` but for a few parts in ten thousand.

    Brent's method on log epsilon against log noise, which is nearly a line.
    """
    from scipy.optimize import brentq

    def excess(log_noise: float) -> float:
        return math.log(max(spent(math.exp(log_noise), grid), 1e-12) / (target * AIM))

    low = high = min(max(guess, SMALLEST_NOISE), LARGEST_NOISE)
    low, high = low / FIRST_STEP, high * FIRST_STEP
    while spent(high, grid) > target * AIM:
        low, high = high, high * FURTHER_STEP
        if high > LARGEST_NOISE:
            raise AccountingError(f"No noise multiplier up to 1e6 reaches epsilon {target}. Raise epsilon or delta.")
    while spent(low, grid) <= target * AIM:
        low, high = low / FURTHER_STEP, low
        if low < SMALLEST_NOISE:
            return _rounded_up(high)
    return _rounded_up(math.exp(brentq(excess, math.log(low), math.log(high), xtol=1e-4)))


def _rounded_up(noise: float) -> float:
    return math.ceil(noise * 1e6) / 1e6


def _is_close(value: float, target: float) -> bool:
    return 0.998 * target <= value <= target
