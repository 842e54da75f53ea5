"""The client's Flower app: what it answers, and that nothing but a word leaves when it fails."""

import json
import os
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from ledger_reader import charged, kinds, refused, settled
from owner_policy import RECORDS, write_policy

from client import owner as owners
from client.app import app, reservation
from common import flat
from common.config import parse
from common.ledger import Ledger
from common.messages import Order, Refusal
from common.models.registry import build
from common.privacy.plan import make_plan
from common.shards import Shard, write_shards
from common.tasks import TASKS
from common.wire import encode_order
from simulations.engine.executors import identify

TEXT = """
run = {name = "x", rounds = 2}
data = {dataset = "digits", clients = 2}
training = {batch_size = 10, local_steps = 1}
server = {spare_rounds = 1}
privacy = {epsilon = 8.0}
"""
SCENARIO = parse(TEXT)
PLAN = make_plan(SCENARIO, records=(RECORDS, RECORDS), run="r")

Node = dict[str, str | int]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """One organisation's own configuration: its data, its policy and its ledger."""
    identify()
    generator = np.random.default_rng(0)
    data = Shard(features_ND=generator.random((80, 1, 8, 8), dtype=np.float32), labels_N=generator.integers(0, 10, 80))
    shards = tmp_path / "shards"
    shards.mkdir()
    write_shards(shards, train=data, test=data, indices=[np.arange(40), np.arange(40, 80)])
    Ledger.create(tmp_path / "ledger.db").close()
    return {
        "partition-id": 0,
        "shards": str(shards),
        "policy": str(write_policy(tmp_path / "policy.toml")),
        "ledger": str(tmp_path / "ledger.db"),
    }


def ledger(node: Node) -> Path:
    return Path(str(node["ledger"]))


def bare(node: Node) -> Node:
    """The node of somebody who keeps no account."""
    return {name: node[name] for name in ("partition-id", "shards")}


def order(**changes: object) -> Order:
    weights = flat.flatten(build(SCENARIO.model, TASKS["digits"], seed=7)).numpy()
    values: dict[str, object] = {"run": "r", "round": 1, "attempt": 1, "client": 0, "weights_P": weights}
    return Order(**(values | {"mechanism": PLAN.mechanism(0)} | changes))  # type: ignore[arg-type]


def ask(node: Node, asked: Order, *, text: str = TEXT, state: RecordDict | None = None) -> Message:
    frame = encode_order(asked)
    content = RecordDict(
        {"arrays": ArrayRecord({"weights": Array(frame.array)}), "order": ConfigRecord(dict(frame.scalars))}
    )
    context = Context(1, 1, node, state or RecordDict(), {"scenario": text})
    return app(Message(content, dst_node_id=1, message_type="train"), context)


def word(reply: Message) -> str | None:
    return reply.error.reason if reply.has_error() else None


def is_empty(path: Path) -> bool:
    """Whether nothing was ever written."""
    with closing(Ledger(path)) as opened:
        return opened.books.size == 0


# --- reports ----------------------------------------------------------------------------------------------------------


def test_a_report_holds_the_update_and_its_address_and_nothing_else(node):
    """What may leave a client is exactly `Report`: no counts, losses or accuracies."""
    reply = ask(node, order())
    assert {name: sorted(record) for name, record in reply.content.items()} == {
        "arrays": ["update"],
        "report": ["attempt", "client", "round", "run"],
        "metrics": ["num-examples"],
    }
    assert reply.content.metric_records["metrics"]["num-examples"] == 1  # the same for every size of shard


# --- charges ----------------------------------------------------------------------------------------------------------


def test_an_order_is_charged_and_committed(node):
    """The first order opens the account, reserves the run, is charged, and is committed when its report is made."""
    assert word(ask(node, order())) is None
    assert kinds(ledger(node)) == ["GENESIS", "RESERVE", "RESERVE", "COMMIT"]
    assert charged(ledger(node)) == [(1, 1, "wards")]
    assert settled(ledger(node)) == [("COMMIT", 1, 1, "wards")]


def test_the_charge_is_on_disk_before_the_first_record_is_read(node):
    """With the data out of reach the order fails, and is charged all the same: it expires."""
    reply = ask(node | {"shards": "/nowhere"}, order())
    assert word(reply) == Refusal.DATA_UNFIT.value
    assert charged(ledger(node)) == [(1, 1, "wards")]
    assert settled(ledger(node)) == [("EXPIRE", 1, 1, "wards")]


