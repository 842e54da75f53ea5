"""The rounds: hostile and silent clients, lost rounds, kills at any point, and the coordinator's noise.

Shapes: P is the number of parameters, 182 in most tests.
"""

import functools
import io
import itertools
import math
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_grid import Answer, FakeExecutor, FakeGrid, order_of, refusal, reply, weights_in
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from ledger_reader import charged, charges, kinds, refused, settled

from client.budget import Budget, agreements
from common import flat
from common.config import Scenario, parse
from common.errors import BudgetSpentError, LedgerError, RunFailedError
from common.ledger import Ledger
from common.messages import Refusal
from common.models.registry import build
from common.privacy.accounts import account_names, population_account, terms_of
from common.privacy.events import SampledGaussian
from common.privacy.plan import Account, Plan
from common.shards import Shard
from common.tasks import TASKS
from common.transparency import drafts
from common.transparency.drafts import Charge
from common.transparency.entries import PLAN_ROUND
from common.transparency.log import Log
from server.evaluation import Evaluator
from server.global_model import GlobalModel
from server.observer import Observer, RoundRecord, observer
from server.run_folder import RunFolder
from server.strategy import PrivateAveraging
from simulations.engine.grid import InProcessGrid

CLIENTS = 4
RECORDS = (10, 30, 20, 40)
TINY = 'name = "cnn", channels = [2, 2, 2], dense = 4'  # 20 + 38 + 38 + 36 + 50 = 182 parameters
SMALL = 'name = "cnn", channels = [16, 16, 16], dense = 64'  # 160 + 2320 + 2320 + 4160 + 650 = 9,610
TEST = Shard(features_ND=np.zeros((4, 1, 8, 8), np.float32), labels_N=np.arange(4))


class KilledError(Exception):
    """The process ends here."""


def scenario(*overrides: str, unit: str = "none", rounds: int = 1, model: str = TINY) -> Scenario:
    noise = "" if unit == "none" else ", noise_multiplier = 1.0"
    return parse(
        f'run = {{name = "x", rounds = {rounds}}}\ndata = {{dataset = "digits", clients = {CLIENTS}}}\n'
        f'model = {{{model}}}\ntraining = {{batch_size = 5}}\nengine = {{device = "cpu"}}\n'
        f'privacy = {{unit = "{unit}"{noise}}}\n',
        overrides=overrides,
    )


def plan(
    of: Scenario, *, noise_multiplier: float = 1.0, rate: Fraction | None = None, max_grad_norm: float = 1.0
) -> Plan:
    """Return a plan by hand, so that no accountant is asked."""
    unit = of.privacy.unit
    clients = of.data.clients
    accounts: tuple[Account, ...] = ()
    if unit != "none":
        default = Fraction(of.server.cohort, clients) if unit == "client" else Fraction(1, 2)
        event = SampledGaussian(
            noise_multiplier=noise_multiplier, sampling_rate=rate or default, steps=1, unit="client"
        )
        if unit == "record":
            event = replace(event, unit="record")
        times = of.server.max_participations if unit == "record" else of.run.rounds
        accounts = (
            Account(
                records=10,
                members=clients,
                event=event,
                participations=times,
                reserved=times + of.server.spare_rounds,
                epsilon=1.0,
                epsilon_reserved=1.0,
            ),
        )
    return Plan(
        run="r",
        unit=unit,
        delta=1e-5,
        max_grad_norm=max_grad_norm,
        records=RECORDS[:clients],
        accounts=accounts,
        account_of=(0,) * clients if accounts else (),
    )


@dataclass
class Watcher(Observer):
    """Writes down what it is told."""

    records: list[RoundRecord] = field(default_factory=list)
    told: list[tuple[str, dict[str, int]]] = field(default_factory=list)
    on_done: Callable[[RoundRecord], None] = lambda _: None

    def run_started(self, *, rounds: int, done: int) -> None:
        self.told.append(("run_started", {"rounds": rounds, "done": done}))

    def round_started(self, *, round_number: int, cohort: int) -> None:
        self.told.append(("round_started", {"round_number": round_number, "cohort": cohort}))

    def client_done(self) -> None:
        self.told.append(("client_done", {}))

    def round_done(self, record: RoundRecord) -> None:
        self.records.append(record)
        self.on_done(record)


def first_weights(of: Scenario) -> torch.Tensor:
    return flat.flatten(build(of.model, TASKS["digits"], seed=of.run.seed))


def admitted(path: Path, of: Scenario, planned: Plan, *, participations: int | None = None) -> None:
    """Make the ledger of a run for unit `client`, with the run reserved by hand, so that no accountant is asked."""
    if planned.unit != "client" or path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(Ledger.create(path)) as ledger:
        ledger.open_accounts(terms_of(of, planned))
        policy = ledger.books.accounts[population_account(of)].terms[-1].policy
    (account,) = planned.accounts
    whole = Charge(account=population_account(of), run=planned.run, round=PLAN_ROUND, attempt=1, events=account.events)
    times = account.reserved if participations is None else participations
    with closing(Log(path, memory=None)) as log, log.writing() as write:
        write(drafts.reserve(whole, policy=policy, participations=times))


@contextmanager
def strategy_in(
    path: Path, of: Scenario, *, planned: Plan | None = None, watcher: Observer | None = None, folder: type = RunFolder
) -> Iterator[tuple[PrivateAveraging, GlobalModel]]:
    """Open a folder and a strategy on it, as the server's app does, and let go of both afterwards."""
    path.mkdir(exist_ok=True)
    admitted(path / "ledger.db", of, planned or plan(of))
    token = observer.set(watcher or Observer())
    try:
        with closing(folder(path)) as held:
            model = GlobalModel(first_weights(of), of.server)
            yield (
                PrivateAveraging(
                    scenario=of, plan=planned or plan(of), model=model, folder=held, evaluator=Evaluator(of, TEST)
                ),
                model,
            )
    finally:
        observer.reset(token)


def run(
    path: Path,
    of: Scenario,
    answer: Answer | FakeGrid | InProcessGrid,
    *,
    planned: Plan | None = None,
    rounds: int | None = None,
    timeout: float = 30.0,
    folder: type = RunFolder,
    watcher: Watcher | None = None,
) -> tuple[np.ndarray, list[RoundRecord]]:
    """Run a scenario, or what is left of it; return the weights and the rounds' records."""
    grid = FakeGrid(of.data.clients, answer) if callable(answer) else answer
    watcher = watcher or Watcher()
    with strategy_in(path, of, planned=planned, watcher=watcher, folder=folder) as (strategy, model):
        strategy.start(grid, ArrayRecord(), num_rounds=rounds or of.run.rounds, timeout=timeout)
        return model.weights_P.numpy().copy(), watcher.records


