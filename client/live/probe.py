"""Whether a canary could pull at all, at the weights that an order starts from and at those that it ended with.

Shapes: P parameters.

Whoever sends weights at which the model's body overflows silences the canaries: a gradient that is not finite adds
nothing. A round in which they were silent says nothing of the owner's training, and must not be held against it.
"""

import math
from functools import lru_cache

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from client.live.room import record_shape
from common import flat
from common.canaries import canary_rows
from common.config import Scenario
from common.messages import FloatArray
from common.model_tables import Transformer
from common.models.registry import model_of

CLOSE = 1e-5  # of float32


def can_pull(scenario: Scenario, weights_P: FloatArray) -> bool:
    """Say whether a canary's gradient is finite at these weights, and what it should be at its own one.

    Plain PyTorch, on a model of its own: nothing of the training that is audited is used.
    """
    assert scenario.audit is not None  # noqa: S101 - there is room
    model = _model(scenario)
    flat.load(model, torch.from_numpy(weights_P))
    parameters = list(model.parameters())
    loss = functional.cross_entropy(model(_canary(scenario)), torch.zeros(1, dtype=torch.long))
    gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
    pull = float(gradients[-1].flatten()[0])
    pulls = math.isclose(-pull, scenario.audit.gradient_norm, rel_tol=CLOSE)
    return pulls and all(bool(part.isfinite().all()) for part in gradients)


@lru_cache(maxsize=1)
def _model(scenario: Scenario) -> nn.Module:
    return model_of(scenario).train()


def _canary(scenario: Scenario) -> torch.Tensor:
    """The first canary, of the shape and type of the scenario's records."""
    is_text = isinstance(scenario.model, Transformer)
    dtype = np.dtype(np.int64 if is_text else np.float32)
    row = canary_rows(np.zeros(1, np.int64), np.ones(1, bool), shape=record_shape(scenario), dtype=dtype)
    return torch.from_numpy(row)
