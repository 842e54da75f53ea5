"""Epsilon from events.

Epsilon is what the PLD accountant says (privacy loss distributions, dp-accounting). Two independent accountants check
it: PRV (Opacus) and RDP. When they disagree nothing is reported. The central limit theorem is no bound and is not here.

    >>> from fractions import Fraction
    >>> from common.privacy.events import SampledGaussian
    >>> one = SampledGaussian(noise_multiplier=1.0, sampling_rate=Fraction(1), steps=1)
    >>> round(epsilon((one,), delta=1e-5), 4)
    4.3772
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from common.errors import AccountingError
from common.privacy.events import History, merged

FINE = 1e-4
COARSE = 1e-3
SMALLEST_DELTA = 1e-10
PRV_ERROR = 0.01
RDP_SLACK = 1.001
PRV_WIDENING = 0.002
RDP_ORDERS = (
    *(1 + x / 10 for x in range(1, 100)), *range(11, 64), 128, 256, 512, 1024,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One history's epsilon by three accountants.

    Args:
        pld: the figure to report, an upper bound.
        prv_low, prv, prv_high: Opacus's PRV interval and estimate, or None where it cannot answer.
        rdp: an upper bound, looser.
        unanswered: why an accountant could not answer, or empty.
    """

    pld: float
    prv_low: float | None
    prv: float | None
    prv_high: float | None
    rdp: float
    unanswered: str = ""


@lru_cache(maxsize=4096)
def epsilon(history: History, *, delta: float, grid: float = FINE) -> float:
    """Return an upper bound on epsilon at `delta` for everything in `history`, by PLD.

    Guarantees:
        It never falls when an event is added, and does not depend on the order of events.
        A coarser `grid` gives a larger or equal figure, faster.

    Edge cases:
        empty history    0
        delta < 1e-10    raises AccountingError: rounding would decide

    Args:
        history: the account's events.
        delta: in [1e-10, 1).
        grid: step of the discretised privacy loss.

    Source: Doroshenko et al. 2022, https://arxiv.org/abs/2207.04380.
    """
    check_delta(delta)
    if not history:
        return 0.0
    total: Any = None
    for event in merged(history):
        composed = _one_step(event.noise_multiplier, float(event.sampling_rate), grid).self_compose(event.steps)
        total = composed if total is None else total.compose(composed)
    return float(total.get_epsilon_for_delta(delta))


def check(history: History, *, delta: float) -> Verdict:
    """Return epsilon by three accountants, or raise AccountingError when they disagree."""
    pld, rdp = epsilon(history, delta=delta), renyi_epsilon(history, delta=delta)
    unanswered = ""
    interval: tuple[float, float, float] | tuple[None, None, None]
    try:
        interval = prv_interval(history, delta=delta)
    except (ValueError, RuntimeError, ArithmeticError) as error:
        interval = (None, None, None)
        unanswered = f"PRV cannot answer: {error}"
    low, middle, high = interval
    verdict = Verdict(pld=pld, prv_low=low, prv=middle, prv_high=high, rdp=rdp, unanswered=unanswered)
    refuse_disagreement(verdict)
    return verdict


def refuse_disagreement(verdict: Verdict) -> None:
    """Raise AccountingError when three accountants' figures cannot all be right.

    Guarantees:
        Accepted only when PLD <= 1.001 RDP and, where PRV answers, PLD lies in its interval widened by 0.2 %.
        NaN is never accepted.
    """
    pld, low, high = verdict.pld, verdict.prv_low, verdict.prv_high
    if not pld <= RDP_SLACK * verdict.rdp:
        raise AccountingError(
            f"Accountants disagree: PLD {pld:.6f} is above RDP {verdict.rdp:.6f}. No epsilon is reported."
        )
    if low is not None and high is not None and not low * (1 - PRV_WIDENING) <= pld <= high * (1 + PRV_WIDENING):
        raise AccountingError(
            f"Accountants disagree: PLD {pld:.6f} is outside PRV's [{low:.6f}, {high:.6f}]. No epsilon is reported."
        )


def renyi_epsilon(history: History, *, delta: float) -> float:
    """Return epsilon by Rényi differential privacy, an upper bound.

    Source: Mironov et al. 2019, https://arxiv.org/abs/1908.10530, with the conversion of Canonne et al. 2020.
    """
    import dp_accounting

    check_delta(delta)
    if not history:
        return 0.0
    with _quiet():
        accountant = dp_accounting.rdp.RdpAccountant(RDP_ORDERS)
        for event in merged(history):
            gaussian = dp_accounting.GaussianDpEvent(event.noise_multiplier)
            sampled = dp_accounting.PoissonSampledDpEvent(float(event.sampling_rate), gaussian)
            accountant.compose(sampled, event.steps)
        return float(accountant.get_epsilon(delta))


def prv_interval(history: History, *, delta: float) -> tuple[float, float, float]:
    """Return lower bound, estimate and upper bound of epsilon by Opacus's PRV accountant.

    Source: Gopi et al. 2021, https://arxiv.org/abs/2106.02848.
    """
    with _quiet():
        from opacus.accountants import PRVAccountant

        check_delta(delta)
        accountant = PRVAccountant()
        accountant.history = [(e.noise_multiplier, float(e.sampling_rate), e.steps) for e in merged(history)]
        distribution = accountant._get_dprv(eps_error=PRV_ERROR, delta_error=delta / 1000)  # noqa: SLF001 - its bounds
        low, middle, high = distribution.compute_epsilon(delta, delta / 1000, PRV_ERROR)
    return max(float(low), 0.0), float(middle), float(high)


@lru_cache(maxsize=64)
def _one_step(noise_multiplier: float, sampling_rate: float, grid: float) -> Any:
    """The privacy loss distribution of one step, pessimistic, add/remove (whose formulas are those of zero-out)."""
    from dp_accounting.pld import privacy_loss_distribution as pld

    with _quiet():
        return pld.from_gaussian_mechanism(
            noise_multiplier,
            sampling_prob=sampling_rate,
            value_discretization_interval=grid,
            use_connect_dots=True,
        )


def check_delta(delta: float) -> None:
    """Raise AccountingError for a delta that no accountant can be asked about."""
    if not SMALLEST_DELTA <= delta < 1:
        raise AccountingError(
            f"delta: expected a number from {SMALLEST_DELTA} to below 1, got {delta}. Smaller ones drown in rounding."
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Accountants log each order that they leave out; that only loosens their bound."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
