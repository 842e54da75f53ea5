"""The verdict of an audit: what refutes a claim, and how large an epsilon the attack proves by itself.

    observations, claim -> rigorous layers (f-DP, Steinke), an estimate (Gaussian), checks -> findings

The verdict is their union. "Not refuted" means that this attack found nothing, and no more.
"""

import math
from dataclasses import replace

from common.audit import gaussian
from common.audit.charges import added_up, bookkeeping
from common.audit.check import FALSE_ALARMS
from common.audit.conformance import conformance
from common.audit.findings import BOUNDS_CONFIDENCE, CONFIDENCE, Findings, Layer, LowerBounds, in_words
from common.audit.observations import Claim, Observations, scores
from common.audit.one_run import (
    Attack,
    attacks,
    gaussian_bound,
    largest_refuted,
    least_canaries,
    refuting,
    steinke_bound,
    steinke_refuting,
    would_do,
)
from common.audit.trade_off import TradeOff, of_history
from common.errors import BadInputError
from common.privacy.accounting import COARSE, bound
from common.privacy.events import History, SampledGaussian

__all__ = ["CONFIDENCE", "Findings", "in_words", "judge", "refuse_too_few"]

LEVEL = 1 - BOUNDS_CONFIDENCE
LARGEST_EPSILON = 100.0  # larger bounds are reported as this: it is no protection, and infinity is no JSON
LEAST_NOISE, MOST_NOISE = 1 / 8, 64.0  # of the charged noise: the family among which the f-DP bound is sought
NOISE_PRECISION = 1.03
ROUGH = 1e-2  # of the search where there is little noise: ten times cheaper than the coarse grid, and on the safe side


def judge(observations: Observations, claim: Claim) -> Findings:
    """Return the verdict on a claim.

    Guarantees:
        An honest run is refuted with a probability of at most 1e-4, as far as its noise and its canaries' movements
        are as normal as the estimate takes them to be.

    Edge cases:
        no claim (unit none)                   bounds only; nothing is checked or refuted
        no noise on any excluded canary        the Gaussian bound is 100, the largest reported

    Raises:
        BadInputError: there are too few canaries for the claim.
    """
    is_in_KM = observations.is_in_KM
    if claim.mechanism is not None:
        refuse_too_few(claim.events, canaries=is_in_KM.size)
    found = attacks(scores(observations, claim.mechanism).ravel(), is_in_KM.ravel())
    layers, bounds = _layers(observations, claim, found)
    shown = _telling(found)
    checks = () if claim.mechanism is None else (*conformance(observations, claim.mechanism), *bookkeeping(claim))
    return Findings(
        claimed_epsilon=claim.epsilon,
        delta=claim.delta,
        canaries=int(is_in_KM.size),
        included=int(is_in_KM.sum()),
        guesses=shown.guesses,
        correct=shown.correct,
        lower_bounds=bounds,
        layers=layers,
        checks=checks,
    )


def refuse_too_few(history: History, *, canaries: int) -> None:
    """Raise BadInputError where even an attack that is always right would not find a bound above the claim.

    Args:
        history: everything that is charged to one account.
        canaries: of all views.
    """
    claim = of_history(added_up(history))
    if would_do(claim, canaries=canaries, level=LEVEL):
        return
    least = least_canaries(claim, level=LEVEL)
    if least is None:
        raise BadInputError(
            "canaries: so large an epsilon cannot be refuted by any number of canaries. Lower privacy.epsilon."
        )
    raise BadInputError(
        f"canaries: expected at least {least} for so large an epsilon, got {canaries}: fewer could not refute it "
        f"even if every guess were right. Ask for more (--canaries; in a live audit scenario and policy say how many), "
        f"or lower privacy.epsilon."
    )


