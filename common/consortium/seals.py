r"""What members sign, byte for byte, and the check of it.

    >>> statement = refusal_statement(roster="aa", consortium="c", sender="a", order="bb", word="failed")
    >>> statement.split(b"\n")[0]
    b'discreet/refusal/v1'

A statement is its kind, a line feed, and canonical JSON whose values are text: a statement of one kind is never one of
another, and two statements of one kind are the same bytes only when every field is the same.
"""

from collections.abc import Mapping
from hashlib import sha256
from typing import Literal

from common.errors import WireError
from common.transparency import canonical
from common.transparency.notes import Signer, VerifierKey

Scalar = int | float | str | bool | bytes
Kind = Literal[
    "answer", "denied", "node-key", "order", "question", "refusal", "report", "request", "rotation", "roster"
]


def order_statement(
    *,
    roster: str,
    consortium: str,
    recipient: str,
    flower_run: int,
    scenario: str,
    policy: str,
    scalars: Mapping[str, Scalar],
    weights: str,
) -> bytes:
    """Return what the coordinator signs of an order.

    Args:
        roster: digest of the roster that both sides have.
        consortium: its name.
        recipient: name of the owner who is to carry it out.
        flower_run: Flower's number of the run.
        scenario: SHA-256, hexadecimal, of the scenario's text.
        policy: digest of the policy that the recipient offered.
        scalars: of the order's frame.
        weights: SHA-256, hexadecimal, of the model as little-endian float32.
    """
    return statement(
        "order",
        roster=roster,
        consortium=consortium,
        recipient=recipient,
        flower_run=str(flower_run),  # up to 2^64: beyond what canonical JSON holds as a number
        scenario=scenario,
        policy=policy,
        scalars=_exact(scalars),
        weights=weights,
    )


def report_statement(
    *,
    roster: str,
    consortium: str,
    sender: str,
    order: str,
    policy: str,
    code: str,
    scalars: Mapping[str, Scalar],
    update: str,
) -> bytes:
    """Return what an owner signs of a report.

    Args:
        roster: digest of the roster that both sides have.
        consortium: its name.
        sender: name of the owner.
        order: digest of the order's statement.
        policy: digest of the policy that it was carried out under.
        code: digest of the code that carried it out.
        scalars: of the report's frame.
        update: SHA-256, hexadecimal, of the update as little-endian float32.
    """
    return statement(
        "report",
        roster=roster,
        consortium=consortium,
        sender=sender,
        order=order,
        policy=policy,
        code=code,
        scalars=_exact(scalars),
        update=update,
    )


def question_statement(
    *,
    roster: str,
    consortium: str,
    recipient: str,
    flower_run: int,
    scenario: str,
    run: str,
    kind: Literal["offer", "end"],
) -> bytes:
    """Return what the coordinator signs of a question: what an owner offers, or that a run has ended."""
    return statement(
        "question",
        roster=roster,
        consortium=consortium,
        recipient=recipient,
        flower_run=str(flower_run),
        scenario=scenario,
        run=run,
        question=kind,
    )


def answer_statement(
    *, roster: str, consortium: str, sender: str, question: str, fields: Mapping[str, str | int]
) -> bytes:
    """Return what an owner signs of an answer; `question` is the digest of the question's statement."""
    return statement(
        "answer", roster=roster, consortium=consortium, sender=sender, question=question, fields=_exact(fields)
    )


def refusal_statement(*, roster: str, consortium: str, sender: str, order: str, word: str) -> bytes:
    """Return what an owner signs of a refusal; `order` is the digest of the order's, or question's, statement."""
    return statement("refusal", roster=roster, consortium=consortium, sender=sender, order=order, word=word)


def statement(kind: Kind, **fields: object) -> bytes:
    """Return the bytes of a statement; WireError for fields that have none."""
    try:
        return f"discreet/{kind}/v1\n".encode() + canonical.dumps(fields)
    except ValueError as error:
        raise WireError(
            f"{kind}: expected fields that can be signed, got others ({error}): nothing was done."
        ) from error


def seal(signer: Signer, statement: bytes) -> bytes:
    """Sign a statement."""
    return signer.sign_bytes(statement)


def refuse_unsealed(key: VerifierKey, statement: bytes, signature: bytes) -> None:
    """Raise WireError unless `key` signed exactly this statement."""
    if not isinstance(signature, bytes) or not key.is_signed(statement, signature):
        kind = statement.partition(b"\n")[0].decode(errors="replace")
        raise WireError(
            f"{kind}: expected a signature of {key.name} over what was received, got another. It was changed, "
            f"replayed, or sent by somebody else: nothing was done."
        )


def digest(statement: bytes) -> str:
    """SHA-256 of a statement, hexadecimal."""
    return sha256(statement).hexdigest()


def _exact(scalars: Mapping[str, Scalar]) -> list[list[str]]:
    """Scalars by name with their types: 1, 1.0, True and "1" are four things."""
    return [[name, *_typed(name, value)] for name, value in sorted(scalars.items())]


def _typed(name: str, value: object) -> tuple[str, str]:
    match value:
        case bool():
            return "bool", str(value)
        case int():
            return "int", str(value)
        case float():
            return "float", float(value).hex()
        case str():
            return "text", value
        case bytes():
            return "bytes", value.hex()
        case _:
            raise WireError(f"{name}: expected a scalar, got {type(value).__name__}. Nothing was done.")
