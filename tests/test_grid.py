"""The in-process grid: Flower's own strategies over it, charges before anybody is asked, what became of them after."""

import random
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from fake_clients import SECRET, message_to
from fake_grid import FakeExecutor
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict, UserConfig
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from ledger_reader import charged, kinds, refused, settled

from client.app import REFUSED
from client.budget import Budget, agreements
from common.errors import LedgerError, WireError
from common.ledger import Ledger
from common.messages import Mechanism, Order, Refusal
from common.privacy.events import SampledGaussian
from common.privacy.plan import Account, Plan
from common.transparency.drafts import Charge
from common.transparency.entries import Terms
from common.wire import encode_order
from simulations.engine.executors import Executor, Sequential, load_app
from simulations.engine.grid import InProcessGrid
from simulations.engine.workers import Workers

APP = "fake_clients:app"
NOTHING = np.zeros(0, np.float32)


def number(client: int) -> UserConfig:
    return {"partition-id": client}


def grid_of(executor: Executor, *, clients: int = 4, budget: Budget | None = None) -> InProcessGrid:
    return InProcessGrid(clients=clients, executor=executor, node_config=number, budget=budget)


def sequential(clients: int = 4) -> InProcessGrid:
    return grid_of(Sequential(APP, {}), clients=clients)


def ok(message: Message) -> Message:
    return Message(RecordDict(), reply_to=message)


def metrics(reply: Message) -> MetricRecord:
    return reply.content.metric_records["metrics"]


# --- Flower's side ----------------------------------------------------------------------------------------------------


def fed_avg(grid: Grid) -> tuple[np.ndarray, dict[int, float]]:
    """Let Flower's FedAvg train and evaluate for three rounds; return the weights and the losses."""
    random.seed(1)  # FedAvg draws its nodes from the global generator
    start = ArrayRecord({"weights": Array(np.arange(4, dtype=np.float32))})
    result = FedAvg(min_available_nodes=4).start(grid, start, num_rounds=3)
    losses = {round_: float(str(record["loss"])) for round_, record in result.evaluate_metrics_clientapp.items()}
    return result.arrays["weights"].numpy(), losses


# clients 0 to 3 add their numbers: the mean is 1.5 a round, exact in any order of adding
AFTER_THREE_ROUNDS = [4.5, 5.5, 6.5, 7.5]
LOSSES = {1: 12.0, 2: 18.0, 3: 24.0}  # the sum of 0, 1, 2, 3 is 6, and each round adds 4 * 1.5


def test_flower_s_own_fedavg_runs_unchanged():
    """Train and evaluate rounds of a stock strategy with a stock app."""
    weights, losses = fed_avg(sequential())
    assert weights.tolist() == AFTER_THREE_ROUNDS
    assert losses == LOSSES


def test_flower_s_own_fedavg_runs_the_same_on_workers():
    """The same strategy over worker processes gives the same numbers."""
    with closing(Workers(APP, {}, count=2)) as workers:
        weights, losses = fed_avg(grid_of(workers))
    assert weights.tolist() == AFTER_THREE_ROUNDS
    assert losses == LOSSES


def test_nodes_are_numbered_from_one():
    """Node ids 1 to `clients`, and Flower's node list follows from them."""
    grid = sequential(3)
    assert list(grid.get_node_ids()) == [1, 2, 3]
    assert [node.node_id for node in grid.get_nodes()] == [1, 2, 3]


def test_run_is_what_was_set():
    """Flower sets a run; before that there is none."""
    grid = sequential()
    with pytest.raises(RuntimeError, match="no run was set"):
        _ = grid.run
    run = Run.create_empty(run_id=7)
    grid.set_run(run)
    assert grid.run is run


def test_message_is_created_as_asked():
    """Destination, type, group and time to live are the strategy's."""
    message = sequential().create_message(RecordDict(), "train", 3, "round-2", ttl=5.0)
    metadata = message.metadata
    assert (metadata.dst_node_id, metadata.message_type, metadata.group_id, metadata.ttl) == (3, "train", "round-2", 5)


def test_process_has_an_identity_without_a_server():
    """Flower makes no message in a process that does not know who it is."""
    sequential()
    assert (TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id) == (1, 0, 0)


