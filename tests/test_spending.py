"""What a run has spent so far: who is charged, and a figure that is never too small."""

from fractions import Fraction

import numpy as np
import pytest

from common.privacy.accounting import COARSE, epsilon
from common.privacy.events import SampledGaussian
from common.privacy.plan import Account, Plan
from server.spending import Spending

DELTA = 1e-5
SMALL, LARGE = Fraction(1, 4), Fraction(1, 2)  # sampling rates: the clients with few records spend more


def account(rate: Fraction, unit: str) -> Account:
    event = SampledGaussian(noise_multiplier=2.0, sampling_rate=rate, steps=3, unit=unit)  # type: ignore[arg-type]
    return Account(records=100, members=1, event=event, participations=5, reserved=7, epsilon=1.0, epsilon_reserved=1.5)


def plan(unit: str) -> Plan:
    """Return three clients: for unit `record` client 2 has an account of its own kind."""
    accounts, account_of = {
        "record": ((account(SMALL, "record"), account(LARGE, "record")), (0, 0, 1)),
        "client": ((account(SMALL, "client"),), (0, 0, 0)),
        "none": ((), ()),
    }[unit]
    return Plan(
        run="r",
        unit=unit,
        delta=DELTA,
        max_grad_norm=1.0,
        records=(100, 100, 50),
        accounts=accounts,
        account_of=account_of,
    )


def cohort(*clients: int) -> np.ndarray:
    return np.array(clients, np.intp)


def spent(times: int, rate: Fraction, unit: str = "record") -> float:
    """Ask the accountant itself."""
    return epsilon((account(rate, unit).event.times(times),), delta=DELTA, grid=COARSE)


def test_without_privacy_there_is_no_epsilon():
    """None, not zero: zero would be a promise."""
    spending = Spending(plan("none"))
    spending.charge(cohort(0, 1))
    assert spending.epsilon_max() is None


@pytest.mark.parametrize("unit", ["record", "client"])
def test_nothing_is_spent_before_the_first_round(unit):
    """A private run begins at epsilon 0."""
    spending = Spending(plan(unit))
    assert spending.epsilon_max() == 0.0


def test_only_the_cohort_is_charged_for_records():
    """Two rounds of client 0 and one of client 1: the figure is that of two participations."""
    spending = Spending(plan("record"))
    spending.charge(cohort(0, 1))
    spending.charge(cohort(0))
    assert spending.epsilon_max() == spent(2, SMALL)


def test_figure_is_the_largest_of_all_accounts():
    """One participation at the higher rate costs more than one at the lower: 2.21 against 1.22."""
    spending = Spending(plan("record"))
    spending.charge(cohort(0, 1, 2))
    assert spent(1, LARGE) > spent(1, SMALL) > 0
    assert spending.epsilon_max() == spent(1, LARGE)


def test_account_that_took_part_most_need_not_spend_most():
    """Each account is counted with its own event, not the busiest one's."""
    spending = Spending(plan("record"))
    spending.charge(cohort(2))
    spending.charge(cohort(0))
    spending.charge(cohort(0))
    assert spending.epsilon_max() == max(spent(2, SMALL), spent(1, LARGE))


@pytest.mark.parametrize("asked", [(), (1,), (0, 1, 2)])
def test_everybody_is_charged_for_clients_whoever_is_asked(asked):
    """A secret cohort, an empty one too, costs each client of the population one event."""
    spending = Spending(plan("client"))
    spending.charge(cohort(*asked))
    assert spending.epsilon_max() == spent(1, SMALL, "client")


def test_lost_attempts_are_charged():
    """A round that was begun three times costs three events."""
    spending = Spending(plan("record"))
    spending.charge(cohort(0), times=3)
    assert spending.epsilon_max() == spent(3, SMALL)


@pytest.mark.parametrize("times", [1, 5])
def test_figure_is_an_upper_bound_on_the_final_one(times):
    """The coarse grid's figure is at least the fine grid's, and at most a hundredth above it."""
    spending = Spending(plan("record"))
    spending.charge(cohort(0), times=times)
    fine = epsilon((account(SMALL, "record").event.times(times),), delta=DELTA)
    assert fine <= spending.epsilon_max() <= fine + 0.01
