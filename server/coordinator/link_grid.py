"""Flower's grid over the link, without its pauses of three seconds.

An answer is visible before its parts are: one whose parts do not come, because its sender was cut off, waits aside
while the others are read. An answer of too many parts is not pulled at all.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from flwr.app import Error, Message
from flwr.app.message import make_message
from flwr.common.serde import message_from_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, inflate_object_from_contents, pull_objects
from flwr.superlink.grid import HttpGrid

from common.messages import Refusal
from server.coordinator.flower_link import FlowerLink, Task, patient, reached

MOST_PARTS = 32  # of an answer; ours have three, and three more where the update is long
PULL_BACKOFF_S = 0.05
PULL_S = 0.5  # at a time, for the parts of one answer
ANSWER_S = 120.0  # for all of an answer, from when it was seen
POLL_S, POLL_AT_MOST_S = 0.05, 1.0  # an empty answer costs the link some 20 ms, which nodes wait for
POLL_SHARE = 0.1  # of the time since something moved, so that what comes is noticed after a tenth more


@dataclass(frozen=True)
class _Seen:
    """An answer whose parts may still be on their way."""

    proto: MessageProto
    tree: ObjectTree
    since: float = field(default_factory=time.monotonic)


class LinkGrid(HttpGrid):
    """The way to the nodes of a run.

    Guarantees:
        An answer that cannot be read becomes an error of the node that was asked; the others count.
        Nobody waits for the parts of another's answer.
    """

    def __init__(self, link: FlowerLink, task: Task) -> None:
        super().__init__(insecure=True, token=task.token)
        self._link = link
        self._retry_invoker = patient()
        self._moved = time.monotonic()
        self._seen: dict[str, _Seen] = {}  # by the message they answer; the link tells of each only once
        self.set_run(task.run)

    def _connect(self) -> None:
        """Reach the link with its token."""
        self._client = self._link.runtime(self._token)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages; an empty name stands for one that the link did not take."""
        self._moved = time.monotonic()
        with reached():
            return [name or "" for name in super().push_messages(list(messages))]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the answers that have come to some messages, whole."""
        asked = set(message_ids)
        with reached():
            self._look(asked - self._seen.keys())
            read = {name: self._read(self._seen[name]) for name in self._seen.keys() & asked}
        came = [message for message in read.values() if message is not None]
        for name in (name for name, message in read.items() if message is not None):
            del self._seen[name]
        if came:
            self._moved = time.monotonic()
        else:
            time.sleep(min(max(POLL_SHARE * (time.monotonic() - self._moved), POLL_S), POLL_AT_MOST_S))
        return came

    def _look(self, names: set[str]) -> None:
        """Note the answers that have come to some messages."""
        if names:
            answer = self._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=names))
            for proto, tree in zip(answer.messages_list, answer.message_object_trees, strict=True):
                self._seen[proto.metadata.reply_to_message_id] = _Seen(proto, tree)

    def _read(self, seen: _Seen) -> Message | None:
        """Pull an answer's parts and put them together; None while they do not all come."""
        proto = seen.proto
        parts = [part.object_id for part in _at_most(MOST_PARTS + 1, iterate_object_tree(seen.tree))]
        if len(parts) > MOST_PARTS:
            return _unread(proto)
        run_id = self.run.run_id
        try:
            contents = pull_objects(
                parts,
                make_pull_object_fn_protobuf(self._runtime_client.PullObject, self.node, run_id),
                max_time=PULL_S,
                initial_backoff=PULL_BACKOFF_S,
            )
            message = inflate_object_from_contents(proto.metadata.message_id, contents)
        except ObjectPullError:
            return None if time.monotonic() < seen.since + ANSWER_S else _unread(proto)
        except (ValueError, KeyError, TypeError):
            return _unread(proto)
        self._runtime_client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=self.node, run_id=run_id, message_object_id=proto.metadata.message_id)
        )
        if not isinstance(message, Message):
            return _unread(proto)
        message.metadata.__dict__["_message_id"] = proto.metadata.message_id
        return message


def _unread(proto: MessageProto) -> Message:
    """An answer without what it said."""
    metadata = message_from_proto(proto).metadata
    return make_message(metadata=metadata, error=Error(0, Refusal.NO_ANSWER.value))


def _at_most(count: int, items: Iterable[ObjectTree]) -> Iterator[ObjectTree]:
    for _, item in zip(range(count), items, strict=False):
        yield item