def test_client_gets_its_own_configuration():
    """Node 3 is client 2: the app adds its number."""
    (reply,) = sequential().send_and_receive([message_to(3)])
    assert reply.metadata.src_node_id == 3
    assert reply.content.array_records["arrays"]["weights"].numpy().tolist() == [2.0] * 4


def test_messages_are_answered_in_order_and_each_to_its_question():
    """A sequential grid asks one client after the other, and each reply names the message that it answers."""
    grid = sequential()
    ids = list(grid.push_messages([message_to(node) for node in (3, 1, 4)]))
    replies: list[Message] = []
    while len(replies) < 3:
        replies += grid.pull_messages(ids)
    assert [reply.metadata.src_node_id for reply in replies] == [3, 1, 4]
    assert [reply.metadata.reply_to_message_id for reply in replies] == ids
    assert len(set(ids)) == 3


def test_answers_stream_one_by_one():
    """The second client is not asked before the first one's answer was pulled: no cohort is held."""
    executor = FakeExecutor(ok)
    grid = grid_of(executor)
    ids = list(grid.push_messages([message_to(node) for node in (1, 2, 3)]))
    assert len(list(grid.pull_messages(ids))) == 1
    assert len(executor.submitted) <= 2  # one answered, one taken up


def test_nothing_is_pulled_where_nothing_was_pushed():
    """No message, no answer, no wait for ever."""
    assert list(sequential().pull_messages([])) == []
    assert list(sequential().send_and_receive([])) == []


def test_exception_of_an_app_leaves_as_one_word():
    """The text of an exception, which may hold data, stays at the client."""
    (reply,) = sequential().send_and_receive([message_to(1, "raise")])
    assert reply.has_error()
    assert reply.error.reason == "failed"
    assert SECRET not in repr(reply)


def test_unknown_kind_of_message_is_an_error_reply():
    """An app that has no such function fails, and the others go on."""
    query = Message(RecordDict(), 1, "query")
    replies = list(sequential().send_and_receive([query, message_to(2)]))
    assert [reply.has_error() for reply in replies] == [True, False]


def test_what_is_no_client_app_is_refused():
    """A name that leads to something else says so."""
    with pytest.raises(TypeError, match="fake_clients:not_an_app: expected a ClientApp, got object"):
        load_app("fake_clients:not_an_app")


# --- records ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["config", "list", "metrics", "arrays"])
def test_each_message_has_a_record_of_its_own(kind):
    """One RecordDict in all messages, as FedAvg has it: what one client writes into a record, no other client finds."""
    shared = RecordDict(
        {
            "arrays": ArrayRecord({"weights": Array(np.zeros(4, np.float32))}),
            "config": ConfigRecord({"behaviour": "scribble", "list": [1]}),
            "numbers": MetricRecord({"one": 1}),
        }
    )
    replies = list(sequential().send_and_receive([Message(shared, node, "train") for node in (1, 2, 3)]))
    assert [metrics(reply)[f"{kind}_touched"] for reply in replies] == [0, 0, 0]
    touched = {
        "config": "mark" in shared.config_records["config"],
        "list": len(shared.config_records["config"]["list"]) > 1,
        "metrics": "mark" in shared.metric_records["numbers"],
        "arrays": "mark" in shared.array_records["arrays"],
    }
    assert not touched[kind]


def test_arrays_are_shared_and_not_copied():
    """A cohort's model is in memory once: all messages hold the very same bytes."""
    executor = FakeExecutor(ok, room=9)
    grid = grid_of(executor)
    arrays = ArrayRecord({"weights": Array(np.zeros(4, np.float32))})
    content = RecordDict({"arrays": arrays})
    list(grid.send_and_receive([Message(content, node, "train") for node in (1, 2)]))
    for message, _, _ in executor.submitted:
        assert message.content.array_records["arrays"]["weights"].data is arrays["weights"].data


# --- time -------------------------------------------------------------------------------------------------------------


def test_message_whose_time_is_over_is_dropped():
    """No client is asked after the time to live; the others are, and nobody waits longer than was said."""
    executor = FakeExecutor(ok, room=9)
    grid = grid_of(executor)
    ids = list(grid.push_messages([message_to(1, ttl=0.05), message_to(2, ttl=60.0)]))
    time.sleep(0.1)
    came = list(grid.pull_messages(ids))
    assert [reply.metadata.src_node_id for reply in came] == [2]
    assert [message.metadata.dst_node_id for message, _, _ in executor.submitted] == [2]
    assert list(grid.pull_messages(ids)) == []


