"""What epsilon and delta mean in plain numbers: the best that any attack can do.

    >>> import math
    >>> round(largest_posterior(math.log(3)), 4)
    0.75
    >>> round(most_hits([(math.log(9), 0.0)], 0.05), 4)  # 9 * 0.05, below 1 - 0.95 / 9
    0.45

Source: the testing region of Kairouz et al. 2015, https://arxiv.org/abs/1311.0776.
"""

import math
from collections.abc import Sequence

Pair = tuple[float, float]  # epsilon and delta that hold; several may hold at once

FALSE_POSITIVES = 0.01  # at which attacks are compared
_LARGEST = 700.0  # beyond it e^x is no float, and nothing is bounded anyhow


def largest_posterior(epsilon: float) -> float:
    """Return how sure an even guess can become by epsilon alone: e^epsilon / (1 + e^epsilon).

    Delta adds the chance, of its own order, that the guess becomes surer than that.
    """
    return 1 / (1 + math.exp(-max(epsilon, -_LARGEST)))


def best_guess(pairs: Sequence[Pair]) -> float:
    """Return how often a guess at even odds can be right: at most (e^epsilon + delta) / (1 + e^epsilon)."""
    return min(largest_posterior(loss) + delta * largest_posterior(-loss) for loss, delta in pairs)


def most_hits(pairs: Sequence[Pair], false_positives: float = FALSE_POSITIVES) -> float:
    """Return the highest true-positive rate that a test with this rate of false positives can reach."""
    limits = [1.0]
    for loss, delta in pairs:
        factor = math.exp(min(loss, _LARGEST))
        limits += [factor * false_positives + delta, 1 - (1 - delta - false_positives) / factor]
    return min(limits)
