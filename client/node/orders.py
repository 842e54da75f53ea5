"""What a letter says and whether the coordinator said it; what goes back, signed.

    order = orders.order_in(letter)              plain parts; WireError when there is none
    statement = order.statement(standing, run)   what was signed, if it was
    orders.refuse_forged(order, statement, standing)
    orders.report(...), orders.refusal(...)      signed replies

Pure functions: nothing is read, nothing is kept, no file format of a sender's is parsed.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Literal, cast

import numpy as np

from client.node.letters import Fields, Letter, Reply
from client.node.membership import Standing
from common.consortium import seals
from common.errors import RefusedError, WireError
from common.messages import Order, Refusal
from common.raw_arrays import FLOAT_BYTES
from common.wire import Frame, Scalar, decode_order

LARGEST_SCENARIO = 1 << 20  # bytes


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """A run as the link tells it; only with a seal over its digest does it count.

    Args:
        flower_run: Flower's number.
        scenario: the scenario's text.
        bundle: the bytes of the bundle that came with it, no more than are looked at; they are never unpacked.
    """

    flower_run: int
    scenario: str = field(repr=False)
    bundle: bytes = field(repr=False)

    @property
    def digest(self) -> str:
        """SHA-256 of the scenario's text, hexadecimal."""
        return sha256(self.scenario.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class SealedOrder:
    """An order as it came: nobody has vouched for it yet."""

    scalars: Fields
    weights: bytes = field(repr=False)
    policy: str
    signature: bytes

    def statement(self, standing: Standing, run: RunFacts) -> bytes:
        """Return what the coordinator signed if this is its order to this node."""
        return seals.order_statement(
            roster=standing.roster,
            consortium=standing.consortium,
            recipient=standing.name,
            flower_run=run.flower_run,
            scenario=run.digest,
            policy=self.policy,
            scalars=self.scalars,
            weights=sha256(self.weights).hexdigest(),
        )

    def opened(self) -> Order:
        """Return the order; WireError when it does not decode."""
        return decode_order(Frame(scalars=dict(self.scalars), array=np.frombuffer(self.weights, np.dtype("<f4"))))


@dataclass(frozen=True, kw_only=True)
class SealedQuestion:
    """A question as it came."""

    run: str
    kind: Literal["offer", "end"]
    signature: bytes

    def statement(self, standing: Standing, run: RunFacts) -> bytes:
        """Return what the coordinator signed if this is its question to this node."""
        return seals.question_statement(
            roster=standing.roster,
            consortium=standing.consortium,
            recipient=standing.name,
            flower_run=run.flower_run,
            scenario=run.digest,
            run=self.run,
            kind=self.kind,
        )


@dataclass(frozen=True, kw_only=True)
class SealedReport:
    """A report with the organisation's signature: the same bytes whenever it is asked for again."""

    scalars: Fields
    update: bytes = field(repr=False)
    policy: str
    code: str
    signature: bytes

    def reply(self) -> Reply:
        """Return the message that carries it."""
        seal: Fields = {"signature": self.signature, "policy": self.policy, "code": self.code}
        return Reply(records={"report": self.scalars, "seal": seal}, update=self.update)


def scenario_in(value: object) -> str:
    """Return a run's scenario; WireError when it is no text, or a text without end."""
    if not isinstance(value, str) or len(value.encode(errors="replace")) > LARGEST_SCENARIO:
        raise WireError(f"scenario: expected a text of at most {LARGEST_SCENARIO} bytes, got something else.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise WireError("scenario: expected a text, got characters that are none.") from error
    return value


def order_in(letter: Letter) -> SealedOrder:
    """Return the order that a letter carries, its weights as the exact bytes that were signed, or raise WireError."""
    seal = _record(letter, "seal")
    return SealedOrder(
        scalars=_record(letter, "order"),
        weights=_numbers(letter.arrays, "weights"),
        policy=_text(seal, "policy"),
        signature=_bytes(seal, "signature"),
    )


def question_in(letter: Letter) -> SealedQuestion:
    """Return the question that a letter carries, or raise WireError."""
    question = _record(letter, "question")
    kind = _text(question, "kind")
    if kind not in ("offer", "end"):
        raise WireError("question: expected offer or end, got another.")
    return SealedQuestion(
        run=_text(question, "run"),
        kind=cast(Literal["offer", "end"], kind),
        signature=_bytes(_record(letter, "seal"), "signature"),
    )


def refuse_forged(statement: bytes, signature: bytes, standing: Standing) -> None:
    """Raise RefusedError unless the coordinator, while it may, signed exactly this."""
    if time.time() >= standing.coordinator_expires:
        raise RefusedError(Refusal.FORGED, "the coordinator's certificate has expired: it must renew it")
    try:
        seals.refuse_unsealed(standing.coordinator, statement, signature)
    except WireError as error:
        raise RefusedError(Refusal.FORGED, f"{error} Or do both sides have the same roster?") from error


def report(scalars: Fields, update: bytes, *, standing: Standing, order: str, policy: str, code: str) -> SealedReport:
    """Sign a report to the order of this digest."""
    statement = seals.report_statement(
        roster=standing.roster,
        consortium=standing.consortium,
        sender=standing.name,
        order=order,
        policy=policy,
        code=code,
        scalars=scalars,
        update=sha256(update).hexdigest(),
    )
    signature = seals.seal(standing.signer, statement)
    return SealedReport(scalars=scalars, update=update, policy=policy, code=code, signature=signature)


def refusal(word: Refusal, *, standing: Standing, order: str) -> Reply:
    """Sign one word about the order, or question, of this digest."""
    statement = seals.refusal_statement(
        roster=standing.roster, consortium=standing.consortium, sender=standing.name, order=order, word=word.value
    )
    seal = {"signature": seals.seal(standing.signer, statement)}
    return Reply(records={"refusal": {"word": word.value}, "seal": seal})


def answer(fields: Mapping[str, str | int], *, standing: Standing, question: str) -> Reply:
    """Sign the answer to the question of this digest."""
    statement = seals.answer_statement(
        roster=standing.roster, consortium=standing.consortium, sender=standing.name, question=question, fields=fields
    )
    return Reply(records={"answer": dict(fields), "seal": {"signature": seals.seal(standing.signer, statement)}})


def _record(letter: Letter, name: str) -> Fields:
    if name not in letter.records:
        raise WireError(f"{name}: expected a record, got none.")
    return letter.records[name]


def _numbers(arrays: Mapping[str, bytes], name: str) -> bytes:
    numbers = arrays.get(name)
    if numbers is None or len(arrays) != 1:
        raise WireError(f"{name}: expected this one array, got {len(arrays)}.")
    if len(numbers) % FLOAT_BYTES:
        raise WireError(f"{name}: expected float32 numbers, got {len(numbers)} bytes.")
    return numbers


def _text(fields: Mapping[str, Scalar], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise WireError(f"{name}: expected a text, got {type(value).__name__}.")
    return value


def _bytes(fields: Mapping[str, Scalar], name: str) -> bytes:
    value = fields.get(name)
    if not isinstance(value, bytes):
        raise WireError(f"{name}: expected bytes, got {type(value).__name__}.")
    return value
