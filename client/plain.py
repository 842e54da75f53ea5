"""Plain local training, for runs without privacy and for client-level privacy.

With unit `none` the batches follow from the run's seed, so that a run repeats bit for bit. With unit `client` they do
not: what is sampled from private data is as secret as noise.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from common.config import Precision
from common.devices import autocast
from common.shards import Shard


def steps(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    shard: Shard,
    *,
    count: int,
    batch_size: int,
    seed: int,
    precision: Precision = "float32",
) -> None:
    """Take `count` steps on shuffled batches; the last batch of an epoch may be smaller.

    Guarantees:
        The same model, shard and seed give bit-equal weights.
        A batch of the whole shard or more gives full-batch gradient descent.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    device, lower = parameters[0].device, autocast(parameters[0].device, precision)
    batches = _batches(len(shard), batch_size, np.random.default_rng(seed))
    for _, rows in zip(range(count), batches, strict=False):
        features = torch.from_numpy(shard.features_ND[rows]).to(device)
        labels = torch.from_numpy(shard.labels_N[rows]).to(device)
        with lower():
            loss = functional.cross_entropy(model(features), labels)
        gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _batches(records: int, size: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Endless epochs over `records`, each in a new order."""
    while True:
        order = generator.permutation(records)
        for start in range(0, records, size):
            yield np.sort(order[start : start + size])