def client_of(message: Message) -> int:
    client = order_of(message)["client"]
    assert isinstance(client, int)
    return client


def update_of(client: int, size: int = 182, norm: float = 0.9) -> np.ndarray:
    """Return a client's update, the same in each round, of an L2 norm below 1."""
    values = np.random.default_rng(client).standard_normal(size)
    return (values * (norm / np.linalg.norm(values))).astype(np.float32)


def good(message: Message) -> Message:
    return reply(message, update_of(client_of(message)))


def but(client: int, flaw: Answer) -> Answer:
    """Let all clients answer well, and one of them otherwise."""
    return lambda message: flaw(message) if client_of(message) == client else good(message)


def mean(*clients: int) -> np.ndarray:
    """Return the mean of some clients' updates, added in double precision in the order of the clients."""
    total = np.zeros(182)
    for client in clients:
        total += update_of(client)
    return (total / len(clients)).astype(np.float32)


# --- a good round -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True])
def test_round_adds_the_mean_of_all_updates(tmp_path, reverse):
    """Uniform weights unless told otherwise, and the same bits in whatever order the answers come."""
    of = scenario()
    weights, records = run(tmp_path, of, FakeGrid(CLIENTS, good, reverse=reverse))
    np.testing.assert_array_equal(weights, first_weights(of).numpy() + mean(0, 1, 2, 3))
    assert [(done.round, done.attempt, done.cohort, done.replies, done.refused) for done in records] == [
        (1, 1, 4, 4, ())
    ]


def test_orders_carry_the_weights_and_what_is_asked(tmp_path):
    """Each client gets run, round, attempt and its own number; the second round starts from the first one's weights."""
    of = scenario(rounds=2)
    seen: list[np.ndarray] = []

    def answer(message: Message) -> Message:
        seen.append(weights_in(message))
        assert message.metadata.dst_node_id == client_of(message) + 1
        assert message.metadata.ttl == of.server.round_timeout_s
        return good(message)

    grid = FakeGrid(CLIENTS, answer)
    run(tmp_path, of, grid)
    assert [dict(order) for order in grid.asked] == [
        {"run": "r", "round": number, "attempt": 1, "client": client} for number in (1, 2) for client in range(4)
    ]
    start = first_weights(of).numpy()
    for weights in seen[:4]:
        np.testing.assert_array_equal(weights, start)
    for weights in seen[4:]:
        np.testing.assert_array_equal(weights, start + mean(0, 1, 2, 3))


def test_orders_share_one_array_and_have_records_of_their_own(tmp_path):
    """A cohort's model is held once; what one client's record says is not in another's."""
    arrays, orders = [], []

    def answer(message: Message) -> Message:
        arrays.append(message.content.array_records["arrays"])
        orders.append(order_of(message))
        return good(message)

    run(tmp_path, scenario(), answer)
    assert all(record is arrays[0] for record in arrays)
    assert len({id(order) for order in orders}) == CLIENTS


def test_private_orders_name_the_protection(tmp_path):
    """Unit `record` sends the plan's mechanism, unit `client` the ball to clip to; each number as the plan has it."""
    record = FakeGrid(CLIENTS, good)
    run(tmp_path / "record", scenario("server.evaluate_every=9", unit="record", rounds=2), record, rounds=1)
    assert dict(record.asked[0]) == {
        "run": "r",
        "round": 1,
        "attempt": 1,
        "client": 0,
        "sampling-rate": "1/2",
        "noise-multiplier": "1.0",
        "max-grad-norm": "1.0",
        "steps": 1,
    }
    client = FakeGrid(CLIENTS, good)
    run(tmp_path / "client", scenario("server.evaluate_every=9", unit="client", rounds=2), client, rounds=1)
    assert dict(client.asked[0]) == {"run": "r", "round": 1, "attempt": 1, "client": 0, "max-update-norm": "1.0"}


# --- metrics of the clients -------------------------------------------------------------------------------------------


def metered(of: Scenario, noise_multiplier: float = 2.0) -> Plan:
    """Return the plan by hand, with a count in each participation."""
    by_hand = plan(of)
    count = SampledGaussian(noise_multiplier=noise_multiplier, sampling_rate=Fraction(1), steps=1)
    return replace(by_hand, accounts=tuple(replace(account, metrics_event=count) for account in by_hand.accounts))


def counting(message: Message, *counts: float | str) -> Message:
    """Let each client report the count at its position besides its update."""
    answer = good(message)
    correct = counts[client_of(message)]
    if correct != "":
        answer.content.config_records["report"]["correct"] = correct if isinstance(correct, str) else repr(correct)
    return answer


def test_orders_ask_for_a_count_where_the_plan_has_one(tmp_path):
    """The order names the plan's noise, and without it asks for nothing."""
    of = scenario("server.evaluate_every=9", unit="record", rounds=2)
    with_it, without_it = FakeGrid(CLIENTS, lambda m: counting(m, 1.0, 1.0, 1.0, 1.0)), FakeGrid(CLIENTS, good)
    run(tmp_path / "noisy", of, with_it, planned=metered(of), rounds=1)
    run(tmp_path / "none", of, without_it, rounds=1)
    assert {order["metrics-noise-multiplier"] for order in with_it.asked} == {"2.0"}
    assert all("metrics-noise-multiplier" not in order for order in without_it.asked)


def test_counts_are_pooled_over_the_declared_sizes(tmp_path):
    """Counts 9.5, 20, 22 and 30.5 of 10 + 30 + 20 + 40 records make 82 %; the table has it, without counts nothing."""
    of = scenario("server.evaluate_every=9", unit="record", rounds=2)
    _, (record,) = run(
        tmp_path / "noisy", of, lambda m: counting(m, 9.5, 20.0, 22.0, 30.5), planned=metered(of), rounds=1
    )
    assert record.client_accuracy == pytest.approx(0.82)
    assert (tmp_path / "noisy" / "rounds.csv").read_text().splitlines()[1].endswith(",0.82")
    _, (record,) = run(tmp_path / "none", of, good, rounds=1)
    assert record.client_accuracy is None
    assert (tmp_path / "none" / "rounds.csv").read_text().splitlines()[1].endswith(",")


@pytest.mark.parametrize(("count", "accuracy"), [(-3.0, 0.0), (45.0, 1.0)])
def test_an_accuracy_is_between_0_and_1(tmp_path, count, accuracy):
    """Noise carries a pooled count below 0 or above all records; what is told is a share."""
    of = scenario("server.evaluate_every=9", unit="record", rounds=2)
    grid = FakeGrid(CLIENTS, lambda m: counting(m, *[count if count < 0 else size + 5 for size in RECORDS]))
    _, (record,) = run(tmp_path, of, grid, planned=metered(of), rounds=1)
    assert record.client_accuracy == accuracy


