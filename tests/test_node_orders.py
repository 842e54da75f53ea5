"""What a letter says, and who said it: whatever was changed on the way is found out."""

from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest

from client.node import orders
from client.node.letters import Letter
from client.node.membership import Standing
from client.node.orders import RunFacts
from common.consortium import seals
from common.errors import RefusedError, WireError
from common.messages import Order, Refusal
from common.transparency.notes import Signer
from common.wire import encode_order

COORDINATOR, OWNER, STRANGER = Signer.new("hub"), Signer.new("north"), Signer.new("hub")
STANDING = Standing(
    signer=OWNER,
    position=1,
    roster="a" * 64,
    consortium="study",
    coordinator=COORDINATOR.key,
    coordinator_expires=2**40,
    coordinator_address="hub:9443",
)
RUN = RunFacts(flower_run=2**64 - 1, scenario="text", bundle=b"")
POLICY = "b" * 64
WEIGHTS = np.arange(3, dtype=np.float32)
ORDER = Order(run="r", round=1, attempt=1, client=1, weights_P=WEIGHTS)


def letter(*, scalars=None, weights=None, policy=POLICY, signer=COORDINATOR, run=RUN, standing=STANDING):
    """An order as the coordinator sends it, or as somebody pretends."""
    scalars = encode_order(ORDER).scalars if scalars is None else scalars
    statement = seals.order_statement(
        roster=standing.roster,
        consortium=standing.consortium,
        recipient=standing.name,
        flower_run=run.flower_run,
        scenario=run.digest,
        policy=policy,
        scalars=scalars,
        weights=sha256(WEIGHTS.tobytes()).hexdigest(),
    )
    return Letter(
        kind="train",
        records={"order": scalars, "seal": {"signature": seals.seal(signer, statement), "policy": policy}},
        arrays={"weights": WEIGHTS.tobytes() if weights is None else weights},
    )


def word(sent, *, run=RUN, standing=STANDING):
    """The word by which a letter is refused, or nothing."""
    order = orders.order_in(sent)
    try:
        orders.refuse_forged(order.statement(standing, run), order.signature, standing)
    except RefusedError as error:
        return error.word
    return None


def test_the_coordinators_own_order_is_opened():
    """With exactly the weights that were signed."""
    assert word(letter()) is None
    opened = orders.order_in(letter()).opened()
    assert opened.weights_P.tobytes() == WEIGHTS.tobytes()
    assert (opened.run, opened.client) == ("r", 1)


@pytest.mark.parametrize(
    "sent",
    [
        letter(signer=STRANGER),
        letter(standing=replace(STANDING, signer=Signer.new("south"))),
        letter(standing=replace(STANDING, roster="c" * 64)),
        letter(standing=replace(STANDING, consortium="other")),
        letter(run=replace(RUN, flower_run=1)),
        letter(run=replace(RUN, scenario="other")),
        letter(weights=(WEIGHTS + 1).tobytes()),
        replace(letter(), records={**letter().records, "order": encode_order(replace(ORDER, round=2)).scalars}),
        replace(letter(), records={**letter().records, "order": dict(encode_order(ORDER).scalars) | {"client": True}}),
        replace(letter(), records={**letter().records, "seal": {**letter().records["seal"], "policy": "e" * 64}}),
        replace(letter(), records={**letter().records, "seal": {"signature": b"", "policy": POLICY}}),
    ],
    ids=["stranger", "another owner's", "roster", "consortium", "run", "scenario", "weights", "round", "type", "policy",
         "no signature"],
)  # fmt: skip
def test_whatever_was_changed_is_forged(sent):
    """One byte in anything that is signed, and nothing is done."""
    assert word(sent) is Refusal.FORGED


def test_an_expired_coordinator_orders_nothing():
    """Its signature is right, and no longer counts."""
    assert word(letter(), standing=replace(STANDING, coordinator_expires=1)) is Refusal.FORGED


def test_weights_that_are_no_whole_numbers_of_float32_are_malformed():
    """An array is so many times four bytes."""
    with pytest.raises(WireError, match="expected float32 numbers, got 11 bytes"):
        orders.order_in(letter(weights=WEIGHTS.tobytes()[:-1]))


@pytest.mark.parametrize("name", ["order", "seal"])
def test_a_letter_without_a_record_is_malformed(name):
    """It says what is missing."""
    whole = letter()
    with pytest.raises(WireError, match=f"{name}: expected a record, got none"):
        orders.order_in(replace(whole, records={key: value for key, value in whole.records.items() if key != name}))


def test_two_arrays_are_malformed():
    """An order has one."""
    with pytest.raises(WireError, match="expected this one array, got 2"):
        orders.order_in(replace(letter(), arrays={"weights": b"", "more": b""}))


def test_a_question_is_bound_to_its_kind_and_run():
    """An offer's signature ends nothing."""
    statement = seals.question_statement(
        roster=STANDING.roster, consortium="study", recipient="north", flower_run=RUN.flower_run, scenario=RUN.digest,
        run="r", kind="offer",
    )  # fmt: skip
    seal = {"signature": seals.seal(COORDINATOR, statement)}
    for kind, run, fits in (("offer", "r", True), ("end", "r", False), ("offer", "s", False)):
        sent = Letter(kind="query", records={"question": {"kind": kind, "run": run}, "seal": seal}, arrays={})
        question = orders.question_in(sent)
        assert COORDINATOR.key.is_signed(question.statement(STANDING, RUN), question.signature) is fits
    with pytest.raises(WireError, match="expected offer or end"):
        orders.question_in(
            Letter(kind="query", records={"question": {"kind": "x", "run": "r"}, "seal": seal}, arrays={})
        )


def test_replies_are_signed_over_what_they_answer():
    """A report, a refusal and an answer, each checked with the owner's key."""
    reply = orders.report({"round": 1}, b"\0" * 4, standing=STANDING, order="o", policy=POLICY, code="c").reply()
    statement = seals.report_statement(
        roster=STANDING.roster, consortium="study", sender="north", order="o", policy=POLICY, code="c",
        scalars={"round": 1}, update=sha256(b"\0" * 4).hexdigest(),
    )  # fmt: skip
    assert OWNER.key.is_signed(statement, reply.records["seal"]["signature"])
    reply = orders.refusal(Refusal.FAILED, standing=STANDING, order="o")
    statement = seals.refusal_statement(
        roster=STANDING.roster, consortium="study", sender="north", order="o", word="failed"
    )
    assert OWNER.key.is_signed(statement, reply.records["seal"]["signature"])
    assert reply.records["refusal"] == {"word": "failed"}
    reply = orders.answer({"run": "r"}, standing=STANDING, question="q")
    statement = seals.answer_statement(
        roster=STANDING.roster, consortium="study", sender="north", question="q", fields={"run": "r"}
    )
    assert OWNER.key.is_signed(statement, reply.records["seal"]["signature"])


@pytest.mark.parametrize("value", [None, 1, b"text", "x" * (orders.LARGEST_SCENARIO + 1), "\udc80"])
def test_a_scenario_is_a_bounded_text(value):
    """Whatever the link says of a run."""
    with pytest.raises(WireError):
        orders.scenario_in(value)
