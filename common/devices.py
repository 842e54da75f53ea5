"""Where tensors live."""

import torch

from common.config import Engine


def device(engine: Engine) -> torch.device:
    """Return the scenario's device; `auto` is CUDA where there is one."""
    if engine.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(engine.device)
