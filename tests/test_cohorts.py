"""Cohorts: an even schedule that repeats, or a secret Poisson sample that does not."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import Scenario, parse
from common.privacy.entropy import Entropy
from common.privacy.events import SampledGaussian
from common.privacy.plan import Account, Plan
from server.cohorts import poisson_cohort, schedule

KEY = bytes(32)


def scenario(*, clients: int, cohort: int, rounds: int, seed: int = 7) -> Scenario:
    return parse(
        f'run = {{name = "x", rounds = {rounds}, seed = {seed}}}\n'
        f'data = {{dataset = "digits", clients = {clients}}}\n'
        f'training = {{batch_size = 1}}\nserver = {{cohort = {cohort}}}\nprivacy = {{unit = "none"}}'
    )


def plan(*, clients: int, rate: Fraction) -> Plan:
    """Return a client-level plan, by hand: no accountant is needed to draw a cohort."""
    event = SampledGaussian(noise_multiplier=1.0, sampling_rate=rate, steps=1, unit="client")
    account = Account(
        records=clients, members=1, event=event, participations=1, reserved=1, epsilon=1.0, epsilon_reserved=1.0
    )
    return Plan(
        run="r",
        unit="client",
        delta=1e-5,
        max_grad_norm=1.0,
        records=(1,) * clients,
        accounts=(account,),
        account_of=(0,) * clients,
    )


shapes = st.integers(1, 20).flatmap(lambda clients: st.tuples(st.just(clients), st.integers(1, clients)))


@settings(deadline=None)
@given(shape=shapes, rounds=st.integers(1, 25), seed=st.integers(0, 1000))
def test_each_round_has_exactly_the_cohort_in_increasing_order(shape, rounds, seed):
    """Every round asks `cohort` different clients of the population."""
    clients, cohort = shape
    cohorts = schedule(scenario(clients=clients, cohort=cohort, rounds=rounds, seed=seed))
    assert len(cohorts) == rounds
    for asked in cohorts:
        assert len(asked) == cohort
        assert (np.diff(asked) > 0).all()
        assert asked[0] >= 0
        assert asked[-1] < clients


@settings(deadline=None)
@given(shape=shapes, rounds=st.integers(1, 25), seed=st.integers(0, 1000))
def test_participations_stay_even_after_every_round(shape, rounds, seed):
    """After any number of rounds two clients differ by at most one, and none is above the plan's count."""
    clients, cohort = shape
    taken = np.zeros(clients, int)
    for number, asked in enumerate(schedule(scenario(clients=clients, cohort=cohort, rounds=rounds, seed=seed)), 1):
        taken[asked] += 1
        assert taken.max() - taken.min() <= 1
        assert taken.max() <= math.ceil(number * cohort / clients)


def test_schedule_follows_from_the_seed():
    """The same seed gives the same cohorts, another one others."""
    one, again, other = (schedule(scenario(clients=20, cohort=5, rounds=10, seed=seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_longer_run_begins_like_a_shorter_one():
    """A round's cohort does not depend on how many rounds follow."""
    short, long = (schedule(scenario(clients=9, cohort=4, rounds=rounds)) for rounds in (3, 8))
    np.testing.assert_array_equal(short, long[:3])


def test_poisson_cohort_of_rate_one_is_everybody():
    """At sampling rate 1 nobody is left out."""
    assert poisson_cohort(plan(clients=5, rate=Fraction(1)), Entropy()).tolist() == [0, 1, 2, 3, 4]


def test_poisson_cohort_may_be_empty():
    """At a rate of 10^-9 two clients stay at home, but for a chance of 2 * 10^-9."""
    assert poisson_cohort(plan(clients=2, rate=Fraction(1, 10**9)), Entropy()).tolist() == []


def test_poisson_cohort_includes_each_client_at_the_plan_s_rate():
    """Each client of 50 is in a quarter of the cohorts; a false alarm has a chance below 1e-6."""
    small, draws = plan(clients=50, rate=Fraction(1, 4)), 4000
    entropy = Entropy()
    taken = np.zeros(50)
    for _ in range(draws):
        taken[poisson_cohort(small, entropy)] += 1
    # Binomial(4000, 1/4): mean 1000, standard deviation sqrt(4000 * 3/16) = 27.4; 6 of them: 2e-9 for each of 50
    assert np.abs(taken - 1000).max() < 6 * math.sqrt(draws * 3 / 16)


def test_poisson_cohorts_sizes_vary_as_independent_draws_do():
    """The size is binomial and not fixed; a false alarm has a chance below 1e-6."""
    entropy, draws = Entropy(), 4000
    sizes = np.array([len(poisson_cohort(plan(clients=40, rate=Fraction(1, 2)), entropy)) for _ in range(draws)])
    # Binomial(40, 1/2): variance 10; the sample variance of 4000 has a standard error of 10 * sqrt(2/4000) = 0.224
    assert abs(sizes.var() - 10) < 5.5 * 10 * math.sqrt(2 / draws)


def test_poisson_cohort_comes_from_the_secret_stream_alone():
    """The same key draws the same cohort; streams of the operating system do not, whatever the run's seed."""
    wide = plan(clients=200, rate=Fraction(1, 2))
    np.testing.assert_array_equal(poisson_cohort(wide, Entropy(KEY)), poisson_cohort(wide, Entropy(KEY)))
    # two fair sets of 200 agree with a chance of 2^-200
    assert not np.array_equal(poisson_cohort(wide, Entropy()), poisson_cohort(wide, Entropy()))


@pytest.mark.parametrize("rate", [Fraction(1, 3), Fraction(2, 3)])
def test_poisson_rate_comes_from_the_plan(rate):
    """The plan's event decides, not the scenario's cohort; a false alarm has a chance below 1e-6."""
    drawn = len(poisson_cohort(plan(clients=90_000, rate=rate), Entropy()))
    # standard deviation sqrt(90000 * 2/9) = 141; 5.5 of them
    assert abs(drawn - 90_000 * float(rate)) < 5.5 * math.sqrt(90_000 * 2 / 9)
