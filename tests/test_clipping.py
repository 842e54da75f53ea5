"""Clipping to an L2 ball."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from common.privacy.clipping import clip, l2_norm

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
updates = arrays(np.float32, st.integers(0, 40), elements=finite)
bounds = st.floats(1e-30, 1e30)


def norm(update):
    """The L2 norm, added up without rounding errors."""
    return math.sqrt(math.fsum(float(x) ** 2 for x in update))


@settings(max_examples=300, deadline=None)
@given(update=updates, bound=bounds)
def test_the_norm_of_the_result_is_at_most_the_bound(update, bound):
    """Up to one rounding step in each coordinate: relative 2^-24, or half the smallest float32 near 0."""
    smallest = 2.0**-149
    assert norm(clip(update, max_norm=bound)) <= bound * (1 + 2.0**-23) + smallest * math.sqrt(len(update))


@settings(max_examples=300, deadline=None)
@given(update=updates, room=st.floats(1, 10))
def test_an_update_inside_the_ball_comes_back_bit_identical(update, room):
    """Whatever is not longer than the bound is not touched, signed zeros and the smallest numbers included."""
    bound = l2_norm(update) * room or 1.0
    assert clip(update, max_norm=bound).tobytes() == update.tobytes()


@settings(max_examples=200, deadline=None)
@given(update=updates, bound=st.floats(1e-3, 1e3))
def test_clipping_keeps_the_direction(update, bound):
    """The result is the update times one factor: bound / norm, or 1 where that is more."""
    length = norm(update)
    factor = min(1.0, bound / length) if length else 1.0
    expected = update.astype(np.float64) * factor
    np.testing.assert_allclose(clip(update, max_norm=bound), expected, rtol=2.0**-22, atol=2.0**-148)


@settings(max_examples=100, deadline=None)
@given(update=updates, bound=bounds)
def test_clipping_leaves_its_argument_alone(update, bound):
    """The update that was given is the same afterwards."""
    before = update.tobytes()
    clip(update, max_norm=bound)
    assert update.tobytes() == before


def test_a_long_update_is_scaled_to_the_bound():
    """(3, 4) has norm 5, so that a bound of 1 scales it by 1/5."""
    clipped = clip(np.array([3, 4], np.float32), max_norm=1.0)
    np.testing.assert_array_equal(clipped, np.array([0.6, 0.8], np.float32))
    assert clipped.dtype == np.float32


@pytest.mark.parametrize("bound", [5.0, 5.0001, 6.0])
def test_an_update_on_the_sphere_is_not_scaled(bound):
    """A norm of exactly the bound, or a little less, is inside, and is not scaled up: (3, 4) has norm 5."""
    update = np.array([3, 4], np.float32)
    assert clip(update, max_norm=bound).tobytes() == update.tobytes()


def test_zero_update_is_returned_unchanged():
    """Nothing is nothing, under any bound."""
    np.testing.assert_array_equal(clip(np.zeros(3, np.float32), max_norm=1e-30), np.zeros(3, np.float32))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_update_that_is_not_finite_becomes_zero(bad):
    """NaN and infinity cannot be scaled away, so that nothing of the update is left."""
    clipped = clip(np.array([1, bad, 2], np.float32), max_norm=10.0)
    assert clipped.tobytes() == np.zeros(3, np.float32).tobytes()


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan, math.inf])
def test_an_impossible_bound_is_refused(bound):
    """A bound that is not finite and above 0 raises ValueError."""
    with pytest.raises(ValueError, match=r"^max_norm: expected a number above 0"):
        clip(np.ones(2, np.float32), max_norm=bound)


def test_the_largest_numbers_do_not_overflow():
    """The norm is added up in double precision: 4 times the largest float32 is clipped, not zeroed."""
    largest = np.finfo(np.float32).max
    clipped = clip(np.full(4, largest), max_norm=1.0)
    np.testing.assert_allclose(clipped, np.full(4, 0.5), rtol=1e-7)  # 1 / sqrt(4)


def test_a_long_vector_is_clipped_as_well():
    """A million ones have norm 1000; clipped to 1 each is 1/1000, and the norm is 1 up to rounding."""
    clipped = clip(np.ones(10**6, np.float32), max_norm=1.0)
    assert norm(clipped) <= 1 + 2.0**-23
    np.testing.assert_array_equal(clipped, np.full(10**6, 0.001, np.float32))


def test_the_norm_is_the_square_root_of_the_sum_of_squares():
    """(2, 3, 6) has norm 7, and an empty update norm 0."""
    assert l2_norm(np.array([2, 3, 6], np.float32)) == 7.0  # 4 + 9 + 36 = 49
    assert l2_norm(np.zeros(0, np.float32)) == 0.0
    assert math.isnan(l2_norm(np.array([1, math.nan], np.float32)))
    assert l2_norm(np.array([1, -math.inf], np.float32)) == math.inf
