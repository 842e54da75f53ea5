"""Epsilon from events.

Epsilon is what the PLD accountant says (privacy loss distributions, dp-accounting). Two independent accountants check
it: PRV (Opacus) and RDP. When they disagree nothing is reported. An accountant that cannot answer for a history says
so; where that is PLD, the looser RDP is reported. The central limit theorem is no bound and is not here.

    >>> from fractions import Fraction
    >>> from common.privacy.events import SampledGaussian
    >>> one = SampledGaussian(noise_multiplier=1.0, sampling_rate=Fraction(1), steps=1)
    >>> round(epsilon((one,), delta=1e-5), 4)
    4.3772

Longer than 250 lines, because all that is known of the libraries' accountants, and of their flaws, stands here.
"""

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache, reduce
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from common.errors import AccountingError
from common.privacy.events import (
    Event,
    FixedSizeGaussian,
    History,
    RandomizedResponse,
    SampledGaussian,
    SampledLaplace,
    SelectedRun,
    TreeGaussian,
    ZeroConcentrated,
    merged,
)

FINE = 1e-4
COARSE = 1e-3
SMALLEST_DELTA = 1e-10
PRV_ERROR = 0.01
RDP_SLACK = 1.001
PRV_WIDENING = 0.002
RDP_ORDERS = (
    *(1 + x / 10 for x in range(1, 100)), *range(11, 64), 128, 256, 512, 1024,
)  # fmt: skip

