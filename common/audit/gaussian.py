"""The Gaussian estimate of epsilon: how far apart included and excluded canaries are.

Shapes: K views, R rounds, M canaries.

It is an estimate and no bound. It takes for granted that a canary's whole movement is normal with the same spread
whether it is in or out, so that telling them apart is telling N(0, 1) from N(mu, 1). Under sampling the movement of an
included canary is a mixture, and real epsilons are then larger than what is found here.

Source: Andrew et al. 2023, Section 4, https://arxiv.org/abs/2302.03098, where the canaries are clients.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from common.audit.observations import Observations
from common.audit.trade_off import gaussian_epsilon

FEWEST = 3  # canaries in, and as many out


@dataclass(frozen=True, kw_only=True)
class Separation:
    """How far apart included and excluded canaries are.

    Args:
        t: the difference of their means over its standard error.
        standard_error: of the difference, in standard deviations of an excluded canary; 0 without any spread.
        freedom: degrees of freedom of that standard deviation.
    """

    t: float
    standard_error: float
    freedom: int


def separation(observations: Observations) -> Separation | None:
    """Return how far apart they are by the sums of their movements, or None with fewer than three of either."""
    total_KM = observations.moves_KRM.sum(axis=1)
    is_in_KM = observations.is_in_KM
    included, excluded = total_KM[is_in_KM], total_KM[~is_in_KM]
    if min(len(included), len(excluded)) < FEWEST:
        return None
    spread = float(excluded.std(ddof=1))
    difference = float(included.mean() - excluded.mean())
    if not spread > 0:
        return Separation(t=np.inf if difference > 0 else 0.0, standard_error=0.0, freedom=len(excluded) - 1)
    widened = max(float(included.std(ddof=1)) / spread, 1.0)  # sampling adds to the spread of the included
    error = float(np.sqrt(widened**2 / len(included) + 1 / len(excluded)))
    return Separation(t=difference / spread / error, standard_error=error, freedom=len(excluded) - 1)


def least_mu(found: Separation, *, level: float) -> float:
    """Return a lower bound on mu that is too high with a probability of `level`, if all is Gaussian.

    Edge cases:
        excluded canaries without any spread    infinity, or 0 if the included do not differ

    Source: the distribution of Student's t beside a true difference, Abramowitz and Stegun, 26.7.10.
    """
    if found.standard_error == 0:
        return found.t
    shift = found.t * (1 - 1 / (4 * found.freedom))
    width = -float(ndtri(level)) * np.sqrt(1 + found.t**2 / (2 * found.freedom))
    return float((shift - width) * found.standard_error)


def least_epsilon(observations: Observations, *, delta: float, level: float) -> float:
    """Return the estimate's lower confidence bound on epsilon.

    Edge cases:
        fewer than three canaries in, or out    0
        no noise at all                         infinity
    """
    found = separation(observations)
    return 0.0 if found is None else gaussian_epsilon(least_mu(found, level=level), delta=delta)
