"""Admission: how much of a run fits into what an account has left.

The first run of an account is decided as a whole before anything is released, so that the tight accountant (PLD) may
answer. From the second run on, what is asked for may depend on what earlier runs released: then only a filter is safe,
the Rényi filter at an order that was fixed before the first release (`common.privacy.renyi_filter`). Both figures are
given, whichever decides.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from common.privacy.accounting import bound
from common.privacy.events import History, merged
from common.privacy.renyi_filter import admissible, admissible_by_pld, filter_epsilon, filter_order
from common.transparency.books import Account

Gate = Literal["pld", "filter"]


@dataclass(frozen=True, kw_only=True)
class Admission:
    """How often a participation may still happen.

    Args:
        participations: from 0 to what was wanted.
        gate: which figure decided.
        epsilon: of the account when all of it has happened, by PLD, or by RDP where PLD cannot answer.
        filter_epsilon: the same by the Rényi filter.
    """

    participations: int
    gate: Gate
    epsilon: float
    filter_epsilon: float


def admission(account: Account, events: History, *, wanted: int) -> Admission:
    """Say how many of `wanted` participations fit into the account's lifetime budget.

    Guarantees:
        With all of them the account's epsilon, by the figure of the gate, is at most its budget.
        What open runs have reserved counts as spent.
    """
    first, now = account.terms[0], account.terms[-1]
    first_events = next((run.events for run in account.runs.values()), events)
    order = first_order(first_events, first.budget, first.delta)
    return _admission(merged(account.held()), events, wanted=wanted, budget=now.budget, delta=now.delta, order=order)


@lru_cache(maxsize=4096)
def first_order(first_events: History, budget: float, delta: float) -> float:
    """Return the order of an account's filter, which follows from its first run and its first terms."""
    return filter_order(first_events, budget=budget, delta=delta)


def account_order(account: Account) -> float | None:
    """Return the order of an account's filter; None before its first run."""
    first = next(iter(account.runs.values()), None)
    return None if first is None else first_order(first.events, account.terms[0].budget, account.terms[0].delta)


@lru_cache(maxsize=4096)
def _admission(held: History, events: History, *, wanted: int, budget: float, delta: float, order: float) -> Admission:
    if held:
        gate: Gate = "filter"
        count = admissible(held, events, wanted=wanted, budget=budget, delta=delta, order=order)
    else:
        gate = "pld"
        count = admissible_by_pld(held, events, wanted=wanted, budget=budget, delta=delta)
    total = merged((*held, *(event.times(count) for event in events if count)))
    return Admission(
        participations=count,
        gate=gate,
        epsilon=bound(total, delta=delta),
        filter_epsilon=filter_epsilon(total, order=order, delta=delta),
    )
