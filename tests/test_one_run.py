"""Tests of a claim by one run: they never refute what holds, and they find what does not."""

import time

import numpy as np
import pytest
from scipy.optimize import brentq, linprog
from scipy.stats import binom

from common.audit.one_run import (
    Attack,
    attacks,
    gaussian_bound,
    is_refuted,
    least_canaries,
    refuting,
    steinke_bound,
    steinke_p_value,
    would_do,
)
from common.audit.trade_off import TradeOff, gaussian, gaussian_epsilon

DELTA = 1e-5


def mu_of(epsilon):
    """The Gaussian with this epsilon at delta 1e-5."""
    return brentq(lambda mu: gaussian_epsilon(mu, delta=DELTA) - epsilon, 1e-3, 20)


def coins_and_scores(rng, canaries, mu):
    is_in = rng.random(canaries) < 1 / 2
    return rng.normal(size=canaries) + mu * is_in, is_in


def largest_tail(claim, canaries, guesses, correct):
    """The largest P[correct or more] that the docstring's inequalities allow: a linear program over p_0..p_g."""
    i = np.arange(guesses + 1)
    rows, limits = [], []
    for at_zero, slope in claim._envelope[1]:
        for t in range(1, guesses + 1):
            right = np.where(i >= t, i, 0) / canaries
            wrong = np.where(i >= t - 1, guesses - i, 0) / canaries
            rows.append(slope * right - wrong)  # wrong >= at_zero + slope * right
            limits.append(-at_zero)
    found = linprog(
        -(i >= correct).astype(float), A_ub=rows, b_ub=limits, A_eq=[np.ones(guesses + 1)], b_eq=[1.0], method="highs"
    )
    return -found.fun


