"""Noise from a target epsilon.

>>> from fractions import Fraction
>>> shape = SampledGaussian(noise_multiplier=1.0, sampling_rate=Fraction(1, 10), steps=512)
>>> round(calibrate(shape, target_epsilon=1.0, delta=1e-6), 2)
9.67
"""

import math
from collections.abc import Callable

from common import checks
from common.errors import AccountingError
from common.privacy.accounting import COARSE, FINE, epsilon
from common.privacy.events import SampledGaussian

LARGEST_NOISE, SMALLEST_NOISE = 1e6, 1e-3  # beyond which no model is trained


def calibrate(shape: SampledGaussian, *, target_epsilon: float, delta: float) -> float:
    """Return a noise multiplier with which `shape` (its own is ignored) spends at most `target_epsilon`.

    Guarantees:
        `epsilon` of the result is at most the target, and at least 0.998 of it.

    Raises:
        AccountingError: when no noise multiplier up to a million is enough.

    Args:
        shape: sampling rate and number of steps.
        target_epsilon: above 0.
        delta: in [1e-10, 1).
    """
    checks.positive(target_epsilon=target_epsilon)

    def spent(noise_multiplier: float, grid: float) -> float:
        return epsilon((_with_noise(shape, noise_multiplier),), delta=delta, grid=grid)

    high = 1.0
    while spent(high, COARSE) > target_epsilon:
        high *= 2.0
        if high > LARGEST_NOISE:
            raise AccountingError(
                f"No noise multiplier up to 1e6 reaches epsilon {target_epsilon}. Raise epsilon or delta."
            )
    noise = _root(spent, high, target=target_epsilon, grid=COARSE)
    if _is_close(spent(noise, FINE), target_epsilon):
        return noise
    return _root(spent, noise, target=target_epsilon, grid=FINE)  # the coarse grid overstates: less noise is enough


def _root(spent: Callable[[float, float], float], high: float, *, target: float, grid: float) -> float:
    """The noise multiplier, rounded up to six decimals, that spends at most `target` and nearly that.

    Brent's method on log epsilon against log noise, which is nearly a line. `high` is known to be enough.
    """
    from scipy.optimize import brentq

    def excess(log_noise: float) -> float:
        return math.log(max(spent(math.exp(log_noise), grid), 1e-12) / target)

    low = high
    while spent(low, grid) <= target:
        low /= 2.0
        if low < SMALLEST_NOISE:
            return high
    noise = math.exp(brentq(excess, math.log(low), math.log(high), xtol=1e-4))
    while spent(noise := math.ceil(noise * 1e6) / 1e6, grid) > target:
        noise *= 1.0001
    return noise


def _is_close(value: float, target: float) -> bool:
    return 0.998 * target <= value <= target


def _with_noise(shape: SampledGaussian, noise_multiplier: float) -> SampledGaussian:
    return SampledGaussian(
        noise_multiplier=noise_multiplier, sampling_rate=shape.sampling_rate, steps=shape.steps, unit=shape.unit
    )
