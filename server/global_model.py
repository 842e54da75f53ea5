"""The global model: flat weights, the server's optimiser, and its noise.

Shapes: P is the number of parameters.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from common import checks
from common.config import Server
from common.entropy import Entropy
from common.messages import FloatArray
from common.optimizers import server_optimizer


class GlobalModel:
    """Weights that move by mean updates.

    Guarantees:
        With `sgd` and learning rate 1 the weights become weights + mean, the plain federated average.
        `state` and `restore` are inverse bit for bit.

    Source: Reddi et al. 2021, Algorithm 1, https://arxiv.org/abs/2003.00295.
    """

    def __init__(self, weights_P: Tensor, server: Server) -> None:
        self._weights_P = torch.nn.Parameter(weights_P.clone())
        self._optimizer = server_optimizer([self._weights_P], server)

    @property
    def weights_P(self) -> Tensor:
        """The weights now, float32; not to be written to."""
        return self._weights_P.detach()

    def step(self, mean_P: npt.NDArray[np.float64]) -> None:
        """Move by the mean update."""
        self._weights_P.grad = torch.from_numpy((-mean_P).astype(np.float32))
        self._optimizer.step()
        self._weights_P.grad = None

    def state(self) -> dict[str, Tensor]:
        """Return weights and optimiser state as named tensors."""
        slots = self._optimizer.state.get(self._weights_P, {})
        return {"weights": self.weights_P.clone()} | {
            f"optimizer.{name}": torch.as_tensor(value).clone() for name, value in slots.items() if value is not None
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from a `state`."""
        with torch.no_grad():
            self._weights_P.copy_(state["weights"])
        slots = {name.removeprefix("optimizer."): value for name, value in state.items() if name != "weights"}
        if slots:
            self._optimizer.state[self._weights_P] = slots


def noised(
    sum_P: npt.NDArray[np.float64], *, noise_multiplier: float, max_norm: float, entropy: Entropy
) -> npt.NDArray[np.float64]:
    """Return the sum of clipped updates plus Gaussian noise of standard deviation noise_multiplier * max_norm.

    Source: McMahan et al. 2018, Algorithm 1, https://arxiv.org/abs/1710.06963.
    """
    checks.positive(noise_multiplier=noise_multiplier, max_norm=max_norm)
    return sum_P + entropy.normal(len(sum_P)) * (noise_multiplier * max_norm)


def float32(weights_P: Tensor) -> FloatArray:
    """Return weights as a numpy array that shares their memory."""
    array: FloatArray = weights_P.numpy()
    return array