def test_message_expires_behind_a_slow_client():
    """Client 2's time is over while client 1 trains: it is never asked, and `send_and_receive` ends in time."""
    grid = sequential()
    slow, late = message_to(1, "sleep", seconds=0.3), message_to(2, ttl=0.2)
    started = time.monotonic()
    replies = list(grid.send_and_receive([slow, late], timeout=0.5))
    assert [reply.metadata.src_node_id for reply in replies] == [1]
    assert 0.5 <= time.monotonic() - started < 5


def test_send_and_receive_ends_at_its_timeout():
    """A client that never answers is left behind."""
    grid = grid_of(FakeExecutor(lambda message: ok(message) if message.metadata.dst_node_id == 1 else None, room=9))
    replies = list(grid.send_and_receive([message_to(1), message_to(2)], timeout=0.5))
    assert [reply.metadata.src_node_id for reply in replies] == [1]


# --- charges ----------------------------------------------------------------------------------------------------------

MECHANISM = Mechanism(sampling_rate=Fraction(1, 2), noise_multiplier=1.0, max_grad_norm=1.0, steps=3)


NAMES = [f"account-{client}" for client in range(4)]
EVENT = SampledGaussian(noise_multiplier=1.0, sampling_rate=Fraction(1, 2), steps=3)
TERMS = Terms(
    owner="o",
    lineage="x",
    version="1",
    records=10,
    unit="record",
    adjacency="zero-out",
    delta=1e-5,
    budget=100.0,  # two participations spend 10.3
    policy="p",
)


def plan(*, clients: int = 4, reserved: int = 2) -> Plan:
    account = Account(
        records=10,
        members=clients,
        event=EVENT,
        participations=1,
        reserved=reserved,
        epsilon=1.0,
        epsilon_reserved=1.0,
    )
    return Plan(
        run="r",
        unit="record",
        delta=1e-5,
        max_grad_norm=1.0,
        records=(10,) * clients,
        accounts=(account,),
        account_of=(0,) * clients,
    )


def order_for(client: int, *, node: int | None = None, **changes: object) -> Message:
    """Return a good order for a client, but for `changes`."""
    ttl = changes.pop("ttl", None)
    values = {"run": "r", "round": 1, "attempt": 1, "client": client, "weights_P": NOTHING, "mechanism": MECHANISM}
    order = Order(**(values | changes))  # type: ignore[arg-type]
    content = RecordDict({"order": ConfigRecord(dict(encode_order(order).scalars))})
    return Message(content, client + 1 if node is None else node, "train", ttl=ttl)  # type: ignore[arg-type]


class CountingLedger(Ledger):
    """Notes how many orders each durable write charged, and how many it committed and expired."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.reserved: list[int] = []
        self.settled: list[tuple[int, int]] = []

    def reserve(self, charges: Sequence[Charge]) -> list[Refusal | None]:
        answers = super().reserve(charges)
        self.reserved.append(answers.count(None))
        return answers

    def settle(self, committed: Sequence[Charge], expired: Sequence[Charge] = ()) -> None:
        super().settle(committed, expired)
        self.settled.append((len(committed), len(expired)))


class FullLedger(CountingLedger):
    """Has no room for another charge."""

    def reserve(self, charges: Sequence[Charge]) -> list[Refusal | None]:
        raise LedgerError("No space left on device")


def begun(path: Path, kind: type[CountingLedger] = CountingLedger) -> tuple[CountingLedger, Budget]:
    """Make a ledger and begin a run of two participations for each of four clients."""
    ledger = kind.create(path)
    assert isinstance(ledger, kind)
    budget = Budget(ledger, run="r", agreements=agreements(plan(), NAMES))
    budget.begin(dict.fromkeys(NAMES, TERMS))
    return ledger, budget


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def account(path) -> Iterator[tuple[CountingLedger, Budget]]:
    """A ledger, and a run's claim on it."""
    ledger, budget = begun(path)
    with closing(ledger):
        yield ledger, budget


def names(path: Path) -> list[str]:
    return [account for _, _, account in charged(path)]


