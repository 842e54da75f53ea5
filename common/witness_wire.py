"""What an owner or an auditor asks a witness, and what it answers: canonical JSON, told apart by the method.

    AddCheckpoint   Addition     -> Cosigning, or FAILED_PRECONDITION with Conflict as its details
    Latest          Question     -> Newest

A witness learns checkpoints and proofs: sizes, roots and signatures, and nothing that an entry says. Whatever does not
decode raises WireError. The semantics are those of C2SP tlog-witness, https://c2sp.org/tlog-witness.

    >>> decode_question(encode(Question(ledger="k")))
    Question(ledger='k')
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from common.errors import WireError
from common.transparency import canonical
from common.transparency.merkle import Proof

SERVICE = "discreet.witness.v1.Witness"
ADD_CHECKPOINT = f"/{SERVICE}/AddCheckpoint"
LATEST = f"/{SERVICE}/Latest"

LARGEST_MESSAGE = 1 << 20
LARGEST_NOTE = 16_384
LARGEST_PROOF = 63  # hashes, by the specification
LARGEST_LINE = 1_024
MOST_FORKS = 16  # of one ledger, that are told
LONGEST_CALL_S = 60.0
_LARGEST_KEY = 512
_HASH_DIGITS = 64

Clash = Literal["conflict", "fork"]


@dataclass(frozen=True, kw_only=True)
class Addition:
    """Asks for a cosignature.

    Args:
        old_size: what the witness is thought to have cosigned last; 0 for nothing.
        proof: that the checkpoint extends that.
        note: the signed checkpoint.
    """

    old_size: int
    proof: Proof
    note: str


@dataclass(frozen=True, kw_only=True)
class Cosigning:
    """The witness's line, to be put below the note."""

    line: str


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """Why there is no cosignature.

    Args:
        word: `conflict`, where the old size is not what was cosigned last; `fork`, where the past is another one.
        size: what was cosigned last.
    """

    word: Clash
    size: int


@dataclass(frozen=True, kw_only=True)
class Question:
    """Asks for what was cosigned last of a ledger, named by its key's text."""

    ledger: str


@dataclass(frozen=True, kw_only=True)
class Newest:
    """The newest cosigned checkpoint.

    Args:
        note: with the cosignature; "" when nothing was cosigned yet.
        forks: checkpoints that the witness was shown, signed by the ledger, which do not extend what it had cosigned.
    """

    note: str
    forks: tuple[str, ...] = ()


def encode(message: Addition | Cosigning | Conflict | Question | Newest) -> bytes:
    """Return a message's bytes."""
    plain = asdict(message)
    if isinstance(message, Addition):
        plain["proof"] = [item.hex() for item in message.proof]
    return canonical.dumps(plain)


def decode_addition(data: bytes) -> Addition:
    """Read what `encode` wrote, or raise WireError."""
    fields = _fields(data, {"old_size", "proof", "note"})
    proof = fields["proof"]
    if not isinstance(proof, list) or len(proof) > LARGEST_PROOF:
        raise WireError(f"proof: expected at most {LARGEST_PROOF} hashes, got something else")
    return Addition(
        old_size=_size(fields, "old_size"),
        proof=tuple(_hash(item) for item in proof),
        note=_text(fields["note"], "note", LARGEST_NOTE),
    )


def decode_cosigning(data: bytes) -> Cosigning:
    """Read what `encode` wrote, or raise WireError."""
    return Cosigning(line=_text(_fields(data, {"line"})["line"], "line", LARGEST_LINE))


def decode_conflict(data: bytes) -> Conflict:
    """Read what `encode` wrote, or raise WireError."""
    fields = _fields(data, {"word", "size"})
    size = _size(fields, "size")
    for word in get_args(Clash):
        if fields["word"] == word:
            return Conflict(word=word, size=size)
    raise WireError("word: expected conflict or fork, got something else")


def decode_question(data: bytes) -> Question:
    """Read what `encode` wrote, or raise WireError."""
    return Question(ledger=_text(_fields(data, {"ledger"})["ledger"], "ledger", _LARGEST_KEY))


def decode_newest(data: bytes) -> Newest:
    """Read what `encode` wrote, or raise WireError."""
    fields = _fields(data, {"note", "forks"})
    forks = fields["forks"]
    if not isinstance(forks, list) or len(forks) > MOST_FORKS:
        raise WireError(f"forks: expected at most {MOST_FORKS} notes, got something else")
    note = _text(fields["note"], "note", LARGEST_NOTE)
    return Newest(note=note, forks=tuple(_text(fork, "fork", LARGEST_NOTE) for fork in forks))


def _fields(data: bytes, names: set[str]) -> Mapping[str, object]:
    if len(data) > LARGEST_MESSAGE:
        raise WireError(f"message: expected at most {LARGEST_MESSAGE} bytes, got {len(data)}")
    try:
        value = canonical.loads(data)
    except ValueError as error:
        raise WireError(f"message: expected canonical JSON ({error})") from error
    if not isinstance(value, dict) or value.keys() != names:
        raise WireError(f"message: expected {', '.join(sorted(names))}, got other fields")
    return value


def _text(value: object, name: str, most: int) -> str:
    if not isinstance(value, str) or len(value) > most:
        raise WireError(f"{name}: expected a text of at most {most} characters, got something else")
    return value


def _size(fields: Mapping[str, object], name: str) -> int:
    value = fields[name]
    if type(value) is not int or value < 0:
        raise WireError(f"{name}: expected a whole number of at least 0, got something else")
    return value


def _hash(value: object) -> bytes:
    if not isinstance(value, str) or len(value) != _HASH_DIGITS:
        raise WireError(f"proof: expected hashes of {_HASH_DIGITS} hexadecimal digits, got something else")
    try:
        data = bytes.fromhex(value)
    except ValueError as error:
        raise WireError("proof: expected hexadecimal digits") from error
    if data.hex() != value:
        raise WireError("proof: expected lower-case hexadecimal digits")
    return data
