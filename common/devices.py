"""Where tensors live, and in which precision layers compute."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch

from common.config import Engine, Precision


def device(engine: Engine) -> torch.device:
    """Return the scenario's device; `auto` is CUDA where there is one."""
    if engine.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(engine.device)


def autocast(device: torch.device, precision: Precision) -> Callable[[], AbstractContextManager[Any]]:
    """Return what a forward pass is wrapped in: with `bf16` layers compute in bfloat16; weights stay single."""
    return nullcontext if precision == "float32" else partial(torch.autocast, device.type, dtype=torch.bfloat16)


def seed_dropout(seed: int, device: torch.device) -> None:
    """Seed the generator that dropout on this device draws from.

    `torch.manual_seed` would note where it was called from for each kind of device that is not there: 1 ms a client.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
