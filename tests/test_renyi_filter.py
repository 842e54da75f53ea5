"""The Rényi filter: what fits into a budget when each run may be chosen after seeing the earlier ones."""

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import AccountingError
from common.privacy.accounting import RDP_ORDERS, epsilon, renyi_epsilon
from common.privacy.events import SampledGaussian, ZeroConcentrated
from common.privacy.renyi_filter import admissible, admissible_by_pld, filter_epsilon, filter_order

PLAIN = (SampledGaussian(noise_multiplier=10.0, sampling_rate=Fraction(1), steps=1),)
SAMPLED = (SampledGaussian(noise_multiplier=1.0, sampling_rate=Fraction(1, 100), steps=50),)
NOISELESS = (SampledGaussian(noise_multiplier=1e-200, sampling_rate=Fraction(1, 2), steps=1),)

# few distinct noises and rates: each costs 50 ms once
events = st.builds(
    SampledGaussian,
    noise_multiplier=st.sampled_from([0.8, 1.0, 2.5, 10.0]),
    sampling_rate=st.sampled_from([Fraction(1), Fraction(1, 4), Fraction(1, 50)]),
    steps=st.integers(1, 300),
)
histories = st.lists(events, min_size=1, max_size=4).map(tuple)
deltas = st.integers(3, 10).map(lambda digits: 10.0**-digits)


def test_the_filter_counts_the_closed_formula():
    """Two plain steps at sigma 10, order 11: 2 * 11 / 200 + log(10/11) - (log delta + log 11) / 10."""
    counted = filter_epsilon((PLAIN[0].times(2),), order=11, delta=1e-5)
    assert counted == pytest.approx(0.11 + math.log(10 / 11) - (math.log(1e-5) + math.log(11)) / 10, rel=1e-12)


def test_the_filter_never_counts_below_zero():
    """A formula that falls below 0, and an empty history, count 0."""
    assert filter_epsilon((PLAIN[0],), order=1024, delta=0.5) > 0  # 1024 / 200 = 5.12
    assert (
        filter_epsilon((SampledGaussian(noise_multiplier=1e5, sampling_rate=Fraction(1), steps=1),), order=2, delta=0.9)
        == 0
    )
    assert filter_epsilon((), order=11, delta=1e-5) == 0


@settings(max_examples=40, deadline=None)
@given(history=histories, order=st.sampled_from(RDP_ORDERS), delta=deltas)
def test_a_fixed_order_never_counts_less_than_the_best_one(history, order, delta):
    """At whatever order, the filter's epsilon is at least what RDP says when it may choose."""
    assert filter_epsilon(history, order=order, delta=delta) >= renyi_epsilon(history, delta=delta) * (1 - 1e-12)


def test_the_order_is_where_most_repetitions_fit():
    """No other order admits more repetitions of the first participation than the chosen one."""
    for participation, budget in ((PLAIN, 2.0), (SAMPLED, 8.0), (SAMPLED, 1.5)):
        chosen = filter_order(participation, budget=budget, delta=1e-5)
        counts = {
            order: admissible((), participation, wanted=10**6, budget=budget, delta=1e-5, order=order)
            for order in RDP_ORDERS
        }
        assert counts[chosen] == max(counts.values()) > 0


def test_the_order_of_plain_gaussians_is_near_the_analytic_one():
    """At sigma 10 and epsilon 2 most repetitions fit near order 12.2, and the choice is near it."""
    # repetitions are (2 - conversion) 200 / a; without two small logarithms 200 (2 / a - L / (a (a - 1))), L = log 1e5,
    # whose derivative is 0 at 2 (a - 1)^2 = L (2 a - 1), so a = 12.2
    assert abs(filter_order(PLAIN, budget=2.0, delta=1e-5) - 12.2) <= 2.5


@pytest.mark.parametrize("participation", [(), NOISELESS], ids=["no event", "no noise"])
def test_an_order_is_fixed_even_where_nothing_fits(participation):
    """Without a divergence to compare, it is the order whose conversion costs least: the largest."""
    assert filter_order(participation, budget=1.0, delta=1e-5) == 1024


