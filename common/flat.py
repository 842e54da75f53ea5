"""A model's parameters as one flat vector, and back.

Shapes: P is the number of parameters. The order is that of `model.parameters()`; buffers do not travel.
"""

import torch
from torch import Tensor, nn


def size(model: nn.Module) -> int:
    """Return P."""
    return sum(parameter.numel() for parameter in model.parameters())


def flatten(model: nn.Module) -> Tensor:
    """Return a copy of all parameters, (P,) float32 on the CPU; `load` brings them back bit for bit."""
    with torch.no_grad():
        return torch.cat([parameter.reshape(-1) for parameter in model.parameters()]).cpu()


def load(model: nn.Module, flat_P: Tensor) -> None:
    """Copy a flat vector into a model's parameters; ValueError when it does not fit."""
    if flat_P.numel() != size(model):
        raise ValueError(f"weights: expected {size(model)} numbers, got {flat_P.numel()}")
    with torch.no_grad():
        start = 0
        for parameter in model.parameters():
            parameter.copy_(flat_P[start : start + parameter.numel()].view_as(parameter))
            start += parameter.numel()
