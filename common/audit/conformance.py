"""Checks of movements against the plan: how large the noise is, whether it is fresh, and what a canary adds.

Shapes: K views, R rounds, M canaries, D other weights, L steps a round. Figures are in units of what one canary may add
to a step.

Each check has a share of the false alarms that an honest run may raise (`FALSE_ALARMS`). Its limits are quantiles of
the exact distribution of what it measures, or Bonferroni's sum over many of them: nothing rests on a large sample.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.special import betainc, betaincinv
from scipy.stats import chi2

from common.audit.check import FALSE_ALARMS, ROUNDING, Check
from common.audit.observations import Floats, Observations
from common.audit.sampling import sampling
from common.privacy.events import SampledGaussian

FEWEST = 2  # coordinates, of which one says nothing of a correlation


@dataclass(frozen=True, kw_only=True)
class _Alike:
    """The largest correlation among some pairs of rounds, by itself how unlikely, and over how many coordinates."""

    p_value: float
    correlation: float
    size: int
    pairs: int


def conformance(observations: Observations, mechanism: SampledGaussian) -> tuple[Check, ...]:
    """Return what movements say of the plan's noise, sampling and contributions.

    Edge cases:
        nothing to measure (no canary in, none out, one round)    the check is left out
    """
    variance = observations.steps * mechanism.noise_multiplier**2
    found = [_noise(observations, variance), _body(observations, variance), _freshness(observations)]
    return tuple(check for check in (*found, *sampling(observations, mechanism)) if check is not None)


def _noise(observations: Observations, variance: float) -> Check | None:
    """Of excluded canaries, whose weights nothing but noise moves."""
    out_RN = np.moveaxis(observations.moves_KRM, 1, 0)[:, ~observations.is_in_KM]
    if out_RN.size == 0:
        return None
    return _size("noise", out_RN, variance, FALSE_ALARMS["noise"], where="on excluded canaries")


def _body(observations: Observations, variance: float) -> Check | None:
    """Of each parameter of the model's body; the one that is furthest off is shown."""
    parts = {name: moves for name, moves in observations.body_KRD.items() if moves.size}
    if not parts:
        return None
    name = "noise on the body"
    share = FALSE_ALARMS[name] / len(parts)
    found = [_size(name, moves, variance, share, where=f"on {part}") for part, moves in parts.items()]
    return max(found, key=lambda check: (check.is_refuted, abs(check.measured - 1)))


def _size(name: str, moves: Floats, variance: float, level: float, *, where: str) -> Check:
    """A sum of squares is chi-square, two-sided."""
    measured = float(np.sqrt(np.mean(np.square(moves)) / variance))
    low, high = (float(np.sqrt(chi2.ppf(p, moves.size) / moves.size)) for p in (level / 2, 1 - level / 2))
    low, high = low * (1 - ROUNDING), high * (1 + ROUNDING)
    return Check(
        name=name,
        is_refuted=not low <= measured <= high,
        measured=measured,
        expected=1.0,
        low=low,
        high=high,
        says=f"The noise {where} is {measured:.4g} of what was planned.",
    )


def _freshness(observations: Observations) -> Check | None:
    """The correlation of any two rounds' noise, in a view and between views.

    Of independent normal vectors in D dimensions, its square is Beta(1/2, (D - 1)/2).
    """
    found = [_most_alike(left_RD, right_RD, is_same=is_same) for left_RD, right_RD, is_same in _noises(observations)]
    pairs = sum(alike.pairs for alike in found)
    if pairs == 0:
        return None
    worst = min((alike for alike in found if alike.pairs), key=lambda alike: (alike.p_value, -abs(alike.correlation)))
    limit = float(np.sqrt(1 - betaincinv((worst.size - 1) / 2, 0.5, FALSE_ALARMS["freshness"] / pairs)))
    return Check(
        name="freshness",
        is_refuted=worst.p_value * pairs <= FALSE_ALARMS["freshness"],
        measured=worst.correlation,
        expected=0.0,
        low=-limit,
        high=limit,
        says=f"The likest two of {pairs} pairs of rounds have noise with a correlation of {worst.correlation:+.3f}.",
    )


def _noises(observations: Observations) -> Iterator[tuple[Floats, Floats, bool]]:
    """Two views' noise on the same coordinates, or twice the same view's."""
    moves_KRM, is_out_KM = observations.moves_KRM, ~observations.is_in_KM
    views = len(moves_KRM)
    for k in range(views):
        yield moves_KRM[k][:, is_out_KM[k]], moves_KRM[k][:, is_out_KM[k]], True
    for k, other in combinations(range(views), 2):
        is_out_M = is_out_KM[k] & is_out_KM[other]
        yield moves_KRM[k][:, is_out_M], moves_KRM[other][:, is_out_M], False
    if not observations.body_KRD:
        return
    body_KRD = np.concatenate(list(observations.body_KRD.values()), axis=2)
    for k in range(len(body_KRD)):
        yield body_KRD[k], body_KRD[k], True
    for k, other in combinations(range(len(body_KRD)), 2):
        yield body_KRD[k], body_KRD[other], False


def _most_alike(left_RD: Floats, right_RD: Floats, *, is_same: bool) -> _Alike:
    rounds, size = left_RD.shape
    where = np.triu_indices(rounds, 1) if is_same else np.indices((rounds, rounds)).reshape(2, -1)
    if size < FEWEST or len(where[0]) == 0:
        return _Alike(p_value=1.0, correlation=0.0, size=size, pairs=0)
    found = (_unit(left_RD) @ _unit(right_RD).T)[where[0], where[1]]
    largest = float(found[np.argmax(np.abs(found))])
    p_value = float(betainc((size - 1) / 2, 0.5, max(1 - largest**2, 0.0)))
    return _Alike(p_value=p_value, correlation=largest, size=size, pairs=len(found))


def _unit(moves_RD: Floats) -> Floats:
    """Rows of length 1; where there is no noise there is nothing to compare."""
    norms_R1 = np.linalg.norm(moves_RD, axis=1, keepdims=True)
    return np.asarray(np.divide(moves_RD, norms_R1, out=np.zeros_like(moves_RD), where=norms_R1 > 0), np.float64)