def test_an_order_that_fails_in_training_expires(node):
    """Labels that break the loss stop the training after records were read: what was charged stays so."""
    np.save(Path(str(node["shards"])) / "labels.npy", np.full(80, 987_654, np.int64))
    assert word(ask(node, order())) == Refusal.FAILED.value
    assert settled(ledger(node)) == [("EXPIRE", 1, 1, "wards")]
    assert word(ask(node, order())) == Refusal.ALREADY_TRAINED.value


def test_the_same_order_asked_twice_never_trains_twice(node):
    """A retried or replayed order is refused."""
    assert word(ask(node, order())) is None
    assert word(ask(node, order())) == Refusal.ALREADY_TRAINED.value
    assert charged(ledger(node)) == [(1, 1, "wards")]


def test_a_spent_budget_is_refused_at_the_client(node):
    """The plan reserved two rounds and one spare: the fourth attempt is refused, whatever the coordinator asks."""
    words = [word(ask(node, order(attempt=attempt))) for attempt in (1, 2, 3, 4)]
    assert words == [None, None, None, Refusal.BUDGET_SPENT.value]
    assert len(charged(ledger(node))) == 3


def test_a_coordinator_cannot_lower_the_noise(node):
    """An order whose mechanism is not the owner's own figure, to the last digit, is refused before it is charged."""
    mechanism = PLAN.mechanism(0)
    assert mechanism is not None
    quieter = replace(mechanism, noise_multiplier=mechanism.noise_multiplier * 0.999)
    assert word(ask(node, order(mechanism=quieter))) == Refusal.NOT_IN_PLAN.value
    assert charged(ledger(node)) == []


def test_a_run_outside_the_policy_is_refused_and_noted(node, tmp_path, caplog):
    """The word leaves, the reason stays in the owner's log, and the ledger has a REFUSE and no charge."""
    write_policy(tmp_path / "policy.toml", limits__min_cohort=3)
    reply = ask(node, order())
    assert word(reply) == Refusal.OUTSIDE_POLICY.value
    assert kinds(ledger(node)) == ["GENESIS", "REFUSE"]
    assert refused(ledger(node)) == [("r", "outside-policy")]
    assert "cohort: expected at least 3, got 2" in caplog.text
    assert "cohort" not in json.dumps(reply.error.__dict__, default=str)


@pytest.mark.parametrize("unit", ["none", "client"])
def test_an_order_without_the_client_s_own_noise_is_outside_every_policy(node, unit):
    """A scenario in which the client protects nothing is the coordinator's word: the owner's policy wins."""
    protection = {"none": 'unit = "none"', "client": 'unit = "client", epsilon = 8.0, delta = 0.05'}[unit]
    norm = {"none": None, "client": 1.0}[unit]
    text = TEXT.replace("epsilon = 8.0", protection)
    reply = ask(node, order(mechanism=None, max_update_norm=norm), text=text)
    assert word(reply) == Refusal.OUTSIDE_POLICY.value


@pytest.mark.parametrize("left", [(), ("policy",), ("ledger",)])
def test_without_policy_and_ledger_a_private_order_is_refused(node, left):
    """An organisation that keeps no account, or has no policy, does not train."""
    half = bare(node) | {name: node[name] for name in left}
    assert word(ask(half, order())) == Refusal.NOT_RECORDED.value
    assert is_empty(ledger(node))


@pytest.mark.parametrize("content", [None, b"", b'{"run":"r"}\n'])
def test_a_ledger_that_does_not_read_refuses_training(node, content):
    """What was spent is not known, so nothing is trained."""
    ledger(node).unlink()
    if content is not None:
        ledger(node).write_bytes(content)
    assert word(ask(node, order())) == Refusal.NOT_RECORDED.value


def test_a_ledger_without_its_key_refuses_training(node):
    """What cannot be signed cannot be charged."""
    ledger(node).with_name("ledger.db.key").unlink()
    assert word(ask(node, order())) == Refusal.NOT_RECORDED.value


@pytest.mark.parametrize("content", [None, "", "rubbish", "version = 2"])
def test_a_policy_that_does_not_read_permits_nothing(node, content):
    """Missing, empty, torn, or of a newer version."""
    policy = Path(str(node["policy"]))
    policy.unlink()
    if content is not None:
        policy.write_text(content)
    assert word(ask(node, order())) == Refusal.NOT_RECORDED.value
    assert is_empty(ledger(node))