LARGEST_GRID = 2**21  # points of a privacy loss distribution: a few seconds and 1 GB; beyond, the grid is coarsened
COARSENED = (1, 10, 100, 1000)
LARGEST_DOMAIN = 5_000_000  # the same for PRV
FOURIER_ERROR = 1e-16  # what composing one more step by FFT adds to delta; at most 0.42e-16 was measured
SUMMING_ERROR = 1e-11  # of a sum of two million masses, as a share of it
FOURIER_SHARE = 0.01  # of delta, beyond which rounding decides
RENYI_ERROR = 1e-13  # rounding of one sampled step's divergence, measured against 60 digits
LARGEST_NOISE = 1e6  # of one plain Gaussian; more noise is counted as this much
LARGEST_EXPONENT = 700  # e^700 is a float
SPARSE_STEPS = 10  # dp-accounting raises the number of points to the power of the steps before it composes


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One history's epsilon by three accountants.

    Args:
        pld: the figure to report, an upper bound, or None where PLD cannot answer.
        prv_low, prv, prv_high: Opacus's PRV interval and estimate, or None where it cannot answer.
        rdp: an upper bound, looser.
        unanswered: why an accountant could not answer, or empty.
    """

    pld: float | None
    prv_low: float | None
    prv: float | None
    prv_high: float | None
    rdp: float
    unanswered: str = ""

    @property
    def reported(self) -> float:
        """The tightest figure that is an upper bound: PLD where it answers, else RDP."""
        return self.rdp if self.pld is None else self.pld

    @property
    def reported_by(self) -> Literal["PLD", "RDP"]:
        """Which accountant `reported` is from."""
        return "RDP" if self.pld is None else "PLD"


@lru_cache(maxsize=4096)
def epsilon(history: History, *, delta: float, grid: float = FINE) -> float:
    """Return an upper bound on epsilon at `delta` for everything in `history`, by PLD.

    Guarantees:
        It never falls when an event is added, and does not depend on the order of events.
        A coarser `grid` gives a larger or equal figure, faster.

    Edge cases:
        empty history                             0
        delta < 1e-10                             raises AccountingError: rounding would decide
        neither Gaussian nor Laplace              raises AccountingError: PLD knows no other event
        more sampled steps than 1e14 delta        raises AccountingError: rounding would decide
        more than two million points              a grid up to a thousand times as coarse: a looser bound
        even so more than two million points      raises AccountingError: there is hardly any noise

    Args:
        history: the account's events.
        delta: in [1e-10, 1).
        grid: step of the discretised privacy loss.

    Source: Doroshenko et al. 2022, https://arxiv.org/abs/2207.04380.
    """
    check_delta(delta)
    if not history:
        return 0.0
    events = merged(history)
    _refuse_strangers(events)
    plain, rest = _plain_gaussian(events)
    allowed = _after_rounding(rest, delta, "PLD")
    total = _distribution_on_some_grid(plain, rest, grid)
    return min(float(total.get_epsilon_for_delta(allowed)), pure_epsilon(events))


def profile(history: History, *, epsilons: npt.NDArray[np.float64], grid: float = COARSE) -> npt.NDArray[np.float64]:
    """Return upper bounds on delta at each of `epsilons` for everything in `history`, by PLD.

    Guarantees:
        No delta is below what rounding may have taken from it.
        Each holds for neighbours in both directions.

    Edge cases:
        empty history                             0 everywhere
        as for `epsilon`                          raises AccountingError

    Args:
        history: the account's events.
        epsilons: at least 0.
        grid: step of the discretised privacy loss.
    """
    if not history:
        return np.zeros(len(epsilons))
    events = merged(history)
    _refuse_strangers(events)
    plain, rest = _plain_gaussian(events)
    total = _distribution_on_some_grid(plain, rest, grid)
    pmfs = [total._pmf_remove, total._pmf_add]  # noqa: SLF001 - their own way takes a loop over all points
    rounding = FOURIER_ERROR * (1 + sum(event.steps for event in rest))
    deltas: npt.NDArray[np.float64] = np.maximum(*(_hockey_stick(pmf, epsilons) for pmf in pmfs)) + rounding
    return np.minimum(deltas, 1.0)


def bound(history: History, *, delta: float, grid: float = FINE) -> float:
    """Return the figure that is reported, without its checks: PLD, or RDP where PLD cannot answer."""
    try:
        return epsilon(history, delta=delta, grid=grid)
    except AccountingError:
        return renyi_epsilon(history, delta=delta)


@lru_cache(maxsize=4096)
def check(history: History, *, delta: float) -> Verdict:
    """Return epsilon by three accountants, or raise AccountingError when they disagree."""
    rdp = renyi_epsilon(history, delta=delta)
    pld: float | None = None
    interval: tuple[float, float, float] | tuple[None, None, None] = (None, None, None)
    silent = []
    try:
        pld = epsilon(history, delta=delta)
    except AccountingError as error:
        silent.append(str(error))
    try:
        interval = prv_interval(history, delta=delta)
    except AccountingError as error:
        silent.append(str(error))
    low, middle, high = interval
    verdict = Verdict(pld=pld, prv_low=low, prv=middle, prv_high=high, rdp=rdp, unanswered=" ".join(silent))
    refuse_disagreement(verdict)
    return verdict


def refuse_disagreement(verdict: Verdict) -> None:
    """Raise AccountingError when three accountants' figures cannot all be right.

    Guarantees:
        Accepted only when, where PLD answers, PLD <= 1.001 RDP and, where PRV answers, the reported figure lies in its
        interval widened by 0.2 % (RDP, which is looser, may lie above it).
        NaN is never accepted.
    """
    pld, low, high = verdict.pld, verdict.prv_low, verdict.prv_high
    if pld is None:
        if not verdict.rdp >= (0.0 if low is None else low * (1 - PRV_WIDENING)):
            raise AccountingError(
                f"Accountants disagree: RDP {verdict.rdp:.6f} is below PRV's {low}. No epsilon is reported."
            )
        return
    if not pld <= RDP_SLACK * verdict.rdp:
        raise AccountingError(
            f"Accountants disagree: PLD {pld:.6f} is above RDP {verdict.rdp:.6f}. No epsilon is reported."
        )
    if low is not None and high is not None and not low * (1 - PRV_WIDENING) <= pld <= high * (1 + PRV_WIDENING):
        raise AccountingError(
            f"Accountants disagree: PLD {pld:.6f} is outside PRV's [{low:.6f}, {high:.6f}]. No epsilon is reported."
        )


def renyi_epsilon(history: History, *, delta: float) -> float:
    """Return epsilon by Rényi differential privacy, an upper bound; infinity where no order bounds it.

    Source: Mironov et al. 2019, https://arxiv.org/abs/1908.10530, with the conversion of Canonne et al. 2020.
    """
    import dp_accounting

    check_delta(delta)
    if not history:
        return 0.0
    events = merged(history)
    with _quiet():
        spent, _ = dp_accounting.rdp.compute_epsilon(RDP_ORDERS, renyi_divergences(events), delta)
    return min(float(spent), pure_epsilon(events))


def renyi_divergences(history: History) -> npt.NDArray[np.float64]:
    """Return the Rényi divergence of a whole history at each of RDP_ORDERS, infinity where it is not bounded.

    Divergences of events with different adjacencies may be added: replace-one implies zero-out.
    """
    total = np.zeros(len(RDP_ORDERS))
    for event in merged(history):
        total += event.steps * _one_divergence(replace(event, steps=1))
    return total


def pure_epsilon(history: History) -> float:
    """Return epsilon at delta 0 by basic composition: infinity unless all events are Laplace or randomised response."""
    return math.fsum(event.steps * _pure(event) for event in merged(history))


def prv_interval(history: History, *, delta: float) -> tuple[float, float, float]:
    """Return lower bound, estimate and upper bound of epsilon by Opacus's PRV accountant.

    Edge cases:
        nothing, or an event that is not Gaussian    raises AccountingError
        a domain of more than five million points    raises AccountingError
        a privacy loss of more than 700              raises AccountingError: its exponential is no float
        more sampled steps than 1e14 delta           raises AccountingError: rounding would decide
        bounds that are not in order, or not finite  raises AccountingError

    Source: Gopi et al. 2021, https://arxiv.org/abs/2106.02848.
    """
    check_delta(delta)
    gaussians = [event for event in merged(history) if isinstance(event, SampledGaussian)]
    if not history or len(gaussians) < len(merged(history)):
        raise AccountingError("PRV cannot answer: it knows Poisson-sampled Gaussians only, and at least one.")
    plain, rest = _plain_gaussian(tuple(gaussians))
    _after_rounding(rest, delta, "PRV")
    steps = [] if plain is None else [(plain, 1.0, 1)]
    steps += [(event.noise_multiplier, _float(event.sampling_rate), event.steps) for event in rest]
    try:
        return _opacus(steps, delta)
    except (ValueError, RuntimeError, ArithmeticError, TypeError) as error:
        raise AccountingError(f"PRV cannot answer: {error or type(error).__name__}.") from error


def check_delta(delta: float) -> None:
    """Raise AccountingError for a delta that no accountant can be asked about."""
    if not SMALLEST_DELTA <= delta < 1:
        raise AccountingError(
            f"delta: expected a number from {SMALLEST_DELTA} to below 1, got {delta}. Smaller ones drown in rounding."
        )


def _opacus(steps: list[tuple[float, float, int]], delta: float) -> tuple[float, float, float]:
    with _quiet():
        from opacus.accountants import PRVAccountant
        from opacus.accountants.analysis.prv import PoissonSubsampledGaussianPRV

        accountant = PRVAccountant()
        accountant.history = steps
        domain = accountant._get_domain(  # noqa: SLF001 - its size, before the memory is taken
            prvs=[PoissonSubsampledGaussianPRV(rate, noise) for noise, rate, _ in steps],
            num_self_compositions=[count for _, _, count in steps],
            eps_error=PRV_ERROR,
            delta_error=delta / 1000,
        )
        if domain.size > LARGEST_DOMAIN:
            raise ValueError(f"it would need {domain.size} points and may have {LARGEST_DOMAIN}")
        if domain.t_max > LARGEST_EXPONENT:
            raise ValueError(f"a privacy loss of {domain.t_max:.0f} is too large for its numbers")
        distribution = accountant._get_dprv(eps_error=PRV_ERROR, delta_error=delta / 1000)  # noqa: SLF001 - its bounds
        low, middle, high = (float(x) for x in distribution.compute_epsilon(delta, delta / 1000, PRV_ERROR))
    if not low <= middle <= high < math.inf:
        raise ValueError(f"its bounds are not in order: {low}, {middle}, {high}")
    return max(low, 0.0), max(middle, 0.0), max(high, 0.0)  # epsilon is not negative, its estimate may be


def _hockey_stick(pmf: Any, epsilons: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The sum of p (1 - e^(epsilon - loss)) over all losses above each epsilon, and what rounding may take from it."""
    dense = pmf.to_dense_pmf()
    masses = dense._probs  # noqa: SLF001 - the points, which it does not offer
    losses = (np.arange(len(masses)) + dense._lower_loss) * dense._discretization  # noqa: SLF001
    masses, losses = masses[losses > 0], losses[losses > 0]
    upper = np.append(np.cumsum(masses[::-1])[::-1], 0.0)
    lower = np.append(np.cumsum((masses * np.exp(-losses))[::-1])[::-1], 0.0)
    first = np.searchsorted(losses, epsilons, side="right")
    # where no loss lies above, e^epsilon may be no float and stands beside a 0
    factors = np.exp(np.minimum(epsilons, LARGEST_EXPONENT))
    finite: npt.NDArray[np.float64] = upper[first] * (1 + SUMMING_ERROR) - lower[first] * factors
    return np.maximum(finite, 0.0) + float(dense._infinity_mass)  # noqa: SLF001


