"""Whoever sees every message: a grid around a grid, which keeps what canaries may have moved.

Shapes: P parameters, D coordinates that are kept.

This is where a malicious coordinator stands. Nothing is changed on the way.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from flwr.app import Message, RecordDict, UserConfig
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from client.app import order_in
from client.budget import Budget
from common.config import Scenario
from common.messages import Order
from server.exchange import report_in
from server.replies import ReplyRefusedError
from simulations.single_run import in_process

if TYPE_CHECKING:
    from simulations.single_run import Connect

_EMPTY = np.zeros(0, np.float32)

Coordinates = npt.NDArray[np.intp]
Numbers = npt.NDArray[np.float32]


class Eavesdropper(Grid):
    """A grid that notes orders, updates and the weights that they start from, some coordinates of each.

    Attributes:
        orders: that were asked, in the order in which they were.
        updates: by client and round, (D,).
        weights: by round, (D,): those that the round's orders start from.
    """

    def __init__(self, grid: Grid, *, kept_D: Coordinates, size: int) -> None:
        """Stand before a grid; `kept_D` says which of the `size` coordinates are kept."""
        self._grid, self._kept_D, self._size = grid, kept_D, size
        self.orders: list[Order] = []
        self.updates: dict[tuple[int, int], Numbers] = {}
        self.weights: dict[int, Numbers] = {}

    def set_run(self, run: Run) -> None:
        """Note the run."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """The run that was set."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a new message."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes."""
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Pass messages on, and note them."""
        return self._grid.push_messages(self._noted(message) for message in messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pass answers on, and note them."""
        came = list(self._grid.pull_messages(message_ids))
        for reply in came:
            with suppress(ReplyRefusedError):  # the strategy says so
                report = report_in(reply, size=self._size)
                self.updates[report.client, report.round] = report.update_P[self._kept_D]
        return came

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Pass messages on, and their answers back."""
        raise NotImplementedError("the strategy pushes and pulls")

    def _noted(self, message: Message) -> Message:
        order = order_in(message, weights_P=_EMPTY)
        self.orders.append(order)
        if order.round not in self.weights:
            weights_P = message.content.array_records["arrays"]["weights"].numpy()
            self.weights[order.round] = weights_P[self._kept_D].copy()
        return message


def listening(*, kept_D: Coordinates, size: int) -> "tuple[Connect, list[Eavesdropper]]":
    """Return what connects a run to its clients through an eavesdropper, and where that is found afterwards."""
    heard: list[Eavesdropper] = []

    def connect(
        stack: ExitStack, scenario: Scenario, run_config: UserConfig, budget: Budget | None
    ) -> tuple[Grid, Callable[[], None]]:
        grid, wait = in_process(stack, scenario, run_config, budget)
        heard.append(Eavesdropper(grid, kept_D=kept_D, size=size))
        return heard[0], wait

    return connect, heard