# --- reservations of a grid -------------------------------------------------------------------------------------------


def test_what_a_grid_has_reserved_needs_no_ledger(node):
    """With the reservation of its order a client trains; where it has a policy and a ledger it charges there too."""
    own = RecordDict({"reservation": reservation(order())})
    assert word(ask(node, order(), state=own)) is None
    assert not is_empty(ledger(node))
    assert word(ask(bare(node), order(), state=RecordDict({"reservation": reservation(order())}))) is None


@pytest.mark.parametrize("other", [{"run": "s"}, {"round": 2}, {"attempt": 2}, {"client": 1}], ids=str)
def test_a_reservation_for_another_order_does_not_count(node, other):
    """What a grid reserved is for that order alone."""
    state = RecordDict({"reservation": reservation(order(**other))})
    assert word(ask(bare(node), order(), state=state)) == Refusal.NOT_RECORDED.value


def test_a_reservation_in_the_message_does_not_count(node):
    """It is the client's own state that counts: a coordinator cannot bring one along."""
    frame = encode_order(order())
    content = RecordDict(
        {
            "arrays": ArrayRecord({"weights": Array(frame.array)}),
            "order": ConfigRecord(dict(frame.scalars)),
            "reservation": reservation(order()),
        }
    )
    context = Context(1, 1, bare(node), RecordDict(), {"scenario": TEXT})
    reply = app(Message(content, dst_node_id=1, message_type="train"), context)
    assert word(reply) == Refusal.NOT_RECORDED.value


# --- what is not carried out ------------------------------------------------------------------------------------------


def test_an_order_for_another_client_is_refused(node):
    """A client has its own records only; an order that was misdirected costs it nothing."""
    assert word(ask(node, order(client=1, mechanism=PLAN.mechanism(1)))) == Refusal.NOT_IN_PLAN.value
    assert is_empty(ledger(node)) or charged(ledger(node)) == []


def test_failures_leave_as_one_word_without_data(node, caplog):
    """The text of an error stays in the owner's log: labels that break the loss must not travel."""
    labels = Path(str(node["shards"])) / "labels.npy"
    np.save(labels, np.full(80, 987_654, np.int64))
    reply = ask(node, order())
    assert word(reply) == Refusal.FAILED.value
    assert "987654" not in json.dumps(reply.error.__dict__, default=str)
    assert "order failed" in caplog.text


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"arrays": ArrayRecord({"weights": Array(np.zeros(3, np.float32))})}),
        RecordDict({"arrays": ArrayRecord({"weights": Array(np.zeros(3))}), "order": ConfigRecord({"run": 5})}),
    ],
    ids=["empty", "no order", "wrong types"],
)
def test_a_malformed_order_is_refused(node, content):
    """Bytes from outside get one word, never a stray exception, and write nothing."""
    reply = app(
        Message(content, dst_node_id=1, message_type="train"), Context(1, 1, node, RecordDict(), {"scenario": TEXT})
    )
    assert word(reply) == Refusal.MALFORMED.value
    assert is_empty(ledger(node))


def test_a_scenario_that_does_not_read_is_refused(node):
    """The scenario comes from the coordinator too."""
    assert word(ask(node, order(), text="rubbish")) == Refusal.MALFORMED.value
    assert is_empty(ledger(node))


def test_an_older_copy_of_the_ledger_is_noticed_after_a_restart(node, tmp_path):
    """A node that keeps the newest checkpoint elsewhere does not train on yesterday's ledger, and trains on today's."""
    seen = tmp_path / "elsewhere.note"
    careful = node | {"ledger-seen": str(seen)}

    def restart() -> None:
        owners._opened(ledger(node), seen, os.getpid()).close()
        owners._opened.cache_clear()

    assert word(ask(careful, order())) is None
    restart()
    older, today = ledger(node).read_bytes(), tmp_path / "today"
    assert word(ask(careful, order(round=2))) is None
    restart()
    ledger(node).rename(today)
    ledger(node).write_bytes(older)
    assert word(ask(careful, order(round=3))) == Refusal.NOT_RECORDED.value
    today.replace(ledger(node))
    assert word(ask(careful, order(round=3))) is None
