"""The client's Flower app: what it answers, and that nothing but a word leaves when it fails."""

import json
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from client.app import app, reservation
from common import flat
from common.config import parse
from common.messages import Order, Refusal
from common.models.registry import build
from common.privacy.event_log import read_entries
from common.privacy.plan import make_plan
from common.privacy.plan_file import to_json
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
PLAN = make_plan(SCENARIO, records=(40, 40), run="r")


@pytest.fixture
def node(tmp_path: Path) -> dict[str, str | int]:
    """One organisation's own configuration: its data and its budget."""
    identify()
    generator = np.random.default_rng(0)
    data = Shard(features_ND=generator.random((80, 1, 8, 8), dtype=np.float32), labels_N=generator.integers(0, 10, 80))
    shards = tmp_path / "shards"
    shards.mkdir()
    write_shards(shards, train=data, test=data, indices=[np.arange(40), np.arange(40, 80)])
    (tmp_path / "plan.json").write_text(to_json(PLAN))
    return {
        "partition-id": 0,
        "shards": str(shards),
        "plan": str(tmp_path / "plan.json"),
        "events": str(tmp_path / "events.jsonl"),
    }


def order(**changes: object) -> Order:
    weights = flat.flatten(build(SCENARIO.model, TASKS["digits"], seed=7)).numpy()
    values: dict[str, object] = {"run": "r", "round": 1, "attempt": 1, "client": 0, "weights_P": weights}
    return Order(**(values | {"mechanism": PLAN.mechanism(0)} | changes))  # type: ignore[arg-type]


def ask(node: dict[str, str | int], asked: Order, *, text: str = TEXT, state: RecordDict | None = None) -> Message:
    frame = encode_order(asked)
    content = RecordDict(
        {"arrays": ArrayRecord({"weights": Array(frame.array)}), "order": ConfigRecord(dict(frame.scalars))}
    )
    context = Context(1, 1, node, state or RecordDict(), {"scenario": text})
    return app(Message(content, dst_node_id=1, message_type="train"), context)


def word(reply: Message) -> str | None:
    return reply.error.reason if reply.has_error() else None


def test_a_report_holds_the_update_and_its_address_and_nothing_else(node):
    """What may leave a client is exactly `Report`: no counts, losses or accuracies."""
    reply = ask(node, order())
    assert {name: sorted(record) for name, record in reply.content.items()} == {
        "arrays": ["update"],
        "report": ["attempt", "client", "round", "run"],
        "metrics": ["num-examples"],
    }
    assert reply.content.metric_records["metrics"]["num-examples"] == 1  # the same for every size of shard


def test_the_charge_is_on_disk_before_the_first_record_is_read(node):
    """With the data out of reach the order fails, and is charged all the same."""
    reply = ask(node | {"shards": "/nowhere"}, order())
    assert word(reply) == Refusal.DATA_UNFIT.value
    assert [(e.round, e.attempt, e.account) for e in read_entries(Path(str(node["events"])))] == [
        (1, 1, "client-000000")
    ]


def test_the_same_order_asked_twice_never_trains_twice(node):
    """A retried or replayed order is refused."""
    assert word(ask(node, order())) is None
    assert word(ask(node, order())) == Refusal.ALREADY_TRAINED.value


def test_a_spent_budget_is_refused_at_the_client(node):
    """The plan reserved two rounds and one spare: the fourth attempt is refused, whatever the coordinator asks."""
    words = [word(ask(node, order(attempt=attempt))) for attempt in (1, 2, 3, 4)]
    assert words == [None, None, None, Refusal.BUDGET_SPENT.value]


def test_a_coordinator_cannot_lower_the_noise(node):
    """An order whose mechanism is not the plan's, to the last digit, is refused before it is charged."""
    mechanism = PLAN.mechanism(0)
    assert mechanism is not None
    quieter = type(mechanism)(
        sampling_rate=mechanism.sampling_rate,
        noise_multiplier=mechanism.noise_multiplier * 0.999,
        max_grad_norm=mechanism.max_grad_norm,
        steps=mechanism.steps,
    )
    assert word(ask(node, order(mechanism=quieter))) == Refusal.NOT_IN_PLAN.value
    assert not read_entries(Path(str(node["events"])))


def test_without_plan_and_event_log_a_private_order_is_refused(node):
    """An organisation that keeps no account does not train."""
    bare = {name: node[name] for name in ("partition-id", "shards")}
    assert word(ask(bare, order())) == Refusal.NOT_RECORDED.value


def test_a_reservation_for_another_order_does_not_count(node):
    """What a grid reserved is for that order alone."""
    bare = {name: node[name] for name in ("partition-id", "shards")}
    other = RecordDict({"reservation": reservation(order(round=2))})
    assert word(ask(bare, order(), state=other)) == Refusal.NOT_RECORDED.value
    own = RecordDict({"reservation": reservation(order())})
    assert word(ask(bare, order(), state=own)) is None


def test_an_event_log_that_does_not_read_refuses_training(node):
    """What was spent is not known, so nothing is trained."""
    Path(str(node["events"])).write_text('{"run":"r"}\n')
    assert word(ask(node, order())) == Refusal.NOT_RECORDED.value


def test_an_order_for_another_client_is_refused(node):
    """A client has its own records only."""
    assert word(ask(node, order(client=1, mechanism=PLAN.mechanism(1)))) == Refusal.NOT_IN_PLAN.value


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
    """Bytes from outside get one word, never a stray exception."""
    reply = app(
        Message(content, dst_node_id=1, message_type="train"), Context(1, 1, node, RecordDict(), {"scenario": TEXT})
    )
    assert word(reply) == Refusal.MALFORMED.value


def test_a_scenario_that_does_not_read_is_refused(node):
    """The scenario comes from the coordinator too."""
    assert word(ask(node, order(), text="rubbish")) == Refusal.MALFORMED.value
