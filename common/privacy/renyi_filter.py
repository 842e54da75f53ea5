"""Admission of runs that were chosen after seeing what earlier runs released.

Once an account has released something, the next run's noise, rate and length may depend on it, and epsilon by a tight
accountant no longer bounds the whole. Rényi divergences of *one fixed order* may still be added up, however each event
was chosen, as long as their sum is kept below a bound: a filter. The order is fixed before anything is released, from
the account's first planned participation and its budget.

    >>> from fractions import Fraction
    >>> from common.privacy.events import SampledGaussian
    >>> round_ = (SampledGaussian(noise_multiplier=10.0, sampling_rate=Fraction(1), steps=1),)
    >>> order = filter_order(round_, budget=2.0, delta=1e-5)
    >>> admissible((), round_, wanted=1000, budget=2.0, delta=1e-5, order=order)
    21

Source: Feldman and Zrnic 2021, Theorem 4.3, https://arxiv.org/abs/2008.11193.
"""

import math
from collections.abc import Callable
from functools import lru_cache

from common.errors import AccountingError
from common.privacy.accounting import COARSE, FINE, RDP_ORDERS, check_delta, epsilon, renyi_divergences
from common.privacy.events import History


@lru_cache(maxsize=1024)
def filter_order(event_history: History, *, budget: float, delta: float) -> float:
    """Return the order at which copies of `event_history` can be repeated most often within the budget.

    Edge cases:
        no event, or none that fits once at any order    the order whose conversion to epsilon costs least
        several orders at which equally many would fit   the smallest

    Args:
        event_history: the account's first planned participation.
        budget: epsilon that the account may spend in its life.
        delta: in [1e-10, 1).
    """
    check_delta(delta)
    divergences = renyi_divergences(event_history)
    rooms = [budget - _conversion(order, delta) for order in RDP_ORDERS]
    repeats: list[float] = [
        max(room, 0.0) / cost if cost > 0 else 0.0 for room, cost in zip(rooms, divergences.tolist(), strict=True)
    ]
    if max(repeats) > 0:
        return float(RDP_ORDERS[repeats.index(max(repeats))])
    return float(RDP_ORDERS[rooms.index(max(rooms))])


@lru_cache(maxsize=4096)
def filter_epsilon(history: History, *, order: float, delta: float) -> float:
    """Return epsilon as the filter counts it: the divergences at `order`, added up and converted at `delta`.

    Guarantees:
        It is never below `renyi_epsilon`, which may choose its order afterwards.

    Edge cases:
        empty history                      0
        a divergence that is not bounded   infinity

    Args:
        history: the account's events.
        order: one of RDP_ORDERS, fixed before anything was released.
        delta: in [1e-10, 1).

    Source: the conversion of Canonne et al. 2020, Proposition 12, https://arxiv.org/abs/2004.00010.
    """
    check_delta(delta)
    if not history:
        return 0.0
    return max(_divergence(history, order) + _conversion(order, delta), 0.0)


def admissible(past: History, participation: History, *, wanted: int, budget: float, delta: float, order: float) -> int:
    """Return how many of `wanted` further participations fit into the budget, by the filter.

    Guarantees:
        `filter_epsilon` of the past and that many participations is at most the budget.
        One more, if wanted, exceeds it.

    Edge cases:
        a divergence that is not bounded    0
        a past beyond the budget            0
        a participation without events      all of them
    """
    if not participation:
        return wanted
    spent, cost = _divergence(past, order), _divergence(participation, order)
    room = budget - _conversion(order, delta) - spent
    if not (math.isfinite(cost) and room >= 0):
        return 0
    count = wanted if cost * wanted <= room else min(int(room / cost), wanted)

    def fits(times: int) -> bool:
        return filter_epsilon(_after(past, participation, times), order=order, delta=delta) <= budget

    while count > 0 and not fits(count):  # the division above rounded up
        count -= 1
    while count < wanted and fits(count + 1):  # or down
        count += 1
    return count


def admissible_by_pld(past: History, participation: History, *, wanted: int, budget: float, delta: float) -> int:
    """Return the largest number of further participations, up to `wanted`, that fits into the budget by PLD.

    Only for what is decided as a whole before anything is released.

    Guarantees:
        `epsilon` of the past and that many participations is at most the budget.
        One more, if wanted, exceeds it.

    Edge cases:
        a past beyond the budget            0
        a participation without events      all of them
        too many steps for PLD to count     as many as it can count

    Raises:
        AccountingError: when PLD cannot answer for these events.
    """
    if not participation:
        return wanted
    epsilon(_after(past, participation, 1), delta=delta, grid=COARSE)  # raises when PLD does not know the events

    def fits(times: int, grid: float) -> bool:
        try:
            return times == 0 or epsilon(_after(past, participation, times), delta=delta, grid=grid) <= budget
        except AccountingError:  # too long to be counted, so too long to be admitted
            return False

    if fits(wanted, FINE):
        return wanted
    low = _last(lambda times: fits(times, COARSE), 0, wanted)  # the coarse grid overstates, so that this many do fit
    if not fits(low, FINE):
        return _last(lambda times: fits(times, FINE), 0, low)
    step = 1
    while low + step < wanted and fits(low + step, FINE):
        low, step = low + step, 2 * step
    return _last(lambda times: fits(times, FINE), low, min(low + step, wanted))


def _last(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The last number of [low, high) for which `holds`; it does for `low` and does not for `high`."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _after(past: History, participation: History, times: int) -> History:
    return (*past, *(event.times(times) for event in participation)) if times else past


def _divergence(history: History, order: float) -> float:
    return float(renyi_divergences(history)[RDP_ORDERS.index(order)])


def _conversion(order: float, delta: float) -> float:
    """What turning a divergence of this order into epsilon adds."""
    return math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