@pytest.mark.parametrize(
    ("count", "word"),
    [("nan", "malformed"), ("x", "malformed"), ("1e300", "count-impossible"), ("", "count-missing")],
)
def test_a_bad_count_is_not_pooled_and_its_sender_is_named(tmp_path, count, word):
    """Client 1's reply is refused with its update; the pool is that of the other 70 records: 35 of them."""
    of = scenario("server.evaluate_every=9", unit="record", rounds=2)
    weights, (record,) = run(tmp_path, of, lambda m: counting(m, 5.0, count, 10.0, 20.0), planned=metered(of), rounds=1)
    assert record.refused == ((1, word),)
    assert record.client_accuracy == pytest.approx(0.5)
    np.testing.assert_array_equal(weights, first_weights(of).numpy() + mean(0, 2, 3))


def test_a_count_that_nobody_asked_for_is_refused(tmp_path):
    """A client that tells more than it was asked for is not used."""
    of = scenario("server.evaluate_every=9", rounds=2)
    _, (record,) = run(tmp_path, of, lambda m: counting(m, "", "", 3.0, ""), rounds=1)
    assert record.refused == ((2, "count-unasked"),)
    assert record.client_accuracy is None


def test_weighting_by_records_uses_the_declared_sizes(tmp_path):
    """The mean of 10, 30, 20 and 40 records is weighted 0.1, 0.3, 0.2, 0.4, whatever the clients say."""
    of = scenario('server.weighting="records"')
    weights, _ = run(tmp_path, of, good)
    expected = sum(size / 100 * update_of(client).astype(np.float64) for client, size in enumerate(RECORDS))
    np.testing.assert_allclose(weights - first_weights(of).numpy(), expected, rtol=0, atol=1e-7)


def test_weighting_by_records_divides_by_the_weights_that_came(tmp_path):
    """Without client 1 the others weigh 10/70, 20/70 and 40/70."""
    of = scenario('server.weighting="records"')
    weights, _ = run(tmp_path, of, but(1, lambda message: refusal(message, "failed")))
    expected = sum(RECORDS[client] / 70 * update_of(client).astype(np.float64) for client in (0, 2, 3))
    np.testing.assert_allclose(weights - first_weights(of).numpy(), expected, rtol=0, atol=1e-7)


def test_only_the_cohort_is_asked(tmp_path):
    """Two of four clients a round, and the mean is that of the two."""
    of = scenario("server.cohort=2")
    grid = FakeGrid(CLIENTS, good)
    weights, records = run(tmp_path, of, grid)
    asked = [int(str(order["client"])) for order in grid.asked]
    assert len(asked) == len(set(asked)) == 2
    np.testing.assert_array_equal(weights, first_weights(of).numpy() + mean(*sorted(asked)))
    assert records[0].cohort == 2


def test_watcher_is_told_of_each_step_and_of_a_round_once_its_checkpoint_is_there(tmp_path):
    """Start, round, each client, and `round_done` only when the round's checkpoint and line are on disk."""
    of = scenario(rounds=2)
    checkpoints: list[str] = []

    def on_done(record: RoundRecord) -> None:
        from safetensors import safe_open

        with safe_open(tmp_path / "checkpoint" / "state.safetensors", framework="pt") as file:
            checkpoints.append(file.metadata()["round"])
        assert (tmp_path / "rounds.csv").read_text().splitlines()[-1].startswith(f"{record.round},")

    watcher = Watcher(on_done=on_done)
    run(tmp_path, of, but(2, lambda message: refusal(message, "failed")), watcher=watcher)
    assert checkpoints == ["1", "2"]
    rounds = [
        [("round_started", {"round_number": number, "cohort": 4})] + [("client_done", {})] * 4 for number in (1, 2)
    ]
    assert watcher.told == [("run_started", {"rounds": 2, "done": 0}), *rounds[0], *rounds[1]]


def test_model_is_measured_every_so_often_and_in_the_last_round(tmp_path):
    """Every second of five rounds, and the fifth."""
    _, records = run(tmp_path, scenario("server.evaluate_every=2", rounds=5), good)
    assert [bool(done.metrics) for done in records] == [False, True, False, True, True]


def test_start_returns_the_weights_and_the_metrics(tmp_path):
    """What Flower's own strategies return: final arrays, and the server's metrics by round."""
    of = scenario(rounds=2)
    with strategy_in(tmp_path, of) as (strategy, model):
        result = strategy.start(FakeGrid(CLIENTS, good), ArrayRecord(), num_rounds=2)
        np.testing.assert_array_equal(result.arrays["weights"].numpy(), model.weights_P.numpy())
    assert sorted(result.evaluate_metrics_serverapp) == [1, 2]
    assert result.evaluate_metrics_serverapp[2].keys() == {"accuracy", "loss"}


def test_nobody_is_asked_for_metrics_on_private_data(tmp_path):
    """Federated evaluation sends nothing and adds nothing up."""
    with strategy_in(tmp_path, scenario()) as (strategy, _):
        assert list(strategy.configure_evaluate(1, ArrayRecord(), ConfigRecord(), FakeGrid(CLIENTS, good))) == []
        assert strategy.aggregate_evaluate(1, []) is None


def test_too_few_nodes_are_refused(tmp_path):
    """A run of four clients does not begin with three nodes."""
    with pytest.raises(RunFailedError, match=r"Expected 4 nodes, got 3\. Start the missing ones"):
        run(tmp_path, scenario(), FakeGrid(3, good))


# --- hostile clients --------------------------------------------------------------------------------------------------