@pytest.mark.parametrize("claim", [
    TradeOff(epsilons=(1.0,), deltas=(0.0,)),
    TradeOff(epsilons=(0.5, 2.0), deltas=(0.05, 0.001)),
    TradeOff(epsilons=gaussian(1.0).epsilons[::25], deltas=gaussian(1.0).deltas[::25]),
])  # fmt: skip
def test_refutation_begins_exactly_where_a_linear_program_finds_no_distribution(claim):
    """Just below the largest tail that is possible nothing is refuted; just above it everything is."""
    for canaries, guesses in ((6, 6), (12, 8), (20, 10)):
        for correct in range(guesses // 2, guesses + 1):
            tail = largest_tail(claim, canaries, guesses, correct)
            attack = Attack(canaries=canaries, guesses=guesses, correct=correct)
            assert not is_refuted(claim, attack, level=tail * (1 - 1e-6) - 1e-9)
            assert tail > 1 - 1e-6 or is_refuted(claim, attack, level=min(tail * (1 + 1e-6) + 1e-9, 1.0))


def test_randomised_response_is_never_refuted():
    """Each of 40 coins is told truly at odds of e : 1. The exact binomial tail is below the level of refutation."""
    claim, right = TradeOff(epsilons=(1.0,), deltas=(0.0,)), np.e / (1 + np.e)
    for correct in range(41):
        attack = Attack(canaries=40, guesses=40, correct=correct)
        assert not is_refuted(claim, attack, level=binom.sf(correct - 1, 40, right) * (1 - 1e-9))


def test_without_delta_steinkes_p_value_is_the_binomial_tail():
    """30 of 40 at epsilon 1; and each delta adds 2 m delta alpha."""
    attack = Attack(canaries=100, guesses=40, correct=30)
    tail = binom.sf(29, 40, np.e / (1 + np.e))
    assert steinke_p_value(attack, epsilon=1.0, delta=0.0) == pytest.approx(tail, rel=1e-12)
    sums = [binom.pmf(range(30 - i, 30), 40, np.e / (1 + np.e)).sum() / i for i in range(1, 31)]
    expected = tail + 2 * 100 * 1e-5 * max(sums)
    assert steinke_p_value(attack, epsilon=1.0, delta=1e-5) == pytest.approx(expected, rel=1e-9)


def test_nothing_right_refutes_nothing():
    """Whatever is claimed, perfect privacy included."""
    claim = TradeOff(epsilons=(0.0,), deltas=(0.0,))
    assert not is_refuted(claim, Attack(canaries=10, guesses=4, correct=0), level=0.9)
    assert steinke_p_value(Attack(canaries=10, guesses=4, correct=0), epsilon=0.0, delta=DELTA) == 1.0


def test_400_honest_runs_are_not_refuted():
    """Epsilon 1, 4 and 8, 1000 canaries: none at 2e-5 (fails by chance with 0.8 % at most), 5 % of the bounds at most.

    A bound at 95 % is above the truth exactly where the truth is refuted at 5 %. More than 40 of 400 have a chance of
    2e-5 at most; the tests are far from exact, and there is hardly any.
    """
    rng = np.random.default_rng(1)
    claims = {mu_of(epsilon): gaussian(mu_of(epsilon)) for epsilon in (1, 4, 8)}
    above = 0
    for run in range(400):
        mu = list(claims)[run % 3]
        found = attacks(*coins_and_scores(rng, 1000, mu))
        assert refuting(claims[mu], found, level=2e-5) is None
        above += refuting(claims[mu], found, level=0.05) is not None
        assert all(steinke_p_value(a, epsilon=(1, 4, 8)[run % 3], delta=DELTA) > 1e-5 / 3 for a in found)
    assert above <= 40


def test_an_honest_epsilon_of_8_is_bounded_from_below_by_3():
    """2000 canaries: 20 of 20. Of 800 other seeds none fell below 3.3: the bounds are 4.15 +- 0.32."""
    for seed in range(20):
        found = attacks(*coins_and_scores(np.random.default_rng(seed), 2000, mu_of(8)))
        assert 3.0 <= gaussian_bound(found, delta=DELTA, level=0.05) <= 8.0


def test_missing_noise_is_found_by_guesses_alone():
    """All guesses about 1000 coins are right: 4 is refuted, and at least 9 (f-DP) and 5 (Steinke) are proved."""
    is_in = np.arange(1000) % 2 == 0
    found = attacks(is_in.astype(float), is_in)
    assert [attack.correct for attack in found] == [250, 500, 750]
    assert refuting(gaussian(mu_of(4)), found, level=2e-5) is not None
    assert gaussian_bound(found, delta=DELTA, level=0.05) > 9
    assert steinke_bound(found, delta=DELTA, level=0.05) > 5


def test_chance_proves_nothing():
    """Half of the guesses right is what no attack at all would have."""
    found = (Attack(canaries=1000, guesses=500, correct=250),)
    assert gaussian_bound(found, delta=DELTA, level=0.05) == 0.0
    assert steinke_bound(found, delta=DELTA, level=0.05) == 0.0


def test_the_number_of_guesses_depends_on_the_number_of_canaries_alone():
    """Quarter, half and three quarters of 101, rounded down to even numbers: 24, 50 and 74."""
    rng = np.random.default_rng(2)
    for _ in range(5):
        found = attacks(*coins_and_scores(rng, 101, 1.0))
        assert [attack.guesses for attack in found] == [24, 50, 74]


def test_the_least_number_of_canaries_is_the_least():
    """One less would not do; epsilon 8 takes several hundred at 5 %, epsilon 1 about a dozen."""
    for epsilon, most in ((1, 20), (4, 60), (8, 500)):
        claim = gaussian(mu_of(epsilon))
        least = least_canaries(claim, level=0.05)
        assert 2 < least <= most
        assert would_do(claim, canaries=least, level=0.05)
        assert not would_do(claim, canaries=least - 1, level=0.05)


def test_some_claims_are_too_large_for_any_number_of_canaries():
    """At epsilon 40 and delta 1e-5 even a million right guesses are no wonder."""
    assert least_canaries(gaussian(mu_of(40)), level=0.05) is None


def test_impossible_counts_are_refused():
    """More right than guessed, or more guessed than there are."""
    with pytest.raises(ValueError, match="correct <= guesses <= canaries"):
        Attack(canaries=10, guesses=4, correct=5)
    with pytest.raises(ValueError, match="correct <= guesses <= canaries"):
        Attack(canaries=10, guesses=11, correct=5)


def test_a_test_of_500_guesses_is_fast():
    """Under 30 ms, the best of five."""
    claim = gaussian(mu_of(8))
    attack = Attack(canaries=2000, guesses=500, correct=480)
    is_refuted(claim, attack, level=2e-5)  # the envelope is made once
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        is_refuted(claim, attack, level=2e-5)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.03
