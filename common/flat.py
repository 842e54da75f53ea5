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
    parameters = list(model.parameters())
    sizes = [parameter.numel() for parameter in parameters]
    if flat_P.numel() != sum(sizes):
        raise ValueError(f"weights: expected {sum(sizes)} numbers, got {flat_P.numel()}")
    with torch.no_grad():
        for parameter, part in zip(parameters, torch.split(flat_P, sizes), strict=True):
            parameter.copy_(part.view(parameter.shape))
