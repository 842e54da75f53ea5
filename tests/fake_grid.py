"""A grid and an executor without clients: each order is answered with what a test's function says."""

import itertools
from collections.abc import Callable, Iterable

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict, UserConfig
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from simulations.engine.executors import identify
from simulations.engine.grid import REFUSED

Answer = Callable[[Message], Message | list[Message] | None]


class FakeGrid(Grid):
    """Nodes 1 to `clients`; `answer` is asked once for each order, and None is a client that never answers.

    Args:
        clients: how many nodes there are.
        answer: the clients.
        reverse: answers come in the opposite order of the orders.
        before_push: called when a round's orders arrive, before the first of them is looked at.
    """

    def __init__(
        self, clients: int, answer: Answer, *, reverse: bool = False, before_push: Callable[[], None] = lambda: None
    ) -> None:
        identify()
        self.asked: list[ConfigRecord] = []
        self.pushes: list[int] = []
        self._clients, self._answer, self._reverse, self._before_push = clients, answer, reverse, before_push
        self._ids = itertools.count(1)
        self._ready: list[Message] = []

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        raise NotImplementedError

    def create_message(self, *args: object, **kwargs: object) -> Message:
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return range(1, self._clients + 1)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self._before_push()
        ids = []
        for message in messages:
            ids.append(str(next(self._ids)))
            message.metadata.__dict__["_message_id"] = ids[-1]
            self.asked.append(order_of(message))
            answer = self._answer(message)
            self._ready += answer if isinstance(answer, list) else [] if answer is None else [answer]
        self.pushes.append(len(ids))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        wanted = set(message_ids)
        came = [message for message in self._ready if message.metadata.reply_to_message_id in wanted]
        self._ready = [message for message in self._ready if message not in came]
        return came[::-1] if self._reverse else came


class FakeExecutor:
    """Answers each message that it takes with what `answer` says, the last one first; it has room for `room`."""

    def __init__(self, answer: Answer, *, room: int = 1, before_submit: Callable[[], None] = lambda: None) -> None:
        self.submitted: list[tuple[Message, UserConfig, RecordDict]] = []
        self._answer, self._room, self._before_submit = answer, room, before_submit
        self._taken: list[Message] = []

    def wait(self) -> None:
        """It is always ready."""

    def has_room(self) -> bool:
        return len(self._taken) < self._room

    def submit(self, message: Message, node_config: UserConfig, state: RecordDict) -> None:
        self._before_submit()
        self.submitted.append((message, node_config, state))
        self._taken.append(message)

    def answers(self, timeout_s: float) -> list[Message]:
        taken, self._taken = self._taken[::-1], []
        came = (self._answer(message) for message in taken)
        return [answer for answer in came if isinstance(answer, Message)]

    def close(self) -> None:
        """Nothing is held."""


def order_of(message: Message) -> ConfigRecord:
    """Return the scalars of an order."""
    return message.content.config_records["order"]


def weights_in(message: Message) -> np.ndarray:
    """Return the weights that came with an order."""
    return message.content.array_records["arrays"]["weights"].numpy()


def reply(message: Message, update: np.ndarray | Array, **changes: object) -> Message:
    """Return a report that is good, but for `changes` of its scalars; one that is None is left out."""
    order = order_of(message)
    scalars = {name: order[name] for name in ("run", "round", "attempt", "client")} | changes
    content = RecordDict(
        {
            "arrays": ArrayRecord({"update": update if isinstance(update, Array) else Array(update)}),
            "report": ConfigRecord({name: value for name, value in scalars.items() if value is not None}),
        }
    )
    return Message(content, reply_to=message)


def refusal(message: Message, word: str) -> Message:
    """Return an error reply."""
    return Message(Error(REFUSED, word), reply_to=message)
