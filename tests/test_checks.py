"""Checks of numbers: what is not a number never passes."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import checks

anything = st.one_of(st.floats(), st.integers(-(10**300), 10**300), st.fractions())


def accepts(check, number):
    """Whether a check lets a number pass."""
    try:
        check(x=number)
    except ValueError:
        return False
    return True


@given(number=anything)
def test_positive_accepts_exactly_finite_numbers_above_0(number):
    """NaN, infinity, 0 and everything below are refused, everything else passes."""
    assert accepts(checks.positive, number) == (math.isfinite(number) and number > 0)


@given(number=anything)
def test_not_negative_accepts_exactly_finite_numbers_from_0(number):
    """NaN, infinity and everything below 0 are refused, everything else passes."""
    assert accepts(checks.not_negative, number) == (math.isfinite(number) and number >= 0)


@given(number=anything)
def test_fraction_accepts_exactly_what_is_above_0_and_at_most_1(number):
    """NaN, 0, negative numbers and everything above 1 are refused, everything else passes."""
    assert accepts(checks.fraction, number) == (0 < number <= 1)


@pytest.mark.parametrize("number", [0, 0.0, -0.0, -1, math.nan, math.inf, -math.inf, Fraction(-1, 2)])
def test_positive_refuses_the_edges(number):
    """The message holds the name, what was expected and what was got."""
    with pytest.raises(ValueError, match=rf"^noise: expected a number above 0, got {number}$"):
        checks.positive(noise=number)


@pytest.mark.parametrize("number", [-5e-324, -1, math.nan, math.inf, -math.inf])
def test_not_negative_refuses_the_edges(number):
    """The message holds the name, what was expected and what was got."""
    with pytest.raises(ValueError, match=rf"^client: expected a number of at least 0, got {number}$"):
        checks.not_negative(client=number)


@pytest.mark.parametrize("number", [0, -0.0, 1.0000000000000002, Fraction(10**30 + 1, 10**30), math.nan, math.inf])
def test_fraction_refuses_the_edges(number):
    """A fraction is compared exactly: one part in 10^30 above 1 is above 1."""
    with pytest.raises(ValueError, match=rf"^rate: expected a number above 0 and at most 1, got {number}$"):
        checks.fraction(rate=number)


@pytest.mark.parametrize(
    ("check", "allowed", "refused"),
    [
        (checks.positive, [5e-324, Fraction(1, 10**30), 1, 1.7976931348623157e308], 0),
        (checks.not_negative, [0, 0.0, -0.0, 5e-324], -5e-324),
        (checks.fraction, [1, 1.0, Fraction(1), 5e-324], 1.0000000000000002),
    ],
)
def test_the_edges_that_are_allowed_pass(check, allowed, refused):
    """The smallest float is above 0, 0 is not negative, and 1 is a fraction; a last one that is beyond is named."""
    assert check(**{f"edge_{place}": number for place, number in enumerate(allowed)}) is None
    with pytest.raises(ValueError, match=rf"^beyond: expected a number .*, got {refused}$"):
        check(**{f"edge_{place}": number for place, number in enumerate(allowed)}, beyond=refused)


@pytest.mark.parametrize("check", [checks.positive, checks.not_negative, checks.fraction])
def test_the_first_wrong_number_is_named(check):
    """Of several numbers, the first wrong one is in the message."""
    with pytest.raises(ValueError, match=r"^second: "):
        check(first=1, second=-1, third=-2)


@pytest.mark.parametrize("check", [checks.positive, checks.not_negative, checks.fraction])
@pytest.mark.parametrize("number", [10**400, Fraction(10**400)], ids=["whole number", "fraction"])
def test_a_number_that_no_float_holds_is_refused(check, number):
    """10^400 counts as not finite: nothing can be computed with it, and it raises no stray arithmetic error."""
    with pytest.raises(ValueError, match=r"^steps: expected a number"):
        check(steps=number)