def test_all_orders_of_a_round_are_charged_in_one_write_before_the_first_client_is_asked(path, account):
    """When the executor gets its first message, the file holds the charge of every order of the round."""
    ledger, budget = account
    seen: list[list[str]] = []
    executor = FakeExecutor(ok, before_submit=lambda: seen.append(names(path)))
    replies = list(grid_of(executor, budget=budget).send_and_receive([order_for(client) for client in range(4)]))
    assert len(replies) == 4
    assert seen == [NAMES] * 4
    assert ledger.reserved == [4]


def test_charged_order_finds_its_reservation_in_the_client_s_own_state(account):
    """The reservation is beside the message and not in it: it never travels."""
    executor = FakeExecutor(ok)
    list(grid_of(executor, budget=account[1]).send_and_receive([order_for(2)]))
    ((message, node_config, state),) = executor.submitted
    assert dict(state.config_records["reservation"]) == {"run": "r", "round": 1, "attempt": 1, "client": 2}
    assert "reservation" not in message.content
    assert node_config == {"partition-id": 2}


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"run": "another"}, Refusal.NOT_IN_PLAN),
        ({"client": 4}, Refusal.NOT_IN_PLAN),
        ({"mechanism": None}, Refusal.NOT_IN_PLAN),
        (
            {"mechanism": Mechanism(sampling_rate=Fraction(1, 2), noise_multiplier=0.5, max_grad_norm=1.0, steps=3)},
            Refusal.NOT_IN_PLAN,
        ),
    ],
)
def test_order_that_is_not_charged_reaches_no_app(path, account, changes, word):
    """The answer is an error reply with the word, the others are asked, and only they are charged."""
    executor = FakeExecutor(ok)
    bad = order_for(1, node=2, **changes) if "client" not in changes else order_for(4, node=2)
    grid = grid_of(executor, budget=account[1])
    replies = list(grid.send_and_receive([order_for(0), bad, order_for(3)]))
    assert sorted(message.metadata.dst_node_id for message, _, _ in executor.submitted) == [1, 4]
    (turned_down,) = [reply for reply in replies if reply.has_error()]
    assert (turned_down.error.code, turned_down.error.reason) == (REFUSED, word.value)
    assert turned_down.metadata.src_node_id == 2
    assert names(path) == ["account-0", "account-3"]
    assert account[0].settled == [(2, 0)]


def test_same_order_is_answered_once(path, account):
    """Asked twice, in one round or later, the second is refused and not charged; the ledger notes it once."""
    executor = FakeExecutor(ok)
    grid = grid_of(executor, budget=account[1])
    replies = list(grid.send_and_receive([order_for(0), order_for(0)]))
    replies += grid.send_and_receive([order_for(0)])
    assert sorted(reply.error.reason if reply.has_error() else "ok" for reply in replies) == [
        "already-trained",
        "already-trained",
        "ok",
    ]
    assert len(executor.submitted) == 1
    assert names(path) == ["account-0"]
    assert refused(path) == [("r", "already-trained")]


def test_spent_budget_reaches_no_app(path, account):
    """Two participations are reserved: the third is refused."""
    executor = FakeExecutor(ok)
    grid = grid_of(executor, budget=account[1])
    words = []
    for round_ in (1, 2, 3):
        (reply,) = grid.send_and_receive([order_for(0, round=round_)])
        words.append(reply.error.reason if reply.has_error() else "ok")
    assert words == ["ok", "ok", "budget-spent"]
    assert names(path) == ["account-0"] * 2
    assert len(executor.submitted) == 2


def test_message_without_an_order_is_not_sent_under_a_budget(path, account):
    """What cannot be charged is nobody's, and the strategy is told."""
    executor = FakeExecutor(ok)
    grid = grid_of(executor, budget=account[1])
    with pytest.raises(WireError, match="A message under a budget carries no order"):
        grid.push_messages([order_for(0), message_to(2)])
    assert list(grid.pull_messages(["1", "2"])) == []
    assert executor.submitted == []
    assert names(path) == []


def test_charge_that_cannot_be_written_reaches_no_app(path):
    """A ledger that fails fails the push: nobody trains on a charge that is not on disk."""
    executor = FakeExecutor(ok)
    ledger, budget = begun(path, FullLedger)
    with closing(ledger):
        grid = grid_of(executor, budget=budget)
        with pytest.raises(LedgerError, match="No space left"):
            grid.push_messages([order_for(0)])
        assert list(grid.pull_messages(["1"])) == []
    assert executor.submitted == []


