"""The optimisers that a scenario can name, for clients and for the server.

All are `torch.optim`'s; the server feeds them the mean update with its sign turned, as in Reddi et al. 2021,
https://arxiv.org/abs/2003.00295.
"""

from collections.abc import Iterable

import torch
from torch.nn import Parameter

from common.config import Server, Training

SERVER_ADAM_EPS = 1e-3


def client_optimizer(parameters: Iterable[Parameter], training: Training) -> torch.optim.Optimizer:
    """Return a client's optimiser with no state of its own yet."""
    return _optimizer(parameters, training, eps=1e-8)


def server_optimizer(parameters: Iterable[Parameter], server: Server) -> torch.optim.Optimizer:
    """Return the server's optimiser on the mean update."""
    return _optimizer(parameters, server, eps=SERVER_ADAM_EPS)


def _optimizer(parameters: Iterable[Parameter], table: Training | Server, *, eps: float) -> torch.optim.Optimizer:
    if table.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=table.learning_rate, betas=(0.9, 0.99), eps=eps)
    momentum = table.momentum if table.optimizer == "momentum" else 0.0
    return torch.optim.SGD(parameters, lr=table.learning_rate, momentum=momentum)
