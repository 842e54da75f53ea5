"""Membership inference: was this record among those that the model was trained on?

Shapes: S shadow models, M models, N records.

Each model takes its turn as the target, and the others are its shadows. A score is higher where membership is more
likely; all that is asked of a model is how sure it is of a record's class.
"""

import numpy as np
import numpy.typing as npt

from simulations.attack.roc import Curve, trace

Confidences = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_LEAST = 1e-12  # a variance that one can divide by


def by_loss(confidence_MN: Confidences, is_in_MN: Mask) -> Curve:
    """Return the curve of the loss threshold: what a model is surer of, it was rather trained on.

    Confidence stands for the loss: cross-entropy is log(1 + exp(-confidence)), so that they order records alike.

    Source: Yeom et al. 2018, https://arxiv.org/abs/1709.01604.
    """
    return trace(confidence_MN[is_in_MN], confidence_MN[~is_in_MN])


def by_likelihood_ratio(confidence_MN: Confidences, is_in_MN: Mask) -> Curve:
    """Return the curve of the likelihood-ratio attack, in which every model is the target once."""
    models = np.arange(len(confidence_MN))
    score_MN = np.stack(
        [
            log_ratios(confidence_MN[target], confidence_MN[models != target], is_in_MN[models != target])
            for target in models
        ]
    )
    return trace(score_MN[is_in_MN], score_MN[~is_in_MN])


def log_ratios(target_N: Confidences, confidence_SN: Confidences, is_in_SN: Mask) -> Confidences:
    """Return for each record the log likelihood ratio of membership, as shadow models tell it.

    A record's confidence is Gaussian around a centre of its own. With few shadows only that centre is estimated for
    each record: how far membership moves it, and the two variances, are pooled over all records.

    Guarantees:
        A record of which every shadow was trained, or none, has a score too.

    Edge cases:
        shadows that agree on everything   scores are finite

    Args:
        target_N: the attacked model's confidences.
        confidence_SN: the shadows'.
        is_in_SN: which shadow was trained on which record.

    Source: Carlini et al. 2022, Algorithm 1, https://arxiv.org/abs/2112.03570; pooled because shadows are few.
    """
    deviation_SN = is_in_SN - is_in_SN.mean(axis=0)
    gap = (deviation_SN * confidence_SN).sum() / max((deviation_SN**2).sum(), _LEAST)  # least squares, within records
    centre_N = (confidence_SN - gap * is_in_SN).mean(axis=0)
    residual_SN = confidence_SN - gap * is_in_SN - centre_N
    return _log_density(target_N, centre_N + gap, residual_SN, is_in_SN) - _log_density(
        target_N, centre_N, residual_SN, ~is_in_SN
    )


def _log_density(target_N: Confidences, mean_N: Confidences, residual_SN: Confidences, chosen_SN: Mask) -> Confidences:
    """A Gaussian's log density, up to a constant; its variance is that of the chosen residuals."""
    freedom = chosen_SN.sum() * max(1 - 1 / len(residual_SN), _LEAST)  # each record's centre costs one shadow
    variance = max((residual_SN[chosen_SN] ** 2).sum() / max(freedom, _LEAST), _LEAST)
    log_density_N: Confidences = -((target_N - mean_N) ** 2) / (2 * variance) - np.log(variance) / 2
    return log_density_N
