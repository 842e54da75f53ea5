"""The work, as Discreet does it: a CNN of 93,322 parameters, and 100 clients with 56 random records each.

Shapes: N records, B batch, C channels, H height, W width.
"""

import os

import torch
from torch import Tensor, nn

CLIENTS, RECORDS, BATCH, LEARNING_RATE = 100, 56, 14, 0.1  # one epoch is 4 steps of 14
CORES = os.cpu_count() or 1


def network() -> nn.Sequential:
    """Return the network: conv 32, pool, conv 64, pool, conv 64, dense 64, dense 10."""
    torch.manual_seed(7)
    return nn.Sequential(
        nn.Conv2d(1, 32, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(576, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def records() -> list[tuple[Tensor, Tensor]]:
    """Return each client's images, (N, C, H, W), and labels, (N,)."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(CLIENTS * RECORDS, 1, 28, 28, generator=generator)
    labels = torch.randint(0, 10, (CLIENTS * RECORDS,), generator=generator)
    return list(zip(images.split(RECORDS), labels.split(RECORDS), strict=True))
