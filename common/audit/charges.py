"""Checks of the ledger against what was seen: is every order charged, and does the claim hold everything charged?

Nothing here is random: an honest run is never refuted.
"""

import math
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache

from common.audit.check import Check
from common.audit.observations import Claim
from common.errors import AccountingError
from common.privacy.accounting import PRV_WIDENING, bound, prv_interval, renyi_epsilon
from common.privacy.events import History, SampledGaussian


def bookkeeping(claim: Claim) -> tuple[Check, ...]:
    """Return what the ledger's entries say of the claim; nothing where nothing is claimed."""
    if claim.mechanism is None or claim.epsilon is None:
        return ()
    return _charges(claim, claim.mechanism), _composition(claim, claim.epsilon)


def _charges(claim: Claim, mechanism: SampledGaussian) -> Check:
    """An entry for each order, each of the planned mechanism; more are charged where an answer was lost."""
    planned = [event for event in claim.events if _is_planned(event, mechanism)]
    strangers = len(claim.events) - len(planned)
    other = f" {strangers} of another mechanism are charged beside them." if strangers else ""
    return Check(
        name="charges",
        is_refuted=strangers > 0 or len(planned) < claim.orders,
        measured=float(len(planned)),
        expected=float(claim.orders),
        low=float(claim.orders),
        high=None,
        says=f"{claim.orders} orders were carried out, and {len(planned)} of the planned mechanism are charged.{other}",
    )


def _is_planned(event: object, mechanism: SampledGaussian) -> bool:
    """Same noise, rate and steps; the account, and so the unit, is the ledger's matter."""
    return isinstance(event, SampledGaussian) and (event.noise_multiplier, event.sampling_rate, event.steps) == (
        mechanism.noise_multiplier, mechanism.sampling_rate, mechanism.steps,
    )  # fmt: skip


def _composition(claim: Claim, epsilon: float) -> Check:
    """The claim against everything charged, composed anew by accountants that the claim is not from.

    Below PRV's lower bound no honest claim can be. Where PRV cannot answer, the claim is compared with the same
    accountant as the run's, over entries that are added up here: that still finds whatever was left out.
    """
    history = added_up(claim.events)
    low, expected, who = _recomposed(history, claim.delta)
    if not math.isfinite(low):
        return _unanswered(epsilon)
    rdp = renyi_epsilon(history, delta=claim.delta)
    return Check(
        name="composition",
        is_refuted=not epsilon >= low,
        measured=epsilon,
        expected=expected,
        low=low,
        high=None,
        says=f"Epsilon {epsilon:.4g} is claimed; all charges together come to {expected:.4g} ({who}; RDP: {rdp:.4g}).",
    )


@lru_cache(maxsize=64)
def _recomposed(history: History, delta: float) -> tuple[float, float, str]:
    """The least that may be claimed, epsilon, and by whom."""
    if not history:
        return 0.0, 0.0, "nothing is charged"
    try:
        low, middle, _ = prv_interval(history, delta=delta)
    except AccountingError:
        figure = bound(history, delta=delta)
        return figure * (1 - PRV_WIDENING) if math.isfinite(figure) else math.inf, figure, "PRV cannot answer"
    return low * (1 - PRV_WIDENING), middle, "PRV"


def _unanswered(epsilon: float) -> Check:
    return Check(
        name="composition",
        is_refuted=math.isfinite(epsilon),  # a finite claim for charges that no accountant bounds
        measured=epsilon,
        expected=None,
        low=None,
        high=None,
        says=f"Epsilon {epsilon:.4g} is claimed; no accountant bounds all charges together.",
    )


def added_up(events: History) -> History:
    """Return a history of one event for each noise and rate, with the steps of all its entries.

    It is the audit's own addition: the code that is audited has another.
    """
    steps: dict[tuple[float, Fraction], int] = {}
    firsts: dict[tuple[float, Fraction], SampledGaussian] = {}
    others = []
    for event in events:
        if not isinstance(event, SampledGaussian):
            others.append(event)
            continue
        key = event.noise_multiplier, event.sampling_rate
        firsts.setdefault(key, event)
        steps[key] = steps.get(key, 0) + event.steps
    return (*(replace(first, steps=steps[key]) for key, first in firsts.items()), *others)