def _plain_gaussian(events: tuple[Any, ...]) -> tuple[float | None, tuple[Any, ...]]:
    """All events without sampling as the noise of one Gaussian, exactly: mu^2 adds up; and the other events."""
    plain = [event for event in events if isinstance(event, SampledGaussian) and _float(event.sampling_rate) == 1.0]
    rest = tuple(event for event in events if event not in plain)
    if not plain:
        return None, rest
    mu = math.sqrt(
        math.fsum(event.steps * (1 / event.noise_multiplier) * (1 / event.noise_multiplier) for event in plain)
    )
    return min(1 / mu, LARGEST_NOISE) if mu > 0 else LARGEST_NOISE, rest


def _after_rounding(events: tuple[Any, ...], delta: float, who: str) -> float:
    """What is left of delta when the rounding of each step composed by FFT is taken off."""
    steps: int = sum(event.steps for event in events)
    if steps * FOURIER_ERROR > FOURIER_SHARE * delta:
        raise AccountingError(
            f"{who} cannot answer: rounding would decide after {steps} steps at delta {delta:g}. Raise delta."
        )
    return delta - steps * FOURIER_ERROR


def _refuse_strangers(events: tuple[Any, ...]) -> None:
    stranger = next((e.mechanism for e in events if not isinstance(e, SampledGaussian | SampledLaplace)), None)
    if stranger is not None:
        raise AccountingError(f"PLD cannot answer: it does not know {stranger} events. RDP does.")


