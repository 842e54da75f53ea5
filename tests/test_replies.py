"""What the coordinator accepts: each flaw of a report has its word, and what passes is safe to add."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from common.messages import Report
from server.replies import FARTHEST_NOISE, NORM_TOLERANCE, ReplyRefusedError, checked_correct, checked_update

ROUNDING = 1e-6  # float32


def report(update: object, **changes: object) -> Report:
    values = {"run": "r", "round": 3, "attempt": 2, "client": 5, "update_P": np.asarray(update, np.float32)} | changes
    return Report(**values)  # type: ignore[arg-type]


def check(asked: Report, *, size: int = 2, max_norm: float | None = None) -> np.ndarray:
    return checked_update(asked, run="r", round_number=3, attempt=2, client=5, size=size, max_norm=max_norm)


def word(asked: Report, *, size: int = 2, max_norm: float | None = None) -> str:
    with pytest.raises(ReplyRefusedError) as refused:
        check(asked, size=size, max_norm=max_norm)
    return str(refused.value)


def test_good_update_comes_back_bit_identical():
    """Without a bound nothing is done to a report that answers the order."""
    update = np.array([3e38, -1e-45], np.float32)  # the ends of float32
    assert check(report(update)).tobytes() == update.tobytes()


@pytest.mark.parametrize("changes", [{"run": "s"}, {"round": 2}, {"round": 4}, {"attempt": 1}, {"attempt": 3}])
def test_report_of_another_round_is_refused(changes):
    """Run, round and attempt must be those of the order."""
    assert word(report([1, 2], **changes)) == "another-round"


def test_report_of_another_client_is_refused():
    """A client cannot answer for its neighbour."""
    assert word(report([1, 2], client=4)) == "another-client"


@pytest.mark.parametrize("size", [0, 1, 3])
def test_update_of_another_size_is_refused(size):
    """Exactly as many numbers as the model has parameters."""
    assert word(report(np.ones(size))) == "wrong-size"


@pytest.mark.parametrize("max_norm", [None, 1.0])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_update_that_is_not_finite_is_refused(value, max_norm):
    """One NaN or infinity in an update would be in every weight of the model."""
    assert word(report([0, value]), max_norm=max_norm) == "not-finite"


def test_norm_above_the_bound_is_refused():
    """The bound is that of L2: 3 and 4 make 5."""
    assert word(report([3, 4]), max_norm=4.99) == "norm-above-bound"


def test_norm_at_the_bound_comes_back_bit_identical():
    """An update on the ball's surface is inside."""
    update = np.array([3, 4], np.float32)
    assert check(report(update), max_norm=5.0).tobytes() == update.tobytes()


def test_norm_above_the_bound_by_rounding_is_clipped():
    """What a client clipped in single precision is accepted, and clipped again."""
    update = [3 * (1 + NORM_TOLERANCE / 2), 4 * (1 + NORM_TOLERANCE / 2)]  # norm 5.00025, allowed 5.0005
    checked = check(report(update), max_norm=5.0)
    assert np.linalg.norm(checked.astype(np.float64)) == pytest.approx(5.0, rel=ROUNDING)


def test_huge_finite_norm_does_not_overflow():
    """The norm of numbers near the end of float32 is taken in double precision, and is above any bound."""
    assert word(report([3e38, 3e38]), max_norm=1.0) == "norm-above-bound"


@settings(deadline=None)
@given(
    update=arrays.arrays(np.float32, st.integers(0, 6), elements=st.floats(width=32)),
    max_norm=st.one_of(st.none(), st.floats(1e-3, 1e3)),
)
def test_whatever_passes_is_finite_and_within_the_bound(update, max_norm):
    """For any array: either a word, or finite float32 numbers of the right count whose norm is at most the bound."""
    try:
        checked = check(report(update), size=4, max_norm=max_norm)
    except ReplyRefusedError:
        return
    assert checked.dtype == np.float32
    assert checked.shape == (4,)
    assert np.isfinite(checked).all()
    if max_norm is not None:
        assert np.linalg.norm(checked.astype(np.float64)) <= max_norm * (1 + ROUNDING)


# --- noised counts ----------------------------------------------------------------------------------------------------


def counted(correct: float | None, *, noise_multiplier: float | None = 2.0) -> float | None:
    return checked_correct(report([1, 2], correct=correct), units=10, noise_multiplier=noise_multiplier)


@pytest.mark.parametrize("correct", [-17.2, -0.5, 0.0, 7.25, 10.0, 27.2])  # 8.6 x 2 = 17.2 beyond 0 and 10
def test_a_count_within_the_reach_of_noise_is_accepted(correct):
    """Noise makes counts negative, or larger than there are records: both are good."""
    assert counted(correct) == correct


def test_nothing_is_read_where_nothing_was_ordered():
    """A report without a count answers an order without one."""
    assert counted(None, noise_multiplier=None) is None


@pytest.mark.parametrize(
    ("correct", "noise_multiplier", "word"),
    [
        (7.0, None, "count-unasked"),
        (None, 2.0, "count-missing"),
        (np.nan, 2.0, "not-finite"),
        (np.inf, 2.0, "not-finite"),
        (-17.3, 2.0, "count-impossible"),
        (27.3, 2.0, "count-impossible"),
        (1e300, 2.0, "count-impossible"),
    ],
)
def test_a_count_that_no_honest_client_sends_is_refused(correct, noise_multiplier, word):
    """Unasked, missing, not finite, or farther out than noise goes: one client cannot decide what is pooled."""
    with pytest.raises(ReplyRefusedError, match=f"^{word}$"):
        counted(correct, noise_multiplier=noise_multiplier)


def test_no_noise_goes_as_far_as_the_bound():
    """The largest number that 53 bits can make: sqrt(2 x 53 x ln 2) = 8.572 standard deviations."""
    assert np.sqrt(2 * 53 * np.log(2)) < FARTHEST_NOISE
