"""The global model: flat weights, the server's optimiser, and its noise.

Shapes: P is the number of parameters.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from common import checks
from common.config import Server
from common.messages import FloatArray
from common.optimizers import server_optimizer
from common.privacy.entropy import Entropy


class GlobalModel:
    """Weights that move by mean updates, and where asked for their average over the rounds.

    The average is what is evaluated and kept as the result: it costs no privacy and evens out the noise of the last
    rounds. Training goes on from the weights themselves.

    Guarantees:
        With `sgd` and learning rate 1 the weights become weights + mean, the plain federated average.
        `state` and `restore` are inverse bit for bit.

    Edge cases:
        ema_decay = 0   the result is the weights themselves
        first rounds    the decay begins at 2/11 and rises to `ema_decay`, so that the first weights are soon forgotten

    Source: Reddi et al. 2021, Algorithm 1, https://arxiv.org/abs/2003.00295; averaging: De et al. 2022, section 3,
    https://arxiv.org/abs/2204.13650.
    """

    def __init__(self, weights_P: Tensor, server: Server) -> None:
        self._weights_P = torch.nn.Parameter(weights_P.clone())
        self._optimizer = server_optimizer([self._weights_P], server)
        self._ema_decay = server.ema_decay
        self._average_P = weights_P.clone()
        self._steps = 0

    @property
    def weights_P(self) -> Tensor:
        """The weights now, float32; not to be written to."""
        return self._weights_P.detach()

    @property
    def result_P(self) -> Tensor:
        """The average over the rounds, or the weights where none is asked for; not to be written to."""
        return self._average_P if self._ema_decay else self.weights_P

    def step(self, mean_P: npt.NDArray[np.float64]) -> None:
        """Move by the mean update."""
        gradient_P = mean_P.astype(np.float32)
        self._weights_P.grad = torch.from_numpy(np.negative(gradient_P, out=gradient_P))
        self._optimizer.step()
        self._weights_P.grad = None
        self._steps += 1
        decay = min(self._ema_decay, (1 + self._steps) / (10 + self._steps))
        self._average_P.lerp_(self.weights_P, 1 - decay)

    def state(self) -> dict[str, Tensor]:
        """Return weights and optimiser state as named tensors."""
        slots = self._optimizer.state.get(self._weights_P, {})
        own = {
            "weights": self.weights_P.clone(),
            "average": self._average_P.clone(),
            "steps": torch.tensor(self._steps),
        }
        return own | {
            f"optimizer.{name}": torch.as_tensor(value).clone() for name, value in slots.items() if value is not None
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from a `state`."""
        with torch.no_grad():
            self._weights_P.copy_(state["weights"])
        self._average_P, self._steps = state["average"].clone(), int(state["steps"])
        prefix = "optimizer."
        slots = {name.removeprefix(prefix): value.clone() for name, value in state.items() if name.startswith(prefix)}
        self._optimizer.state.clear()
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
