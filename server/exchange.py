"""Orders out, answers in: the messages of a round, through Flower's `Grid`."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar, cast

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.common.constant import SType
from flwr.serverapp import Grid

from common.errors import WireError
from common.messages import FloatArray, Order, Refusal, Report
from common.wire import Frame, Scalar, decode_report, encode_order
from server.replies import ReplyRefusedError, raw_update

POLL_S = 0.05
Kind = TypeVar("Kind", ArrayRecord, ConfigRecord)

_WORDS = {refusal.value for refusal in Refusal}


def weights_record(weights_P: FloatArray) -> ArrayRecord:
    """Return the record in which a model travels; all orders of a round share one."""
    return ArrayRecord({"weights": Array(weights_P)})


def order_message(order: Order, *, arrays: ArrayRecord, node: int, ttl_s: float) -> Message:
    """Return the message that carries an order, without its weights, beside `arrays`."""
    content = RecordDict({"arrays": arrays, "order": ConfigRecord(dict(encode_order(order).scalars))})
    return Message(content, node, MessageType.TRAIN, ttl=ttl_s, group_id=str(order.round))


def replies(grid: Grid, messages: Iterable[Message], *, timeout_s: float) -> Iterator[Message]:
    """Send orders and yield the answers as they come, until all came or the deadline is over."""
    waiting = set(grid.push_messages(messages))
    deadline = time.monotonic() + timeout_s
    while waiting and time.monotonic() < deadline:
        came = list(grid.pull_messages(waiting))
        for reply in came:
            waiting.discard(reply.metadata.reply_to_message_id)
            yield reply
        if not came:
            time.sleep(POLL_S)


def report_in(reply: Message, *, size: int) -> Report:
    """Return the report in an answer, or raise ReplyRefusedError with one word.

    Guarantees:
        Nothing large is read before its size is known, and a client's own words never get further than this.
    """
    if reply.has_error():
        reason = reply.error.reason
        raise ReplyRefusedError(reason if reason in _WORDS else Refusal.FAILED.value)
    try:
        array = _record(reply, "arrays", ArrayRecord)["update"]
        scalars = cast(dict[str, Scalar], dict(_record(reply, "report", ConfigRecord)))
        if (array.dtype, array.shape) != ("float32", (size,)):
            raise ReplyRefusedError("wrong-size")
        if array.stype != SType.NUMPY:
            raise ReplyRefusedError("malformed")
        return decode_report(Frame(scalars=scalars, array=raw_update(array.data, size=size)))
    except (WireError, KeyError) as error:
        raise ReplyRefusedError("malformed") from error


def _record(message: Message, name: str, kind: type[Kind]) -> Kind:
    """A message's record, KeyError where it has none of this kind.

    `array_records` and its like are cycles that keep a message's arrays until Python collects them, some hundred
    messages later.
    """
    record = message.content[name]
    if not isinstance(record, kind):
        raise KeyError(name)
    return record