def _distribution_on_some_grid(plain: float | None, events: tuple[Any, ...], grid: float) -> Any:
    """The privacy loss distribution on the grid, or on the first coarser one that fits into the memory."""
    for factor in COARSENED:
        try:
            return _distribution(plain, events, grid * factor)
        except _TooLongError:
            continue
    raise AccountingError("PLD cannot answer: the privacy loss is too large for its grid. Add noise.")


def _distribution(plain: float | None, events: tuple[Any, ...], grid: float) -> Any:
    """The privacy loss distribution of one plain Gaussian, if any, and further events."""
    parts = [] if plain is None else [_one_step(SampledGaussian.mechanism, plain, 1.0, grid)]
    parts += [_composed(event, grid) for event in events]
    return reduce(lambda left, right: left.compose(right), parts)


def _composed(event: SampledGaussian | SampledLaplace, grid: float) -> Any:
    """The privacy loss distribution of one event, refused before it takes too much memory."""
    noise = event.scale if isinstance(event, SampledLaplace) else event.noise_multiplier
    one = _one_step(event.mechanism, noise, _float(event.sampling_rate), grid)
    if event.steps > SPARSE_STEPS:
        pmfs = [one._pmf_remove, one._pmf_add]  # noqa: SLF001 - the points, which it does not offer
        dense = [pmf.to_dense_pmf() for pmf in pmfs]
        for pmf in dense:
            _refuse_long(_points(pmf._probs, event.steps))  # noqa: SLF001
        one = type(one)(*dense[: 1 if one._symmetric else 2])  # noqa: SLF001
    return one.self_compose(event.steps)


def _points(masses: npt.NDArray[np.float64], steps: int) -> float:
    """About how many points `steps` compositions take: where dp-accounting's Chernoff bounds truncate the tails."""
    places = np.arange(len(masses))
    variance = steps * float(np.average((places - np.average(places, weights=masses)) ** 2, weights=masses))
    log_mass = 35.0  # tails of 1e-15
    lowest, highest = 1 / len(masses), 20 / len(masses)  # the orders that it tries
    order = min(max(math.sqrt(2 * log_mass / max(variance, 1e-300)), lowest), highest)
    return min(2 * (variance * order / 2 + log_mass / order), steps * len(masses))


class _TooLongError(AccountingError):
    """A privacy loss distribution of too many points."""


def _refuse_long(points: float) -> None:
    if not points <= LARGEST_GRID:
        raise _TooLongError(f"{points:.0f} points")