def test_without_a_budget_nothing_is_reserved():
    """The client's state is empty: an app that needs a charge will refuse."""
    executor = FakeExecutor(lambda message: Message(Error(1, "no"), reply_to=message))
    list(grid_of(executor).send_and_receive([order_for(0)]))
    ((_, _, state),) = executor.submitted
    assert dict(state) == {}


# --- what became of charged orders ------------------------------------------------------------------------------------


def test_a_round_is_committed_in_one_write_after_its_last_answer(path, account):
    """While an answer is missing nothing is settled; with the last one all four orders are, at once."""
    ledger, budget = account
    grid = grid_of(FakeExecutor(ok), budget=budget)
    ids = list(grid.push_messages([order_for(client) for client in range(4)]))
    came: list[Message] = []
    while len(came) < 4:
        assert ledger.settled == []
        came += grid.pull_messages(ids)
    assert ledger.settled == [(4, 0)]
    assert settled(path) == [("COMMIT", 1, 1, name) for name in NAMES]


def test_an_order_that_failed_expires(path, account):
    """Client 2's app answers with an error: its charge stays and expires, the others are committed."""
    ledger, budget = account
    failing = FakeExecutor(
        lambda message: (
            Message(Error(REFUSED, "failed"), reply_to=message) if message.metadata.dst_node_id == 3 else ok(message)
        ),
        room=9,
    )
    list(grid_of(failing, budget=budget).send_and_receive([order_for(client) for client in range(4)]))
    assert ledger.settled == [(3, 1)]
    assert {entry for entry in settled(path) if entry[0] == "EXPIRE"} == {("EXPIRE", 1, 1, "account-2")}
    assert [ledger.books.accounts[name].runs["r"].charged for name in NAMES] == [1] * 4


def test_what_was_not_charged_is_not_settled(path, account):
    """A round whose orders are all refused writes nothing but the refusal."""
    ledger, budget = account
    grid = grid_of(FakeExecutor(ok), budget=budget)
    list(grid.send_and_receive([order_for(0, run="another")]))
    assert ledger.settled == []
    assert kinds(path) == ["GENESIS"] * 4 + ["RESERVE"] * 4


def test_each_round_is_settled_on_its_own(path, account):
    """Two rounds are two commits, in their order."""
    ledger, budget = account
    grid = grid_of(FakeExecutor(ok), budget=budget)
    for number in (1, 2):
        list(grid.send_and_receive([order_for(client, round=number) for client in (0, 1)]))
    assert ledger.settled == [(2, 0), (2, 0)]
    assert [(kind, number) for kind, number, _, _ in settled(path)] == [("COMMIT", 1)] * 2 + [("COMMIT", 2)] * 2


@pytest.mark.parametrize("why", ["silent", "late"])
def test_an_order_without_an_answer_holds_back_no_other_s_commit(path, account, why):
    """Client 1 never answers, or its time was over before it was asked: the others' orders are committed.

    What they did is in the model, and the ledger must not say that nothing was heard of it.
    """
    ledger, budget = account
    grid = grid_of(
        FakeExecutor(lambda message: None if message.metadata.dst_node_id == 2 else ok(message), room=9),
        budget=budget,
    )
    late = {"ttl": 0.001} if why == "late" else {}
    first = [order_for(0), order_for(1, **late), order_for(2)]
    time.sleep(0.01)
    list(grid.send_and_receive(first, timeout=0.3))
    list(grid.send_and_receive([order_for(0, round=2), order_for(2, round=2)], timeout=5))
    assert sorted(entry for entry in settled(path) if entry[0] == "COMMIT") == [
        ("COMMIT", number, 1, name) for number in (1, 2) for name in ("account-0", "account-2")
    ]
    assert ledger.books.accounts["account-1"].runs["r"].charged == 1


def test_a_message_that_waits_is_small():
    """Ten thousand may wait: each takes far less than a message of Flower's, which is some three thousand bytes."""
    many = 2000
    template = message_to(1)
    grid = InProcessGrid(clients=many, executor=FakeExecutor(lambda _: None, room=0), node_config=lambda _: {})
    messages = [Message(template.content, node, "train") for node in range(1, many + 1)]
    tracemalloc.start()
    grid.push_messages(iter(messages))
    held_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held_bytes / many < 1500
