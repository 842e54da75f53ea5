"""Between strategy and link everything is signed: a link that lies is found out."""

from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Error, Message
from sample_consortium import make
from sealed_replies import MailGrid, order_statement, refusal_to, report_to

from common.consortium import seals
from common.messages import Order
from common.packing import INLINE_BYTES, unpacked
from server.coordinator.parties import Parties
from server.coordinator.sealed_grid import SealedGrid
from server.exchange import order_message, report_in, weights_record
from server.replies import ReplyRefusedError

WEIGHTS = np.array([1.0, 2.0, 3.0], np.float32)


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return make(tmp_path_factory.mktemp("consortium"), owners=2, witness=False)


@pytest.fixture(scope="module")
def parties(sample):
    return Parties(
        roster=sample.roster,
        signer=sample.coordinator.signer,
        flower_run=2**63 + 5,  # as large as Flower's numbers get
        scenario="5" * 64,
        owners=sample.roster.owners,
        nodes=(2, 1),  # the link numbers nodes in another order than the roster
        policies={0: "a" * 64, 1: "b" * 64},
    )


def orders(*, number: int = 1, weights_P=WEIGHTS) -> list[Message]:
    arrays = weights_record(weights_P)
    made = [
        Order(run="r", round=number, attempt=1, client=client, weights_P=np.zeros(0, np.float32)) for client in (0, 1)
    ]
    return [order_message(order, arrays=arrays, node=order.client + 1, ttl_s=60) for order in made]


def words(sealed: SealedGrid, *, number: int = 1) -> dict[int, str]:
    """Send a round's orders and say by node what came: a word, or `report`."""
    names = list(sealed.push_messages(orders(number=number)))
    return {reply.metadata.src_node_id: word_of(reply) for reply in sealed.pull_messages(names)}


def word_of(reply: Message) -> str:
    try:
        report_in(reply, size=3)
    except ReplyRefusedError as error:
        return str(error)
    return "report"


def test_orders_are_signed_for_their_recipient_alone(sample, parties):
    """What reaches a node verifies with the coordinator's key for this organisation and no other."""
    seen = []
    sealed = SealedGrid(MailGrid(2, seen.append), parties)
    sealed.push_messages(orders())
    for message in seen:
        party = scalars(message)["client"]
        assert message.metadata.dst_node_id == parties.nodes[party]
        signature = message.content["letter"]["seal.signature"]
        key = sample.roster.coordinator.key
        seals.refuse_unsealed(key, order_statement(message, parties, party), signature)
        assert not key.is_signed(order_statement(message, parties, 1 - party), signature)


def test_signed_reports_come_through_as_they_are(sample, parties):
    """Each organisation's report reaches the strategy under its place in the roster."""
    sealed = SealedGrid(MailGrid(2, lambda order: answer(order, parties, sample)), parties)
    assert words(sealed) == {1: "report", 2: "report"}


def test_a_signed_refusal_comes_through_as_its_word(sample, parties):
    """One word of the fixed vocabulary is all that the strategy gets."""
    sealed = SealedGrid(
        MailGrid(2, lambda order: refusal_to(order, parties, party_of(order), owner(order, sample), "outside-policy")),
        parties,
    )
    assert words(sealed) == {1: "outside-policy", 2: "outside-policy"}


def test_a_word_outside_the_vocabulary_becomes_failed(sample, parties):
    """A member cannot put text of its own into the coordinator's books."""
    sealed = SealedGrid(
        MailGrid(2, lambda order: refusal_to(order, parties, party_of(order), owner(order, sample), "patient 17 died")),
        parties,
    )
    assert words(sealed) == {1: "failed", 2: "failed"}


def test_an_unsigned_refusal_is_forged(sample, parties):
    """A link that invents a refusal is found out: the word needs the organisation's signature."""

    def invent(order):
        reply = refusal_to(order, parties, party_of(order), owner(order, sample), "failed")
        reply.content["letter"]["refusal.word"] = "budget-spent"
        return reply

    assert words(SealedGrid(MailGrid(2, invent), parties)) == {1: "forged", 2: "forged"}


@pytest.mark.parametrize(
    "lie",
    [
        pytest.param(lambda fields: fields.update({"=update": bytes(12)}), id="other numbers"),
        pytest.param(lambda fields: fields.update({"report.round": 2}), id="another round"),
        pytest.param(lambda fields: fields.update({"report.correct": "3.0"}), id="a count added"),
        pytest.param(lambda fields: fields.update({"seal.code": "d" * 64}), id="another code digest"),
        pytest.param(lambda fields: fields.update({"seal.signature": bytes(64)}), id="zeros for a signature"),
        pytest.param(lambda fields: fields.update({"seal.signature": "text"}), id="a text for a signature"),
        pytest.param(lambda fields: fields.update({"seal.signature": b""}), id="nothing for a signature"),
        pytest.param(lambda fields: drop(fields, "seal."), id="no seal"),
        pytest.param(lambda fields: drop(fields, "="), id="no arrays"),
        pytest.param(lambda fields: drop(fields, "report."), id="no report"),
        pytest.param(lambda fields: fields.update({"=": b""}), id="an array without a name"),
        pytest.param(lambda fields: fields.update({"report": 1}), id="a field of no record"),
        pytest.param(lambda fields: fields.update({"report.round": [1, 2]}), id="a list for a number"),
    ],
)
def test_a_report_changed_on_its_way_is_forged(sample, parties, lie):
    """Whatever a link changes in a signed report, the report is not used."""

    def lying(order):
        reply = answer(order, parties, sample)
        if party_of(order) == 1:
            lie(reply.content["letter"])
        return reply

    assert words(SealedGrid(MailGrid(2, lying), parties)) == {1: "report", 2: "forged"}


