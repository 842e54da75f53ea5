"""The optimisers that a scenario can name, for clients and for the server.

All are `torch.optim`'s; the server feeds them the mean update with its sign turned, as in Reddi et al. 2021,
https://arxiv.org/abs/2003.00295. Their methods are called without the marks that they carry for PyTorch's compiler:
to read a mark, each process would import the compiler, which takes 1.4 seconds, and nothing is compiled here. All
parameters are moved by few calls (`foreach`), bit for bit as one by one.
"""

from collections.abc import Callable, Iterable
from functools import wraps
from inspect import unwrap
from typing import Any

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
        return _Adam(parameters, lr=table.learning_rate, betas=(0.9, 0.99), eps=eps, foreach=True)
    momentum = table.momentum if table.optimizer == "momentum" else 0.0
    return _Sgd(parameters, lr=table.learning_rate, momentum=momentum, foreach=True)


def _unmarked(method: Callable[..., Any]) -> Callable[..., Any]:
    """An optimiser's method as it was written, under `no_grad`, which its marks would see to."""
    plain = unwrap(method)

    @wraps(plain)
    def call(*args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return plain(*args, **kwargs)

    return call


class _Sgd(torch.optim.SGD):
    """`torch.optim.SGD` without the compiler."""

    step = _unmarked(torch.optim.SGD.step)
    add_param_group = _unmarked(torch.optim.SGD.add_param_group)
    zero_grad = _unmarked(torch.optim.SGD.zero_grad)


class _Adam(torch.optim.Adam):
    """`torch.optim.Adam` without the compiler."""

    step = _unmarked(torch.optim.Adam.step)
    add_param_group = _unmarked(torch.optim.Adam.add_param_group)
    zero_grad = _unmarked(torch.optim.Adam.zero_grad)