@settings(max_examples=60, deadline=None)
@given(
    past=st.lists(events, max_size=3).map(tuple),
    participation=histories,
    wanted=st.integers(0, 2000),
    budget=st.integers(1, 300).map(lambda tenths: tenths / 10),
    delta=deltas,
    order=st.one_of(st.none(), st.sampled_from(RDP_ORDERS)),
)
def test_what_is_admitted_fits_and_one_more_does_not(  # noqa: PLR0917 - one name for each that is drawn
    past, participation, wanted, budget, delta, order
):
    """The admitted number keeps the budget by the filter's own figure, and is the largest that does."""
    order = order or filter_order(participation, budget=budget, delta=delta)

    def spent(times):
        history = (*past, *(event.times(times) for event in participation)) if times else past
        return filter_epsilon(history, order=order, delta=delta)

    count = admissible(past, participation, wanted=wanted, budget=budget, delta=delta, order=order)
    assert 0 <= count <= wanted
    assert count == 0 or spent(count) <= budget
    assert count == wanted or spent(count + 1) > budget


def test_the_filter_admits_a_little_less_than_pld():
    """The filter admits 272 of the 311 rounds that PLD, asked once for a whole first run, admits."""
    order = filter_order(SAMPLED, budget=8.0, delta=1e-5)
    assert admissible((), SAMPLED, wanted=10**6, budget=8.0, delta=1e-5, order=order) == 272
    assert admissible_by_pld((), SAMPLED, wanted=1000, budget=8.0, delta=1e-5) == 311


def test_nothing_is_admitted_without_noise():
    """An unbounded divergence is never admitted, nor is anything after it."""
    arguments = {"wanted": 5, "budget": 8.0, "delta": 1e-5, "order": 8}
    assert admissible((), NOISELESS, **arguments) == 0
    assert admissible(NOISELESS, PLAIN, **arguments) == 0
    assert filter_epsilon(NOISELESS, order=8, delta=1e-5) == math.inf


def test_nothing_is_admitted_after_the_budget_is_spent():
    """A past beyond the budget leaves nothing, by either accountant."""
    past = (PLAIN[0].times(1000),)
    assert admissible(past, PLAIN, wanted=5, budget=1.0, delta=1e-5, order=11) == 0
    assert admissible_by_pld(past, PLAIN, wanted=5, budget=1.0, delta=1e-5) == 0


def test_a_participation_without_events_always_fits():
    """What does nothing to the data costs nothing."""
    assert admissible((), (), wanted=7, budget=1.0, delta=1e-5, order=11) == 7
    assert admissible_by_pld((), (), wanted=7, budget=1.0, delta=1e-5) == 7


@pytest.mark.parametrize(
    ("past", "participation", "wanted", "budget"),
    [
        ((), PLAIN, 50, 2.0),
        (PLAIN, SAMPLED, 20, 1.5),
        (SAMPLED, (*SAMPLED, *PLAIN), 30, 2.5),
        ((), PLAIN, 10**4, 3.0),
    ],
)
def test_pld_admits_the_largest_number_that_fits(past, participation, wanted, budget):
    """By PLD on its fine grid the admitted number keeps the budget, and one more does not."""

    def spent(times):
        return epsilon((*past, *(event.times(times) for event in participation)), delta=1e-5)

    count = admissible_by_pld(past, participation, wanted=wanted, budget=budget, delta=1e-5)
    assert spent(count) <= budget < spent(count + 1)


def test_pld_admits_what_can_be_counted_and_no_more():
    """Of more steps than rounding allows to count (1e14 delta), as many are admitted as can be."""
    tiny = (SampledGaussian(noise_multiplier=1e5, sampling_rate=Fraction(1, 10**6), steps=10**5),)
    assert admissible_by_pld((), tiny, wanted=10**6, budget=1.0, delta=1e-8) == 10  # 1e6 steps


def test_pld_admits_where_the_coarse_grid_would_not():
    """A budget that the coarse grid overstates is used up to the last step."""
    step = (SampledGaussian(noise_multiplier=7.0, sampling_rate=Fraction(1, 1000), steps=100),)
    budget = epsilon((step[0].times(30),), delta=1e-5)
    assert admissible_by_pld((), step, wanted=60, budget=budget, delta=1e-5) == 30


def test_the_filter_answers_where_pld_does_not():
    """Zero-concentrated events fit by the filter; PLD says that it does not know them."""
    event = (ZeroConcentrated(rho=0.01),)
    # 0.01 * 11 = 0.11 a step; room 2 - log(10/11) + (log 1e-5 + log 11) / 10 = 1.1838; 1.1838 / 0.11 = 10.8
    assert admissible((), event, wanted=50, budget=2.0, delta=1e-5, order=11) == 10
    with pytest.raises(AccountingError, match="PLD cannot answer: it does not know zcdp events"):
        admissible_by_pld((), event, wanted=50, budget=2.0, delta=1e-5)
