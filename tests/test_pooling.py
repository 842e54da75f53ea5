"""The pooled accuracy of the clients: a share, or nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.pooling import Pool

finite = st.floats(-1e6, 1e6)


def test_nobody_s_count_is_no_accuracy():
    """Where nobody was asked there is nothing, not 0."""
    pool = Pool()
    assert pool.accuracy() is None
    pool.add(None, units=10)
    assert pool.accuracy() is None


def test_counts_are_added_up_before_they_are_divided():
    """9 of 10 and 10 of 40 make 19 of 50; who reports no count is not in the divisor."""
    pool = Pool()
    pool.add(9.0, units=10)
    pool.add(None, units=1000)
    pool.add(10.0, units=40)
    assert pool.accuracy() == pytest.approx(0.38)


@given(counts=st.lists(st.tuples(finite, st.integers(1, 1000)), min_size=1, max_size=5))
def test_an_accuracy_is_a_share(counts):
    """Whatever noise did, it is from 0 to 1."""
    pool = Pool()
    for correct, units in counts:
        pool.add(correct, units=units)
    accuracy = pool.accuracy()
    assert accuracy is not None
    assert 0 <= accuracy <= 1