def packed(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def claiming(data: bytes, *, dtype: str = "float32", shape: tuple[int, ...] = (182,)) -> Answer:
    """Answer with bytes that claim to be a good array."""
    return lambda message: reply(message, Array(dtype, shape, "numpy.ndarray", data))


def header(text: str) -> bytes:
    """Return a numpy file of version 1 with a header of any text."""
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def archive(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zipped:
        zipped.writestr("a.npy", content)
    return file.getvalue()


def changed(value: object, **changes: object) -> Answer:
    """Answer with an update made from the good one, or with scalars that differ."""
    return lambda message: reply(message, np.asarray(value), **changes)


def without(name: str) -> Answer:
    """Answer with a record missing."""

    def answer(message: Message) -> Message:
        content = good(message).content
        del content[name]
        return Message(content, reply_to=message)

    return answer


GOOD = update_of(2)
ONE_NAN = np.where(np.arange(182) == 100, np.nan, GOOD).astype(np.float32)
ONE_INFINITY = np.where(np.arange(182) == 100, -np.inf, GOOD).astype(np.float32)
SHAPE = "{{'descr': '<f4', 'fortran_order': False, 'shape': ({},)}}"

HOSTILE: dict[str, tuple[Answer, str]] = {
    "too short": (changed(GOOD[:-1]), "wrong-size"),
    "too long": (changed(np.append(GOOD, np.float32(0))), "wrong-size"),
    "empty": (changed(GOOD[:0]), "wrong-size"),
    "two dimensions": (changed(GOOD.reshape(2, 91)), "wrong-size"),
    "double precision": (changed(GOOD.astype(np.float64)), "wrong-size"),
    "whole numbers": (changed(GOOD.view(np.int32)), "wrong-size"),
    "NaN": (changed(ONE_NAN), "not-finite"),
    "infinity": (changed(ONE_INFINITY), "not-finite"),
    "another run": (changed(GOOD, run="s"), "another-round"),
    "another round": (changed(GOOD, round=2), "another-round"),
    "another attempt": (changed(GOOD, attempt=2), "another-round"),
    "another client": (changed(GOOD, client=1), "another-client"),
    "no such client": (changed(GOOD, client=-1), "another-client"),
    "more bytes than numbers": (claiming(packed(GOOD) + bytes(4096)), "wrong-size"),
    "longer than it claims": (claiming(packed(np.append(GOOD, GOOD[:50]))), "wrong-size"),
    "double precision that claims single": (claiming(packed(GOOD[:91].astype(np.float64))), "malformed"),
    "two dimensions that claim one": (claiming(packed(GOOD.reshape(2, 91))), "malformed"),
    "text for a number": (changed(GOOD, round="1"), "malformed"),
    "a bool for a number": (changed(GOOD, round=True), "malformed"),
    "a fraction for a number": (changed(GOOD, client=2.0), "malformed"),
    "a number missing": (changed(GOOD, attempt=None), "malformed"),
    "a field too many": (changed(GOOD, loss=0.5), "malformed"),
    "a text without end": (changed(GOOD, run="r" * 100_000), "malformed"),
    "no update": (without("arrays"), "malformed"),
    "no report": (without("report"), "malformed"),
    "nothing at all": (lambda message: Message(RecordDict(), reply_to=message), "malformed"),
    "no bytes": (claiming(b""), "malformed"),
    "noise for bytes": (claiming(bytes(range(256)) * 2), "malformed"),
    "torn array": (claiming(packed(GOOD)[:-1]), "malformed"),
    "a pickle": (claiming(b"\x80\x04\x95" + bytes(50)), "malformed"),
    "an array of objects": (claiming(header("{'descr': '|O', 'fortran_order': False, 'shape': (182,)}")), "malformed"),
    "a numpy version to come": (claiming(b"\x93NUMPY\x09" + packed(GOOD)[7:]), "malformed"),
    "a header that names no array": (claiming(header("1")), "malformed"),
    "a header of mixed keys": (claiming(header("{1: 2, 'a': 3}")), "malformed"),
    "a header that never ends": (claiming(header("{")), "malformed"),
    "a header out of line": (claiming(header("\t1\n  2")), "malformed"),
    "a size of terabytes": (claiming(header(SHAPE.format(10**13))), "malformed"),
    "a size beyond 64 bits": (claiming(header(SHAPE.format(10**30))), "malformed"),
    "a torn archive": (claiming(b"PK\x03\x04" + bytes(60)), "malformed"),
    "an archive of arrays": (claiming(archive(packed(GOOD))), "wrong-size"),
    "a foreign kind of array": (lambda m: reply(m, Array("float32", (182,), "pickle", packed(GOOD))), "malformed"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_bad_reply_is_not_used_and_its_sender_is_named(tmp_path, name):
    """The round goes on: one word stands beside client 2, and the mean is exactly that of the others."""
    flaw, word = HOSTILE[name]
    of = scenario()
    weights, records = run(tmp_path, of, but(2, flaw))
    assert records[0].refused == ((2, word),)
    assert records[0].replies == 3
    np.testing.assert_array_equal(weights, first_weights(of).numpy() + mean(0, 1, 3))


def test_norm_above_the_bound_is_refused_for_unit_client(tmp_path):
    """A client that did not clip is named, and the sum is that of the others."""
    of = scenario("server.evaluate_every=9", unit="client", rounds=2)
    answer = but(2, lambda message: reply(message, update_of(2, norm=1.001)))
    weights, records = run(tmp_path, of, answer, planned=plan(of, noise_multiplier=1e-9), rounds=1)
    assert records[0].refused == ((2, "norm-above-bound"),)
    # noise of 1e-9 / 4 a coordinate vanishes beside float32's rounding; q = 1, so that the divisor is all 4
    np.testing.assert_allclose(weights - first_weights(of).numpy(), mean(0, 1, 3) * 3 / 4, rtol=0, atol=1e-7)


@pytest.mark.parametrize("word", [refused.value for refused in Refusal])
def test_word_of_the_vocabulary_is_passed_on(tmp_path, word):
    """Why a client has no report, in its own word."""
    _, records = run(tmp_path, scenario(), but(1, lambda message: refusal(message, word)))
    assert records[0].refused == ((1, word),)


@pytest.mark.parametrize(
    "text", ["", "Failed", "budget-spent\n", "KeyError: 'the patient of row 17'", "<script>" * 999]
)
def test_any_other_text_of_a_client_becomes_failed(tmp_path, text):
    """Text from outside reaches no record, no table and no screen."""
    _, records = run(tmp_path, scenario(), but(1, lambda message: refusal(message, text)))
    assert records[0].refused == ((1, "failed"),)


def test_error_without_any_text_becomes_failed(tmp_path):
    """Flower allows an error that says nothing."""
    _, records = run(tmp_path, scenario(), but(1, lambda message: Message(Error(0), reply_to=message)))
    assert records[0].refused == ((1, "failed"),)


def test_update_sent_twice_counts_once(tmp_path):
    """The first answer counts; the second is an answer that nobody was asked for."""
    of = scenario()
    twice = but(2, lambda message: [good(message), reply(message, update_of(9))])
    weights, records = run(tmp_path, of, twice)
    assert records[0].replies == 4
    np.testing.assert_array_equal(weights, first_weights(of).numpy() + mean(0, 1, 2, 3))


@pytest.mark.parametrize("node", [0, 99, None])
def test_answer_of_a_node_that_was_not_asked_is_not_used(tmp_path, node):
    """From no node of ours, or (None) from a client outside the cohort: it is not added, and nobody is named."""
    of = scenario("server.cohort=2")
    cohort = asked_in(of)
    outside = node if node is not None else 1 + min({0, 1, 2, 3} - set(cohort))

    def answer(message: Message) -> list[Message]:
        stray = reply(message, update_of(9), client=outside - 1)
        stray.metadata.__dict__["_src_node_id"] = outside
        return [stray, good(message)]

    weights, records = run(tmp_path, of, answer)
    assert records[0].refused == ()
    assert records[0].replies == 2
    np.testing.assert_array_equal(weights, first_weights(of).numpy() + mean(*cohort))


def asked_in(of: Scenario) -> list[int]:
    """Return the first round's cohort."""
    from server.cohorts import schedule

    return schedule(of)[0].tolist()


# --- silent clients and lost rounds -----------------------------------------------------------------------------------


def test_client_that_does_not_answer_in_time_is_named(tmp_path):
    """After the deadline it is `no-answer`, and the mean is that of the others."""
    of = scenario()
    weights, records = run(tmp_path, of, but(3, lambda _: None), timeout=1.0)
    assert records[0].refused == ((3, "no-answer"),)
    assert 1 <= records[0].seconds < 10
    np.testing.assert_array_equal(weights, first_weights(of).numpy() + mean(0, 1, 2))


def test_answer_that_comes_a_round_late_is_not_used(tmp_path):
    """The next round uses that round's answers only."""
    of = scenario(rounds=2)
    late: list[Message] = []

    def slow(message: Message) -> list[Message] | Message | None:
        if order_of(message)["round"] == 1:
            late.append(reply(message, update_of(9)))
            return None
        return [late[0], good(message)]

    weights, records = run(tmp_path, of, but(3, slow), timeout=1.0)
    assert [done.refused for done in records] == [((3, "no-answer"),), ()]
    expected = first_weights(of).numpy() + mean(0, 1, 2) + mean(0, 1, 2, 3)
    np.testing.assert_array_equal(weights, expected)


def failing(attempts: int, *, clients: tuple[int, ...] = (0, 1)) -> Answer:
    """Let some clients fail in the first attempts."""

    def answer(message: Message) -> Message:
        lost = int(str(order_of(message)["attempt"])) <= attempts and client_of(message) in clients
        return refusal(message, "failed") if lost else good(message)

    return answer


def test_round_with_too_few_replies_changes_nothing_and_is_tried_again(tmp_path):
    """Two good replies of three needed: the second attempt starts from the same weights, and its reply counts once."""
    of = scenario("server.min_replies=3")
    seen: list[np.ndarray] = []
    inner = failing(1)

    def answer(message: Message) -> Message:
        seen.append(weights_in(message))
        return inner(message)  # type: ignore[return-value]

    grid = FakeGrid(CLIENTS, answer)
    weights, records = run(tmp_path, of, grid)
    assert [order["attempt"] for order in grid.asked] == [1] * 4 + [2] * 4
    np.testing.assert_array_equal(seen[7], seen[0])
    np.testing.assert_array_equal(weights, first_weights(of).numpy() + mean(0, 1, 2, 3))
    assert [(done.round, done.attempt, done.replies, done.refused) for done in records] == [(1, 2, 4, ())]


@pytest.mark.parametrize("unit", ["none", "record", "client"])
def test_run_fails_when_the_spare_rounds_are_used_up(tmp_path, caplog, unit):
    """One spare round: the second loss ends the run; the log names who refused, and nothing was checkpointed."""
    of = scenario("server.min_replies=3", "server.spare_rounds=1", unit=unit)
    grid = FakeGrid(CLIENTS, failing(9))
    with pytest.raises(RunFailedError, match=r"Round 1: 2 rounds were lost so far and server\.spare_rounds is 1"):
        run(tmp_path, of, grid)
    named = "round 1 lost: 2 replies; refused: client 0: failed, client 1: failed"
    assert [record.getMessage() for record in caplog.records].count(named) == 2
    assert grid.pushes == [4, 4]
    with closing(RunFolder(tmp_path)) as folder:
        assert folder.load() is None
        assert folder.attempts() == {1: 2}


def test_no_round_is_lost_without_spare_rounds(tmp_path):
    """With `spare_rounds = 0` the first loss ends the run."""
    grid = FakeGrid(CLIENTS, failing(9))
    with pytest.raises(RunFailedError, match="1 rounds were lost"):
        run(tmp_path, scenario("server.min_replies=3", "server.spare_rounds=0"), grid)
    assert grid.pushes == [4]


def test_spare_rounds_are_for_the_whole_run_under_privacy(tmp_path):
    """The plan reserved one spare: a loss in round 1 and one in round 2 are one too many."""
    of = scenario("server.min_replies=3", "server.spare_rounds=1", "server.evaluate_every=9", unit="record", rounds=3)
    grid = FakeGrid(CLIENTS, failing(1))
    with pytest.raises(RunFailedError, match="Round 2: 2 rounds were lost"):
        run(tmp_path, of, grid)
    assert grid.pushes == [4, 4, 4]  # round 1 twice, round 2 once: what the account may pay for stays within the plan


def test_round_without_any_reply_changes_nothing(tmp_path):
    """With `min_replies = 0` a round that nobody answered is over at the deadline, and the weights are the old ones."""
    of = scenario("server.min_replies=0")
    weights, records = run(tmp_path, of, lambda _: None, timeout=0.1)
    np.testing.assert_array_equal(weights, first_weights(of).numpy())
    assert records[0].replies == 0
    assert [word for _, word in records[0].refused] == ["no-answer"] * 4


def test_lost_round_is_charged_twice_to_each_client(tmp_path):
    """Unit `record`, with the budget at the grid: both attempts are in the ledger, and the spare is used."""
    of = scenario(
        "server.min_replies=3", "server.spare_rounds=1", "server.cohort=3", "privacy.budget=100.0", unit="record"
    )
    planned = plan(of)
    names = account_names(of, planned)
    with closing(Ledger.create(tmp_path / "ledger.db")) as ledger:
        budget = Budget(ledger, run="r", agreements=agreements(planned, names))
        budget.begin(terms_of(of, planned))
        grid = InProcessGrid(
            clients=CLIENTS,
            executor=FakeExecutor(failing(1, clients=(0, 1, 2, 3))),
            node_config=lambda _: {},
            budget=budget,
        )
        _, records = run(tmp_path / "run", of, grid, planned=planned)
    asked = [(attempt, client) for attempt in (1, 2) for client in asked_in(of)]
    assert charged(tmp_path / "ledger.db") == [(1, attempt, names[client]) for attempt, client in asked]
    assert settled(tmp_path / "ledger.db") == [
        ("EXPIRE" if attempt == 1 else "COMMIT", 1, attempt, names[client]) for attempt, client in asked
    ]
    assert records[0].attempt == 2
    assert records[0].replies == 3


# --- budgets that are spent -------------------------------------------------------------------------------------------


def spent_from(number: int, *, clients: tuple[int, ...] = (0, 1, 2, 3)) -> Answer:
    """Let some clients say from a round on that their budget is spent."""

    def answer(message: Message) -> Message:
        is_spent = int(str(order_of(message)["round"])) >= number and client_of(message) in clients
        return refusal(message, "budget-spent") if is_spent else good(message)

    return answer


@pytest.mark.parametrize("min_replies", [0, 1])
def test_run_ends_when_every_client_s_budget_is_spent(tmp_path, min_replies):
    """All four say so in round 3: the run stops there, no spare is tried, and the checkpoint is that of round 2."""
    settings = (f"server.min_replies={min_replies}", "server.spare_rounds=5", "server.evaluate_every=9")
    of = scenario(*settings, unit="record", rounds=4)
    grid = FakeGrid(CLIENTS, spent_from(3))
    with pytest.raises(BudgetSpentError, match=r"Round 3: all 4 clients said budget-spent\. The model so far is saved"):
        run(tmp_path, of, grid)
    assert grid.pushes == [4, 4, 4]
    with closing(RunFolder(tmp_path)) as folder:
        saved = folder.load()
        assert saved is not None
        assert saved[0] == 2
        assert folder.attempts() == {1: 1, 2: 1}  # nobody was charged for the third


def test_last_whole_round_is_measured_when_the_budget_is_spent(tmp_path):
    """Nobody knew that round 2 would be the last: its line gets its figures late, and there is one line a round."""
    of = scenario("server.evaluate_every=9", unit="record", rounds=4)
    with pytest.raises(BudgetSpentError):
        run(tmp_path, of, spent_from(3))
    _, first, second = (line.split(",") for line in (tmp_path / "rounds.csv").read_text().splitlines())
    assert (first[0], first[4], first[6]) == ("1", "", "")
    assert second[0] == "2"
    assert 0 <= float(second[4]) <= 1
    assert float(second[6]) == pytest.approx(epsilon_of(of, times=2), rel=1e-5)


def test_budget_spent_in_the_first_round_leaves_no_checkpoint(tmp_path):
    """Where nothing was admitted nothing is measured, and nobody is asked twice."""
    of = scenario("server.spare_rounds=5", unit="record", rounds=4)
    grid = FakeGrid(CLIENTS, spent_from(1))
    with pytest.raises(BudgetSpentError, match="Round 1: all 4 clients"):
        run(tmp_path, of, grid)
    assert grid.pushes == [4]
    assert not (tmp_path / "rounds.csv").exists()


@pytest.mark.parametrize("spare_rounds", [0, 2])
def test_run_whose_budget_is_spent_says_so_again_when_it_is_resumed(tmp_path, spare_rounds):
    """Whether the plan has spares or not, the reason is the budget: more spares would not help."""
    of = scenario(f"server.spare_rounds={spare_rounds}", "server.evaluate_every=9", unit="record", rounds=4)
    for _ in range(2):
        with pytest.raises(BudgetSpentError, match="Round 2: all 4 clients said budget-spent"):
            run(tmp_path, of, spent_from(2))


def test_clients_that_have_budget_left_go_on_without_the_others(tmp_path):
    """Two of four are spent: they are named, and the mean is that of the two who answer."""
    of = scenario("server.evaluate_every=9", unit="record", rounds=2)
    weights, (record,) = run(tmp_path, of, spent_from(1, clients=(1, 2)), rounds=1)
    assert record.refused == ((1, "budget-spent"), (2, "budget-spent"))
    np.testing.assert_array_equal(weights, first_weights(of).numpy() + mean(0, 3))


def test_a_round_that_is_lost_for_another_reason_too_is_tried_again(tmp_path):
    """One client failed where the others are spent: it may answer the second time."""
    of = scenario("server.spare_rounds=1", "server.evaluate_every=9", unit="record", rounds=2)

    def answer(message: Message) -> Message:
        if client_of(message):
            return refusal(message, "budget-spent")
        return refusal(message, "failed") if order_of(message)["attempt"] == 1 else good(message)

    _, (record,) = run(tmp_path, of, answer, rounds=1)
    assert (record.attempt, record.replies) == (2, 1)


# --- kills and resumes ------------------------------------------------------------------------------------------------


def moving(message: Message) -> Message:
    """Answer with an update that depends on round, client and weights, but not on the attempt."""
    seed = (int(str(order_of(message)["round"])), client_of(message))
    pull = np.random.default_rng(seed).standard_normal(182).astype(np.float32)
    return reply(message, np.float32(0.1) * (pull - weights_in(message)))


def dying_answer(message: Message) -> Message:
    """End the process when client 2 is asked in round 3."""
    if (order_of(message)["round"], client_of(message)) == (3, 2):
        raise KilledError
    return moving(message)


class DyingBefore(RunFolder):
    """Ends the process in round 3, before the checkpoint is written."""

    def save(self, round_number: int, state: dict[str, torch.Tensor]) -> None:
        if round_number == 3:
            raise KilledError
        super().save(round_number, state)


class DyingAtBegin(RunFolder):
    """Ends the process when the begin of round 3 is on disk."""

    def begin(self, round_number: int) -> int:
        attempt = super().begin(round_number)
        if round_number == 3:
            raise KilledError
        return attempt


class DyingInLine(RunFolder):
    """Ends the process in the middle of round 3's line."""

    def append_round(self, record: RoundRecord) -> None:
        if record.round == 3:
            with (self.path / "rounds.csv").open("a") as file:
                file.write("3,4")
            raise KilledError
        super().append_round(record)


def die_after_three(record: RoundRecord) -> None:
    if record.round == 3:
        raise KilledError


def broken_run(path: Path, of: Scenario, kill: str) -> None:
    """Run until the process ends, in one of five places."""
    folder = {"checkpoint": DyingBefore, "begin": DyingAtBegin, "line": DyingInLine}.get(kill, RunFolder)
    watcher = Watcher(on_done=die_after_three if kill == "done" else lambda _: None)
    answer = dying_answer if kill == "answer" else moving
    with pytest.raises(KilledError):
        run(path, of, answer, folder=folder, watcher=watcher)


def table(path: Path) -> list[str]:
    """Return rounds.csv without the seconds."""
    return [",".join(line.split(",")[:7]) for line in (path / "rounds.csv").read_text().splitlines()]


@functools.cache
def unbroken(optimizer: str, root: Path) -> tuple[bytes, tuple[str, ...]]:
    """Return weights and table of a run of five rounds that nothing happened to."""
    path = root / f"unbroken-{optimizer}"
    weights, _ = run(path, resumable(optimizer), moving)
    return weights.tobytes(), tuple(table(path))


def resumable(optimizer: str) -> Scenario:
    return scenario(
        f'server.optimizer="{optimizer}"', "server.learning_rate=0.3", "server.ema_decay=0.9", "server.cohort=3",
        "server.spare_rounds=0", rounds=5,
    )  # fmt: skip


@pytest.mark.parametrize("kill", ["begin", "answer", "line", "checkpoint", "done"])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_killed_run_ends_bit_equal_to_an_unbroken_one(tmp_path, tmp_path_factory, optimizer, kill):
    """Wherever the third round was cut off, weights and table are those of a run that nothing happened to."""
    of = resumable(optimizer)
    broken_run(tmp_path, of, kill)
    watcher = Watcher()
    weights, records = run(tmp_path, of, moving, watcher=watcher)
    done = 3 if kill == "done" else 2
    assert watcher.told[0] == ("run_started", {"rounds": 5, "done": done})
    assert [record.round for record in records] == list(range(done + 1, 6))
    expected, lines = unbroken(optimizer, tmp_path_factory.getbasetemp())
    assert weights.tobytes() == expected
    assert tuple(table(tmp_path)) == lines


def test_run_that_is_done_is_left_as_it_is(tmp_path):
    """Resumed after its last round, a run asks nobody and has the same weights."""
    of = resumable("adam")
    weights, _ = run(tmp_path, of, moving)
    grid = FakeGrid(CLIENTS, moving)
    again, records = run(tmp_path, of, grid)
    assert grid.pushes == []
    assert records == []
    assert again.tobytes() == weights.tobytes()


@pytest.mark.parametrize("unit", ["record", "client"])
def test_lost_round_is_attempted_again_and_uses_a_spare(tmp_path, unit):
    """Killed in round 3 and resumed: the order says attempt 2, and the run ends with its spare used."""
    of = scenario("server.spare_rounds=1", unit=unit, rounds=4)
    with pytest.raises(KilledError):
        run(tmp_path, of, dying_in(3))
    grid = FakeGrid(CLIENTS, good)
    _, records = run(tmp_path, of, grid)
    assert [(record.round, record.attempt) for record in records] == [(3, 2), (4, 1)]
    assert [order["attempt"] for order in grid.asked] == [2] * 4 + [1] * 4
    assert records[-1].epsilon_max == epsilon_of(of, times=5)  # 4 rounds and the lost one


@pytest.mark.parametrize("unit", ["record", "client"])
def test_lost_round_without_a_spare_ends_a_private_run(tmp_path, unit):
    """The lost round is charged, and the plan reserved nothing for it."""
    of = scenario("server.spare_rounds=0", "server.evaluate_every=9", unit=unit, rounds=4)
    with pytest.raises(KilledError):
        run(tmp_path, of, dying_in(3))
    grid = FakeGrid(CLIENTS, good)
    with pytest.raises(RunFailedError, match=r"Round 3: 1 rounds were lost so far and server\.spare_rounds is 0"):
        run(tmp_path, of, grid)
    assert grid.asked == []


def dying_in(number: int) -> Answer:
    """Let the process end when a round's first order is answered."""

    def answer(message: Message) -> Message:
        if order_of(message)["round"] == number:
            raise KilledError
        return good(message)

    return answer


def epsilon_of(of: Scenario, *, times: int) -> float:
    from common.privacy.accounting import COARSE, epsilon

    return epsilon((plan(of).accounts[0].event.times(times),), delta=1e-5, grid=COARSE)


# --- unit client: charge, noise, divisor ------------------------------------------------------------------------------


def central(*overrides: str, rounds: int = 2, model: str = TINY) -> Scenario:
    """Return a client-level scenario whose last round, which would be measured, is never reached."""
    return scenario("server.evaluate_every=99", *overrides, unit="client", rounds=rounds, model=model)


def test_charge_is_on_disk_before_anybody_is_asked(tmp_path):
    """When a round's orders arrive at the grid, the population's charge for it is already in the ledger."""
    of = central("server.spare_rounds=1", "server.min_replies=3", rounds=3)
    ledger = tmp_path / "ledger.db"
    seen: list[list[tuple[int, int, str]]] = []
    grid = FakeGrid(CLIENTS, failing_in_round_one, before_push=lambda: seen.append(charged(ledger)))
    run(tmp_path, of, grid, rounds=2)
    one, lost, two = ((1, 1, "digits/population"), (1, 2, "digits/population"), (2, 1, "digits/population"))
    assert seen == [[one], [one, lost], [one, lost, two]]  # the lost attempt is charged too
    assert {(entry.run, entry.events) for entry in charges(ledger)} == {("r", plan(of).accounts[0].events)}


def test_a_good_round_is_committed_and_a_lost_one_expires(tmp_path):
    """Round 1 is lost once and tried again, round 2 is good at once; each is settled before the next is charged."""
    of = central("server.spare_rounds=1", "server.min_replies=3", rounds=3)
    run(tmp_path, of, failing_in_round_one, rounds=2)
    name = population_account(of)
    assert settled(tmp_path / "ledger.db") == [
        ("EXPIRE", 1, 1, name),
        ("COMMIT", 1, 2, name),
        ("COMMIT", 2, 1, name),
    ]
    assert kinds(tmp_path / "ledger.db") == ["GENESIS", "RESERVE"] + [
        kind for what in ("EXPIRE", "COMMIT", "COMMIT") for kind in ("RESERVE", what)
    ]


def test_spent_population_is_not_asked(tmp_path):
    """Two participations are left: round 3 is not begun, nobody is asked, and round 2 is measured as the last."""
    of = central("server.spare_rounds=5", rounds=4)
    admitted(tmp_path / "ledger.db", of, plan(of), participations=2)
    grid = FakeGrid(CLIENTS, good)
    with pytest.raises(BudgetSpentError, match=r"Round 3 was not begun: budget-spent\. The model so far is saved"):
        run(tmp_path, of, grid)
    assert grid.pushes == [4, 4]
    assert len(charged(tmp_path / "ledger.db")) == 2
    assert refused(tmp_path / "ledger.db") == [("r", "budget-spent")]
    last = (tmp_path / "rounds.csv").read_text().splitlines()[-1].split(",")
    assert last[0] == "2"
    assert 0 <= float(last[4]) <= 1


def test_population_of_which_nothing_fits_is_never_asked(tmp_path):
    """The accountant admits no round of a budget of 1: one round at noise 1 would cost 4.38."""
    of = central("privacy.budget=1.0", rounds=4)
    Ledger.create(tmp_path / "ledger.db").close()
    grid = FakeGrid(CLIENTS, good)
    with pytest.raises(BudgetSpentError, match="Round 1 was not begun"):
        run(tmp_path, of, grid)
    assert grid.pushes == []
    assert charged(tmp_path / "ledger.db") == []


def test_coordinator_without_its_ledger_asks_nobody(tmp_path):
    """Unit `client` is charged by the coordinator: without a ledger in the run's folder nothing begins."""
    of = central()
    grid = FakeGrid(CLIENTS, good)
    with strategy_in(tmp_path, of) as (strategy, _):
        (tmp_path / "ledger.db").unlink()
        with pytest.raises(LedgerError, match="expected a ledger, got no file"):
            strategy.start(grid, ArrayRecord(), num_rounds=1)
    assert grid.pushes == []


def failing_in_round_one(message: Message) -> Message:
    """Fail in the first attempt at round 1."""
    order = order_of(message)
    return refusal(message, "failed") if (order["round"], order["attempt"]) == (1, 1) else good(message)


def test_killed_client_level_run_keeps_its_charges(tmp_path):
    """The charge of the lost attempt stays, unsettled, and the attempt that follows has its own."""
    of = central("server.spare_rounds=1", rounds=4)
    with pytest.raises(KilledError):
        run(tmp_path, of, dying_in(2))
    run(tmp_path, of, good, rounds=3)
    name = population_account(of)
    assert [entry[:2] for entry in charged(tmp_path / "ledger.db")] == [(1, 1), (2, 1), (2, 2), (3, 1)]
    assert settled(tmp_path / "ledger.db") == [("COMMIT", *order, name) for order in [(1, 1), (2, 2), (3, 1)]]


def test_clients_keep_their_own_accounts_otherwise(tmp_path):
    """For the units `record` and `none` the coordinator keeps no ledger."""
    for unit in ("record", "none"):
        run(tmp_path / unit, scenario("server.evaluate_every=9", unit=unit, rounds=2), good, rounds=1)
        assert not list((tmp_path / unit).glob("*ledger*"))


@pytest.mark.parametrize("missing", [False, True])
def test_divisor_is_the_rate_times_the_population(tmp_path, missing):
    """A sum over a cohort drawn with q = 1/2 from 4 clients is divided by 2, however many came."""
    of = central("server.cohort=2", "server.min_replies=0")
    grid = FakeGrid(CLIENTS, but(1, lambda message: refusal(message, "failed")) if missing else good)
    weights, records = run(tmp_path, of, grid, planned=plan(of, noise_multiplier=1e-9), rounds=1)
    came = [int(str(order["client"])) for order in grid.asked]
    total = sum((update_of(client).astype(np.float64) for client in came if client != 1 or not missing), np.zeros(182))
    assert records[0].cohort == len(came)
    np.testing.assert_allclose(weights - first_weights(of).numpy(), total / 2, rtol=0, atol=1e-7)


def test_noise_has_the_scale_of_multiplier_times_norm(tmp_path):
    """What the steps hold beside the mean has standard deviation 1.5 * 0.5, mean 0, and is new in each round.

    Each of the checks fails by chance with a probability below 1e-7.
    """
    of = central(rounds=3, model=SMALL)
    planned = plan(of, noise_multiplier=1.5, max_grad_norm=0.5)
    size = 9610
    visited: list[np.ndarray] = []

    def answer(message: Message) -> Message:
        if client_of(message) == 0:
            visited.append(weights_in(message).astype(np.float64))
        return reply(message, update_of(client_of(message), size, norm=0.4))

    last, _ = run(tmp_path, of, answer, planned=planned, rounds=2)
    total = sum(update_of(client, size, norm=0.4).astype(np.float64) for client in range(CLIENTS))
    visited.append(last.astype(np.float64))
    # q = 1 of 4 clients: everybody is asked, and the divisor is 4
    first, second = ((after - before) * 4 - total for before, after in itertools.pairwise(visited))
    for noise in (first, second):
        # standard error of a standard deviation: 0.75 / sqrt(2 * 9610) = 0.0054; 5.5 of them: 4e-8
        assert abs(noise.std() - 0.75) < 5.5 * 0.75 / math.sqrt(2 * size)
        assert abs(noise.mean()) < 5.5 * 0.75 / math.sqrt(size)
    assert abs(np.corrcoef(first, second)[0, 1]) < 5.5 / math.sqrt(size)


def test_noise_is_added_to_an_empty_cohort_too(tmp_path):
    """At q = 10^-9 nobody is asked (but for 4 * 10^-9), and the model moves by noise of the usual scale.

    The scale's check fails by chance with a probability below 1e-7.
    """
    of = central(model=SMALL)
    planned = plan(of, noise_multiplier=2.0, rate=Fraction(1, 10**9))
    grid = FakeGrid(CLIENTS, good)
    weights, records = run(tmp_path, of, grid, planned=planned, rounds=1)
    assert grid.pushes == [0]
    assert (records[0].cohort, records[0].replies, records[0].attempt) == (0, 0, 1)
    noise = (weights - first_weights(of).numpy()).astype(np.float64) * 4e-9  # q times the population
    assert abs(noise.std() - 2) < 5.5 * 2 / math.sqrt(2 * 9610)
    assert [number for number, _, _ in charged(tmp_path / "ledger.db")] == [1]
    assert [kind for kind, *_ in settled(tmp_path / "ledger.db")] == ["COMMIT"]


def test_noise_is_added_when_everybody_fails(tmp_path):
    """A cohort whose replies are all refused is an empty sum, and gets its noise."""
    of = central("server.min_replies=0")
    weights, records = run(tmp_path, of, lambda message: refusal(message, "failed"), rounds=1)
    assert records[0].replies == 0
    assert (weights != first_weights(of).numpy()).all()


def test_no_noise_is_added_where_the_clients_add_theirs(tmp_path):
    """Unit `record`: the coordinator averages and adds nothing."""
    of = scenario("server.evaluate_every=9", unit="record", rounds=2)
    weights, _ = run(tmp_path, of, good, rounds=1)
    np.testing.assert_array_equal(weights, first_weights(of).numpy() + mean(0, 1, 2, 3))


def test_client_level_run_in_full(tmp_path):
    """Poisson cohorts to the last round: each round is charged once, and the figure is that of all of them."""
    of = scenario("server.cohort=2", "privacy.delta=1e-5", "privacy.budget=100.0", unit="client", rounds=6)
    Ledger.create(tmp_path / "ledger.db").close()  # whose account and run the strategy opens itself
    _, records = run(tmp_path, of, good)
    assert [number for number, _, _ in charged(tmp_path / "ledger.db")] == [1, 2, 3, 4, 5, 6]
    assert records[-1].epsilon_max == epsilon_of(of, times=6)