@lru_cache(maxsize=64)
def _one_step(mechanism: str, noise: float, sampling_rate: float, grid: float) -> Any:
    """The privacy loss distribution of one step, pessimistic, add/remove (whose formulas are those of zero-out)."""
    from dp_accounting.pld import privacy_loss_distribution as pld

    mu = 1 / noise if noise > 0 else math.inf
    with _quiet():
        if mechanism == SampledLaplace.mechanism:
            _refuse_long(2 * mu / grid)
            return pld.from_laplace_mechanism(
                noise, sampling_prob=sampling_rate, value_discretization_interval=grid, use_connect_dots=True
            )
        _refuse_long((20 * mu + mu * mu) / grid)  # both neighbours, ten deviations either side
        return pld.from_gaussian_mechanism(
            noise, sampling_prob=sampling_rate, value_discretization_interval=grid, use_connect_dots=True
        )


@lru_cache(maxsize=1024)
def _one_divergence(event: Event) -> npt.NDArray[np.float64]:
    """The Rényi divergence of one step at each of RDP_ORDERS."""
    import dp_accounting

    relations = dp_accounting.NeighboringRelation
    relation = relations.REPLACE_SPECIAL if event.adjacency == "zero-out" else relations.REPLACE_ONE
    if isinstance(event, SampledLaplace) and event.sampling_rate < 1:
        relation = relations.REPLACE_ONE  # of the randomised response that stands for it
    try:
        with _quiet():
            accountant = dp_accounting.rdp.RdpAccountant(RDP_ORDERS, relation)
            accountant.compose(_in_their_words(event))
            divergences = accountant.rdp + (0.0 if _is_exact(event) else RENYI_ERROR)
    except (ArithmeticError, ValueError):  # next to no noise: its square is 0
        divergences = np.full(len(RDP_ORDERS), np.inf)
    divergences = np.where(divergences >= 0, divergences, np.inf)  # NaN, or less than rounding explains
    divergences.setflags(write=False)
    return divergences


def _in_their_words(event: Event) -> Any:
    """One step as an event of dp-accounting."""
    from dp_accounting import dp_event as dp

    words: Any
    match event:
        case SampledGaussian():
            words = dp.PoissonSampledDpEvent(_float(event.sampling_rate), dp.GaussianDpEvent(event.noise_multiplier))
        case SampledLaplace() if event.sampling_rate == 1:
            words = dp.LaplaceDpEvent(event.scale)
        case SampledLaplace():  # a pure mechanism post-processes randomised response (Kairouz et al. 2015, Theorem 2)
            pure = _pure(event)
            known = pure <= LARGEST_EXPONENT
            words = dp.RandomizedResponseDpEvent(2 / (1 + math.exp(pure)), 2) if known else dp.NonPrivateDpEvent()
        case ZeroConcentrated():
            words = dp.ZCDpEvent(event.rho)
        case TreeGaussian():
            words = dp.SingleEpochTreeAggregationDpEvent(event.noise_multiplier, event.leaves)
        case FixedSizeGaussian():
            gaussian = dp.GaussianDpEvent(event.noise_multiplier)
            words = dp.SampledWithoutReplacementDpEvent(event.source_size, event.sample_size, gaussian)
        case RandomizedResponse():
            words = dp.RandomizedResponseDpEvent(event.noise_parameter, event.buckets)
        case SelectedRun():
            run = dp.ComposedDpEvent([dp.SelfComposedDpEvent(_in_their_words(e), e.steps) for e in merged(event.run)])
            shape = {"logarithmic": 0.0, "geometric": 1.0, "poisson": math.inf}[event.distribution]
            words = dp.RepeatAndSelectDpEvent(run, event.mean_runs, shape)
    return words


def _is_exact(event: Event) -> bool:
    """Whether the divergence is a closed formula rather than a sum of thousands of logarithms."""
    return isinstance(event, ZeroConcentrated | TreeGaussian) or (
        isinstance(event, SampledGaussian) and event.sampling_rate == 1
    )


def _pure(event: Event) -> float:
    """Epsilon of one step at delta 0."""
    match event:
        case SampledLaplace():  # log(1 + q (e^(1/b) - 1)), Balle et al. 2018, Theorem 8
            rate, loss = _float(event.sampling_rate), 1 / event.scale
            return loss if rate == 1 or loss > LARGEST_EXPONENT else math.log1p(rate * math.expm1(loss))
        case RandomizedResponse():  # the true answer is (k (1 - p) + p) / p times as likely
            return math.log1p(event.buckets * (1 - event.noise_parameter) / event.noise_parameter)
    return math.inf


def _float(rate: Fraction) -> float:
    return max(float(rate), 1e-30)  # a rate of 0 would cost nothing


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
