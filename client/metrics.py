"""How well the incoming model does on the client's own records: one noised count.

Shapes: N records, U units.

It leaves only where the plan charged for it: metrics on private data are withheld by default.
"""

import numpy as np
import torch
from torch import nn

from common.privacy.entropy import Entropy
from common.shards import Shard


def noised_correct(
    model: nn.Module, shard: Shard, *, noise_multiplier: float, physical_batch: int, entropy: Entropy
) -> float:
    """Return how many of a client's units the model gets right, with noise.

    Guarantees:
        The count under the noise moves by at most 1 when one unit is zeroed: a record counts 0 or 1, a person the mean
        over its records.
        The noise is Gaussian with mean 0 and standard deviation `noise_multiplier`, in double precision, and the sum is
        rounded once, to single precision.
        The model comes back as it was: weights, gradients, mode and random state.

    Args:
        model: what is measured.
        shard: the client's records; its `units_N` says whether persons are counted.
        noise_multiplier: in units of the sensitivity, which is 1.
        physical_batch: how many records are in memory at once.
        entropy: the secret stream of this count alone.
    """
    return float(np.float32(correct(model, shard, physical_batch=physical_batch) + noise_multiplier * _one(entropy)))


def correct(model: nn.Module, shard: Shard, *, physical_batch: int) -> float:
    """Return how many records the model gets right, or the sum over persons of each one's share. It must not leave."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        parts = [_is_right(model, shard, start, physical_batch) for start in range(0, len(shard), physical_batch)]
    model.train(was_training)
    right_N = np.concatenate(parts)
    if shard.units_N is None:
        return float(right_N.sum())
    _, person_N, records_U = np.unique(shard.units_N, return_inverse=True, return_counts=True)
    return float((np.bincount(person_N, weights=right_N) / records_U).sum())


def _is_right(model: nn.Module, shard: Shard, start: int, size: int) -> np.ndarray:
    """For some neighbours, whether the model's first choice is the label; (B,) of booleans."""
    rows = slice(start, start + size)
    features = torch.from_numpy(np.array(shard.features_ND[rows])).to(next(model.parameters()).device)
    is_right: np.ndarray = model(features).argmax(dim=1).cpu().numpy() == shard.labels_N[rows]
    return is_right


def _one(entropy: Entropy) -> float:
    return float(entropy.normal(1)[0])
