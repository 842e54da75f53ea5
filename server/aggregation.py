"""The mean of a round's updates, one update in memory at a time.

Shapes: P is the number of parameters.

Updates are added in float64 in the order of the clients, whatever order they come in, so that a parallel round equals a
sequential one bit for bit. An update that comes early waits; one that will not come is passed over.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from common.messages import FloatArray


class OrderedSum:
    """A weighted sum over a cohort.

    Guarantees:
        The result does not depend on the order of `add` and `skip`, bit for bit.
        At most the updates that came before their turn are held.
    """

    def __init__(self, cohort: Sequence[int], *, size: int, weights: Mapping[int, float] | None = None) -> None:
        """Expect an update, or a `skip`, of each client in `cohort`; without `weights` each counts 1."""
        self._sum_P = np.zeros(size, np.float64)
        self._turns = list(cohort)
        self._next = 0
        self._weights = weights
        self._waiting: dict[int, FloatArray | None] = {}
        self.total_weight = 0.0

    def add(self, client: int, update_P: FloatArray) -> None:
        """Take one client's update."""
        self._waiting[client] = update_P
        self._drain()

    def skip(self, client: int) -> None:
        """Do without one client's update."""
        self._waiting[client] = None
        self._drain()

    def result(self) -> npt.NDArray[np.float64]:
        """Return the sum; clients that never came are passed over."""
        for client in self._turns[self._next :]:
            self._waiting.setdefault(client, None)
        self._drain()
        return self._sum_P

    def _drain(self) -> None:
        while self._next < len(self._turns) and self._turns[self._next] in self._waiting:
            client = self._turns[self._next]
            update_P = self._waiting.pop(client)
            self._next += 1
            if update_P is not None:
                weight = 1.0 if self._weights is None else self._weights[client]
                self._sum_P += update_P if weight == 1.0 else weight * update_P.astype(np.float64)
                self.total_weight += weight
