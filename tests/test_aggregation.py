"""The ordered sum: the same bits in whatever order the updates come."""

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.aggregation import OrderedSum

SIZE = 3


def update(seed: int) -> np.ndarray:
    """Return numbers of very different sizes, whose float sums depend on the order of adding."""
    generator = np.random.default_rng(seed)
    return (generator.standard_normal(SIZE) * 10.0 ** generator.integers(-20, 20, SIZE)).astype(np.float32)


def added(
    cohort: list[int], arrivals: list[int], missing: set[int], weights: Mapping[int, float] | None = None
) -> OrderedSum:
    """Return the sum after these arrivals; clients in `missing` are skipped."""
    total = OrderedSum(cohort, size=SIZE, weights=weights)
    for client in arrivals:
        if client in missing:
            total.skip(client)
        else:
            total.add(client, update(client))
    return total


@settings(deadline=None)
@given(data=st.data())
def test_result_does_not_depend_on_the_order_of_arrival(data):
    """Any order of adding and skipping gives the bits that the cohort's own order gives."""
    cohort = sorted(data.draw(st.sets(st.integers(0, 99), max_size=12)))
    missing = set(data.draw(st.lists(st.sampled_from(cohort)))) if cohort else set()
    weights = data.draw(st.sampled_from([None, {client: client / 7 + 0.1 for client in range(100)}]))
    arrivals = data.draw(st.permutations(cohort))
    first, second = (added(cohort, order, missing, weights) for order in (cohort, arrivals))
    assert first.result().tobytes() == second.result().tobytes()
    assert first.total_weight == second.total_weight


def test_order_of_adding_would_matter_without_the_ordered_sum():
    """The property above is not empty: a plain sum of these very updates depends on the order."""
    forwards = sum(update(client).astype(np.float64) for client in range(12))
    backwards = sum(update(client).astype(np.float64) for client in reversed(range(12)))
    assert np.asarray(forwards).tobytes() != np.asarray(backwards).tobytes()


def test_sum_is_taken_in_double_precision():
    """A small update is not lost beside a large one, as it would be in single precision."""
    total = OrderedSum([0, 1, 2], size=1)
    for client, value in enumerate((2.0**24, 1.0, -(2.0**24))):  # float32: 2^24 + 1 is 2^24
        total.add(client, np.array([value], np.float32))
    assert total.result().tolist() == [1.0]


@settings(deadline=None)
@given(arrivals=st.permutations(range(8)))
def test_only_updates_that_came_before_their_turn_are_held(arrivals):
    """After each arrival just those are held in front of which somebody is missing."""
    total = OrderedSum(range(8), size=SIZE)
    came: set[int] = set()
    for client in arrivals:
        total.add(client, update(client))
        came.add(client)
        turn = next((number for number in range(8) if number not in came), 8)
        assert set(total._waiting) == {number for number in came if number > turn}


def test_skipped_update_counts_nothing():
    """A client that is passed over adds neither numbers nor weight."""
    total = OrderedSum([0, 1, 2], size=2)
    total.add(0, np.array([1, 2], np.float32))
    total.skip(1)
    total.add(2, np.array([10, 20], np.float32))
    assert total.result().tolist() == [11.0, 22.0]
    assert total.total_weight == 2.0


def test_client_that_never_came_is_passed_over():
    """`result` does not wait: an update behind a missing one is added all the same."""
    total = OrderedSum([0, 1, 2], size=1)
    total.add(2, np.array([4], np.float32))
    assert total.result().tolist() == [4.0]
    assert total.total_weight == 1.0


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_weights_scale_each_update(order):
    """With weights the sum is that of weight times update, and the weights of those that came are added up."""
    total = OrderedSum([0, 1, 2], size=1, weights={0: 3.0, 1: 0.5, 2: 100.0})
    for client in order:
        total.add(client, np.array([client + 1], np.float32))
    total.skip(2)
    assert total.result().tolist() == [4.0]  # 3 * 1 + 0.5 * 2
    assert total.total_weight == 3.5


def test_weighted_update_is_scaled_in_double_precision():
    """A weight is not rounded to single precision before it is applied."""
    total = OrderedSum([0], size=1, weights={0: 2.0**24 + 1})  # not a float32
    total.add(0, np.array([1], np.float32))
    assert total.result().tolist() == [2.0**24 + 1]


def test_empty_cohort_sums_to_zero():
    """Nobody asked, nothing added."""
    total = OrderedSum([], size=2)
    assert total.result().tolist() == [0.0, 0.0]
    assert total.total_weight == 0.0