def test_a_report_of_another_member_is_forged(sample, parties):
    """A member cannot answer for another: the signature must be of the one who was asked."""

    def impersonate(order):
        party = party_of(order)
        return report_to(order, parties, party, sample.owners[1 - party])

    assert words(SealedGrid(MailGrid(2, impersonate), parties)) == {1: "forged", 2: "forged"}


def test_two_reports_swapped_are_forged(sample, parties):
    """A link that gives one organisation's report as the other's is found out."""
    swapped = replace(
        parties, nodes=(1, 2), owners=tuple(reversed(parties.owners)), policies={0: "b" * 64, 1: "a" * 64}
    )

    def other(order):
        party = party_of(order)
        return report_to(order, swapped, party, sample.owners[1 - party])

    assert words(SealedGrid(MailGrid(2, other), parties)) == {1: "forged", 2: "forged"}


def test_a_report_replayed_from_another_round_is_forged(sample, parties):
    """A report answers one order: the same bytes under a later one are refused."""
    kept: dict[int, Message] = {}

    def replay(order):
        party = party_of(order)
        reply = answer(order, parties, sample)
        if scalars(order)["round"] == 1:
            kept[party] = reply
            return reply
        return Message(kept[party].content, reply_to=order)

    sealed = SealedGrid(MailGrid(2, replay), parties)
    assert words(sealed, number=1) == {1: "report", 2: "report"}
    assert words(sealed, number=2) == {1: "forged", 2: "forged"}


def test_a_report_from_an_earlier_flower_run_is_forged(sample, parties):
    """A run that is resumed does not take the answers of the run before it."""
    before = replace(parties, flower_run=1)
    sealed = SealedGrid(MailGrid(2, lambda order: answer(order, before, sample)), parties)
    assert words(sealed) == {1: "forged", 2: "forged"}


def test_a_report_under_another_policy_is_forged(sample, parties):
    """An owner that changed its policy since its offer is not taken to have trained under the old one."""
    changed = replace(parties, policies={0: "e" * 64, 1: "e" * 64})
    sealed = SealedGrid(MailGrid(2, lambda order: answer(order, changed, sample)), parties)
    assert words(sealed) == {1: "forged", 2: "forged"}


def test_an_oversized_report_is_not_hashed(sample, parties):
    """A report far longer than the model is refused by its length alone."""
    sealed = SealedGrid(
        MailGrid(
            2,
            lambda order: report_to(
                order, parties, party_of(order), owner(order, sample), update_P=np.ones(1000, np.float32)
            ),
        ),
        parties,
    )
    assert words(sealed) == {1: "wrong-size", 2: "wrong-size"}


def test_flowers_own_error_means_no_answer(parties):
    """A node that is gone is reported by Flower in words of its own, which go no further."""
    grid = MailGrid(2, lambda order: Message(Error(5, "node 17 at 10.0.0.4 is gone"), reply_to=order))
    assert words(SealedGrid(grid, parties)) == {1: "no-answer", 2: "no-answer"}


def test_short_weights_travel_in_the_letter_and_long_ones_once_for_all(parties):
    """An order is one record where the model is small; a large model is one array that all orders of a round share."""
    seen = []
    sealed = SealedGrid(MailGrid(2, seen.append), parties)
    sealed.push_messages(orders())
    assert [list(message.content) for message in seen] == [["letter"], ["letter"]]
    seen.clear()
    sealed.push_messages(orders(weights_P=np.ones(INLINE_BYTES // 4 + 1, np.float32)))
    arrays = [message.content["arrays"]["weights"] for message in seen]
    assert arrays[0].data is arrays[1].data
    assert "=weights" not in seen[0].content["letter"]


def test_a_long_update_comes_beside_the_letter(sample, parties):
    """A report's array that is not packed counts as if it were."""
    long_P = np.ones(INLINE_BYTES // 4 + 1, np.float32)

    def answer_at_length(order):
        order.content["letter"]["=weights"] = long_P.tobytes()  # which came beside the letter too
        reply = report_to(order, parties, party_of(order), owner(order, sample), update_P=long_P)
        assert "=update" not in reply.content["letter"]
        return reply

    sealed = SealedGrid(MailGrid(2, answer_at_length), parties)
    replies = list(sealed.pull_messages(sealed.push_messages(orders(weights_P=long_P))))
    assert [np.array_equal(report_in(reply, size=len(long_P)).update_P, long_P) for reply in replies] == [True, True]


def drop(fields, prefix: str) -> None:
    for name in [name for name in fields if name.startswith(prefix)]:
        del fields[name]


def scalars(message: Message):
    return unpacked(message.content["letter"])[0]["order"]


def answer(order: Message, parties: Parties, sample) -> Message:
    return report_to(order, parties, party_of(order), owner(order, sample))


def owner(order: Message, sample):
    return sample.owners[party_of(order)]


def party_of(order: Message) -> int:
    client = scalars(order)["client"]
    assert isinstance(client, int)
    return client
