"""What a node receives and sends, as plain records that know nothing of Flower."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from common.wire import Scalar

Fields = Mapping[str, Scalar]


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """A message that was pulled: who it is and where its content is, as the journal keeps it.

    Args:
        id: Flower's name of the message.
        flower_run: Flower's number of the run.
        expires: unix time after which nobody waits for an answer.
        head: the message without its content, serialised.
        tree: names of the objects that are its content, serialised.
    """

    id: str
    flower_run: int
    expires: float
    head: bytes
    tree: bytes


@dataclass(frozen=True, kw_only=True)
class Letter:
    """A message's content: its kind (`train`, `query`), records of scalars by name, and arrays.

    An array is little-endian float32; no header of its sender's was parsed.
    """

    kind: str
    records: Mapping[str, Fields]
    arrays: Mapping[str, bytes] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What goes back: records of scalars, and an update as little-endian float32 or None."""

    records: Mapping[str, Fields]
    update: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class FlowerRun:
    """What a link says of a run: the scenario's text and the hash of its bundle; nobody has vouched for either."""

    scenario: object
    bundle: str
