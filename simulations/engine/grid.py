"""The in-process grid: Flower's `Grid`, with the clients in this process or in worker processes.

It calls the very apps that a deployment runs, with no server and no Ray. Messages are answered one by one and in the
order of the clients as far as workers allow; nothing holds a cohort's arrays, and a message that waits is a few hundred
bytes. Charges are made here, all of a round in
one durable write before the first client trains, and settled in another after the last has answered; the client app
finds its reservation in its own state.

    grid = InProcessGrid(clients=3, executor=Sequential("client.app:app", run_config), node_config=node_config)
    replies = grid.send_and_receive(messages)
"""

import itertools
import pickle
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from flwr.app import ArrayRecord, Error, Message, RecordDict, UserConfig
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from client.app import REFUSED, order_in, reservation
from common.errors import WireError
from common.messages import Order, Refusal
from simulations.engine.executors import Executor, identify
from simulations.engine.parcels import plain, records, same_arrays

POLL_S = 0.2
_EMPTY = np.zeros(0, np.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Waiting:
    """A message that was pushed, as small as can be: ten thousand may wait.

    Args:
        arrays: its records of arrays, the same object for all messages that share them.
        others: its other records, pickled, so that it has them for itself.
        order: what is charged for it, or None without a budget.
    """

    name: str
    node: int
    message_type: str
    group: str
    created_at: float
    ttl_s: float
    arrays: dict[str, ArrayRecord]
    others: bytes
    order: Order | None

    def is_alive(self) -> bool:
        """Whether its time to live is not over."""
        return time.time() < self.created_at + self.ttl_s

    def message(self) -> Message:
        """Return it with records of its own; the arrays in them are immutable and stay shared."""
        content = records(pickle.loads(self.others), self.arrays)  # noqa: S301 - pickled by this object's maker
        message = Message(content, self.node, self.message_type, ttl=self.ttl_s, group_id=self.group)
        message.metadata.__dict__["_message_id"] = self.name
        message.metadata.created_at = self.created_at
        return message

    def state(self) -> RecordDict:
        """Return the state that its client finds: its reservation, where it is charged."""
        return RecordDict() if self.order is None else RecordDict({"reservation": reservation(self.order)})


class Accounts(Protocol):
    """Where orders are charged before they are carried out; `client.budget.Budget` is one."""

    def reserve(self, orders: Sequence[Order]) -> list[Refusal | None]:
        """Charge orders durably; for each None, or why not."""

    def settle(self, trained: Sequence[Order], failed: Sequence[Order] = ()) -> None:
        """Say which orders were carried out."""


class InProcessGrid(Grid):
    """A grid of virtual clients, whose node ids are 1 to `clients`.

    Guarantees:
        Each message has a record of its own when it reaches a client, also where a strategy reuses one for all.
        With a budget, no app is called for an order that is not charged.
        A message whose time to live is over before a client took it is dropped.
    """

    def __init__(
        self,
        *,
        clients: int,
        executor: Executor,
        node_config: Callable[[int], UserConfig],
        budget: Accounts | None = None,
    ) -> None:
        """Connect `clients` clients, whose configuration is `node_config(client)`."""
        identify()
        self._clients, self._executor = clients, executor
        self._node_config, self._budget = node_config, budget
        self._numbers = itertools.count(1)
        self._queue: deque[_Waiting] = deque()
        self._arrays: dict[str, ArrayRecord] = {}  # of the message that was pushed last
        self._done: deque[Message] = deque()
        self._training: dict[str, Order] = {}  # charged, by the message's id
        self._trained: list[Order] = []
        self._failed: list[Order] = []
        self._run: Run | None = None

    def set_run(self, run: Run) -> None:
        """Note the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that was set."""
        if self._run is None:
            raise RuntimeError("no run was set")
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a new message."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return 1 to the number of clients."""
        return range(1, self._clients + 1)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Charge what is to be charged, then queue the messages; return their ids."""
        pushed = [self._kept(message) for message in messages]
        for waiting, refusal in zip(pushed, self._charged(pushed), strict=True):
            if refusal is None:
                self._queue.append(waiting)
            else:
                self._done.append(Message(Error(REFUSED, refusal.value), reply_to=waiting.message()))
        return [waiting.name for waiting in pushed]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the answers to these messages that are there, after a short wait for the first."""
        wanted = message_ids if isinstance(message_ids, Collection) else set(message_ids)
        self._dispatch()
        if not self._done:
            answers = self._executor.answers(POLL_S)
            self._note(answers)
            self._done.extend(answers)
            self._dispatch()
        came = [message for message in self._done if message.metadata.reply_to_message_id in wanted]
        others = [message for message in self._done if message.metadata.reply_to_message_id not in wanted]
        self._done = deque(message for message in others if _is_alive(message))
        return came

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push messages and return all answers that come within `timeout` seconds."""
        deadline = time.monotonic() + (timeout if timeout is not None else float("inf"))
        waiting = set(self.push_messages(messages))
        replies: list[Message] = []
        while waiting and time.monotonic() < deadline:
            for reply in self.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
        return replies

    def _kept(self, message: Message) -> _Waiting:
        """Give a message an id and keep what it says now, whatever becomes of its records."""
        arrays = {name: record for name, record in message.content.items() if isinstance(record, ArrayRecord)}
        if not same_arrays(arrays, self._arrays):
            self._arrays = {name: ArrayRecord(dict(record)) for name, record in arrays.items()}
        return _Waiting(
            name=str(next(self._numbers)),
            node=message.metadata.dst_node_id,
            message_type=message.metadata.message_type,
            group=message.metadata.group_id,
            created_at=time.time(),
            ttl_s=message.metadata.ttl,
            arrays=self._arrays,
            others=pickle.dumps(plain(message.content)),
            order=None if self._budget is None else _order(message),
        )

    def _charged(self, pushed: Sequence[_Waiting]) -> list[Refusal | None]:
        """For each message None, or why its client is not asked."""
        if self._budget is None:
            return [None for _ in pushed]
        orders = {waiting.name: waiting.order for waiting in pushed if waiting.order is not None}
        self._give_up({(order.round, order.attempt) for order in orders.values()})
        self._settle()
        answers = self._budget.reserve(list(orders.values()))
        self._training |= {
            name: order for (name, order), refusal in zip(orders.items(), answers, strict=True) if refusal is None
        }
        return answers

    def _note(self, answers: Iterable[Message]) -> None:
        """Note which orders were carried out; when all were heard of, settle them in one write."""
        for answer in answers:
            order = self._training.pop(answer.metadata.reply_to_message_id, None)
            if order is not None:
                (self._failed if answer.has_error() else self._trained).append(order)
        if not self._training:
            self._settle()

    def _give_up(self, current: set[tuple[int, int]]) -> None:
        """Wait no more for orders of rounds that are over."""
        for name, order in list(self._training.items()):
            if (order.round, order.attempt) not in current:
                self._failed.append(self._training.pop(name))

    def _settle(self) -> None:
        if self._budget is not None and (self._trained or self._failed):
            self._budget.settle(self._trained, self._failed)
            self._trained, self._failed = [], []

    def _dispatch(self) -> None:
        """Hand messages to the executor as long as it has room."""
        while self._queue and self._executor.has_room():
            waiting = self._queue.popleft()
            if waiting.is_alive():
                self._executor.submit(waiting.message(), self._node_config(waiting.node - 1), waiting.state())
            elif waiting.name in self._training:
                self._failed.append(self._training.pop(waiting.name))


def _order(message: Message) -> Order:
    """The order that a message carries; WireError when it carries none."""
    try:
        return order_in(message, weights_P=_EMPTY)
    except (WireError, KeyError) as error:
        raise WireError(f"A message under a budget carries no order: {error}.") from error


def _is_alive(message: Message) -> bool:
    return time.time() < message.metadata.created_at + message.metadata.ttl
