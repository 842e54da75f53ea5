"""A grid whose messages are signed: what a link in the middle changes, swaps or replays is found out.

It stands between the strategy and the link. The strategy sees nodes 1 to K, the organisations in roster order.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import cast

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.app.message import make_message
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from common.consortium import seals
from common.errors import WireError
from common.letters import config, flower_array, letter, opened
from common.messages import Refusal
from common.raw_arrays import FLOAT_BYTES, raw_floats
from common.wire import Scalar
from server.coordinator.parties import Parties

log = logging.getLogger("discreet.server")

REFUSED = 100  # an error code of ours, above Flower's
MOST_TIMES = 2  # the length of the model: a longer update is not hashed
_WORDS = {refusal.value for refusal in Refusal}


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """An order that was sent: to whom, what was signed, and how long the answer may be."""

    party: int
    statement: bytes
    size: int


class SealedGrid(Grid):
    """Signs orders, and lets through only answers that the organisation asked has signed.

    Guarantees:
        An answer that is replayed, forged, of another organisation or to another order becomes the word `forged`.
        Answers keep the order's node, whatever their own header says.
    """

    def __init__(self, inner: Grid, parties: Parties) -> None:
        self._inner, self._parties = inner, parties
        self._asked: dict[str, _Asked] = {}
        self._sent = _Weights()  # last: a round's orders share them

    def set_run(self, run: Run) -> None:
        """Pass it on."""
        self._inner.set_run(run)

    @property
    def run(self) -> Run:
        """The run that the link knows."""
        return self._inner.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Make a message, as Flower's older interface wants it."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return 1 to K."""
        return range(1, len(self._parties.owners) + 1)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Sign orders and send them."""
        pairs = [self._sealed(message) for message in messages]
        names = list(self._inner.push_messages([message for message, _ in pairs]))
        for name, (_, asked) in zip(names, pairs, strict=True):
            if name:
                self._asked[name] = asked
            else:
                log.warning("the link took no order for %s", self._parties.owners[asked.party].name)
        return [name for name in names if name]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the answers that have come, each one checked."""
        return [self._checked(reply) for reply in self._inner.pull_messages(message_ids)]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Refuse: the strategy streams."""
        raise NotImplementedError("the strategy pushes and pulls")

    def _sealed(self, message: Message) -> tuple[Message, _Asked]:
        party = message.metadata.dst_node_id - 1
        weights = cast(ArrayRecord, message.content["arrays"])["weights"]
        order = cast(dict[str, Scalar], dict(cast(ConfigRecord, message.content["order"])))
        (size,) = weights.shape
        if weights.data is not self._sent.data:
            self._sent = _Weights.of(weights, size=size)
        statement = self._parties.order(party, scalars=order, weights=self._sent.digest)
        seal: dict[str, Scalar] = {
            "signature": seals.seal(self._parties.signer, statement),
            "policy": self._parties.policies[party],
        }
        beside = cast(ArrayRecord, message.content["arrays"])
        content = letter({"order": order, "seal": seal}, {"weights": self._sent.numbers}, beside=beside)
        metadata = message.metadata
        sealed = Message(
            content, self._parties.nodes[party], metadata.message_type, ttl=metadata.ttl, group_id=metadata.group_id
        )
        return sealed, _Asked(party=party, statement=statement, size=size)

    def _checked(self, reply: Message) -> Message:
        asked = self._asked.pop(reply.metadata.reply_to_message_id)
        name = self._parties.owners[asked.party].name
        if reply.has_error():
            log.warning("%s does not answer: %s", name, reply.error.reason)
            return _from_party(reply, asked.party, Error(REFUSED, Refusal.NO_ANSWER.value))
        try:
            return _from_party(reply, asked.party, self._opened(reply.content, asked))
        except (WireError, KeyError, TypeError, ValueError) as error:
            log.warning("%s: the answer is not what it signed: %s", name, error)
            return _from_party(reply, asked.party, Error(REFUSED, Refusal.FORGED.value))

    def _opened(self, content: RecordDict, asked: _Asked) -> RecordDict | Error:
        """Check an answer's signature, and return the report or the word of a refusal as the strategy knows them."""
        records, arrays = opened(content)
        signature = _signature(records["seal"])
        if "refusal" in records:
            word = str(records["refusal"]["word"])
            self._parties.refuse_unsealed_refusal(asked.party, signature, order=asked.statement, word=word)
            return Error(REFUSED, word if word in _WORDS else Refusal.FAILED.value)
        update, report = arrays["update"], records["report"]
        if len(update) <= MOST_TIMES * FLOAT_BYTES * asked.size:  # a longer one is refused by its length, unread
            self._parties.refuse_unsealed_report(
                asked.party,
                signature,
                order=asked.statement,
                code=str(records["seal"]["code"]),
                scalars=report,
                update=sha256(update).hexdigest(),
            )
        return RecordDict({"arrays": ArrayRecord({"update": flower_array(update)}), "report": config(report)})


@dataclass(frozen=True, kw_only=True)
class _Weights:
    """Weights that were sent: as numpy wrote them, their digest, and their numbers alone."""

    data: bytes = b""
    digest: str = ""
    numbers: bytes = b""

    @classmethod
    def of(cls, array: Array, *, size: int) -> "_Weights":
        """Hash a model's weights, once a round."""
        numbers = raw_floats(array.data, size=size).tobytes()
        return cls(data=array.data, digest=sha256(numbers).hexdigest(), numbers=numbers)


def _from_party(reply: Message, party: int, outcome: RecordDict | Error) -> Message:
    """The answer as the strategy sees it: from the organisation that was asked, whatever its header says."""
    metadata = reply.metadata
    metadata.__dict__["_src_node_id"] = party + 1
    if isinstance(outcome, Error):
        return make_message(metadata=metadata, error=outcome)
    return make_message(metadata=metadata, content=outcome)


def _signature(seal: Mapping[str, Scalar]) -> bytes:
    value = seal["signature"]
    if not isinstance(value, bytes):
        raise WireError(f"signature: expected bytes, got {type(value).__name__}.")
    return value
