"""Checks of numbers, for the `__post_init__` of records.

>>> positive(noise_multiplier=1.1)
>>> positive(noise_multiplier=float("nan"))
Traceback (most recent call last):
ValueError: noise_multiplier: expected a number above 0, got nan
"""

import math
from fractions import Fraction

Number = float | Fraction


def positive(**numbers: Number) -> None:
    """Raise ValueError for the first number that is not finite and above 0 (NaN is not)."""
    for name, number in numbers.items():
        if not (number > 0 and _is_finite(number)):
            raise ValueError(f"{name}: expected a number above 0, got {number}")


def not_negative(**numbers: Number) -> None:
    """Raise ValueError for the first number that is not finite and at least 0 (NaN is not)."""
    for name, number in numbers.items():
        if not (number >= 0 and _is_finite(number)):
            raise ValueError(f"{name}: expected a number of at least 0, got {number}")


def fraction(**numbers: Number) -> None:
    """Raise ValueError for the first number outside (0, 1] (NaN is outside)."""
    for name, number in numbers.items():
        if not 0 < number <= 1:
            raise ValueError(f"{name}: expected a number above 0 and at most 1, got {number}")


def _is_finite(number: Number) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number beyond any float
        return False