def _layers(
    observations: Observations, claim: Claim, found: tuple[Attack, ...]
) -> tuple[tuple[Layer, ...], LowerBounds]:
    steinke = steinke_bound(found, delta=claim.delta, level=LEVEL)
    f_dp, family = _f_dp_bound(found, claim)
    estimate = gaussian.least_epsilon(observations, delta=claim.delta, level=LEVEL)
    bounds = LowerBounds(
        f_dp=min(f_dp, LARGEST_EPSILON), steinke=min(steinke, LARGEST_EPSILON), gaussian=min(estimate, LARGEST_EPSILON)
    )
    is_refuted = _refuted(observations, claim, found)
    says = {
        "f-DP": f"Epsilon is at least {_figure(f_dp)} at {BOUNDS_CONFIDENCE:.0%}, among {family}.",
        "Steinke": f"Epsilon is at least {_figure(steinke)} at {BOUNDS_CONFIDENCE:.0%}, whatever the mechanism.",
        "Gaussian": f"Epsilon is at least {_figure(estimate)} at {BOUNDS_CONFIDENCE:.0%}, if movements are normal.",
    }
    layers = tuple(
        Layer(
            name=name,
            kind="estimate" if name == "Gaussian" else "rigorous",
            is_refuted=is_refuted.get(name, False),
            says=sentence,
        )
        for name, sentence in says.items()
    )
    return layers, bounds


def _refuted(observations: Observations, claim: Claim, found: tuple[Attack, ...]) -> dict[str, bool]:
    """Which layers refute the claim, each at its share of the false alarms."""
    if claim.mechanism is None or claim.epsilon is None:
        return {}
    epsilon, delta = claim.epsilon, claim.delta
    curve = of_history(added_up(claim.events))
    pair = steinke_refuting(found, epsilon=epsilon, delta=delta, level=FALSE_ALARMS["Steinke"])
    return {
        "f-DP": refuting(curve, found, level=FALSE_ALARMS["f-DP"]) is not None,
        "Steinke": pair is not None,
        "Gaussian": gaussian.least_epsilon(observations, delta=delta, level=FALSE_ALARMS["Gaussian"]) > epsilon,
    }


def _f_dp_bound(found: tuple[Attack, ...], claim: Claim) -> tuple[float, str]:
    """The largest epsilon that is refuted, and among what: mechanisms like the one charged but for their noise."""
    history = tuple(event for event in added_up(claim.events) if isinstance(event, SampledGaussian))
    if claim.mechanism is None or not history:
        return gaussian_bound(found, delta=claim.delta, level=LEVEL), "Gaussian mechanisms"
    factor = largest_refuted(
        lambda factor: refuting(_roughly(_with_noise(history, 1 / factor)), found, level=LEVEL) is not None,
        low=1 / MOST_NOISE,
        high=1 / LEAST_NOISE,
        precision=NOISE_PRECISION,
    )
    family = "mechanisms like the one charged, whatever their noise"
    return (bound(_with_noise(history, 1 / factor), delta=claim.delta, grid=COARSE) if factor else 0.0), family


def _roughly(history: tuple[SampledGaussian, ...]) -> TradeOff:
    """The claim on a grid that is coarser the less noise there is: the longer its privacy loss distribution."""
    noise = min(event.noise_multiplier for event in history)
    return of_history(history, grid=min(max(ROUGH / noise**2, COARSE), ROUGH))


def _with_noise(history: tuple[SampledGaussian, ...], factor: float) -> tuple[SampledGaussian, ...]:
    return tuple(replace(event, noise_multiplier=event.noise_multiplier * factor) for event in history)


def _telling(found: tuple[Attack, ...]) -> Attack:
    """The attack that is the most standard deviations above chance."""
    return max(found, key=lambda attack: (2 * attack.correct - attack.guesses) / math.sqrt(max(attack.guesses, 1)))


def _figure(epsilon: float) -> str:
    return f"{epsilon:.3g}" if epsilon < LARGEST_EPSILON else f"{LARGEST_EPSILON:.0f}, if not more,"
