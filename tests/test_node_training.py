"""The training process: what dies in there costs one order, and never the node."""

import os
import signal
import threading
import time
from contextlib import closing

import numpy as np
import pytest
import sample_consortium
from organisation import SCENARIO, make

from client.node import settings as node_settings
from client.node import training
from client.node.connection import StoppedError
from client.node.training import BrokenError, Worker
from client.node.work import End, Propose, Train, Workplace
from common import flat
from common.config import parse
from common.errors import RefusedError, SettingsError
from common.ledger import Ledger
from common.messages import Order, Refusal
from common.models.registry import build
from common.privacy.plan import make_plan
from common.tasks import TASKS
from common.wire import encode_order

ENDLESS = """
run = {name = "x", rounds = 3}
data = {dataset = "digits", clients = 3}
training = {batch_size = 10, local_steps = 1000000}
privacy = {unit = "none"}
"""
ROOM = {"limits__without_privacy": True}


@pytest.fixture(scope="module")
def consortium(tmp_path_factory):
    return sample_consortium.make(tmp_path_factory.mktemp("consortium"), owners=2, witness=False, ledgers=True)


@pytest.fixture(scope="module")
def organisation(consortium):
    return make(consortium, "localhost:1", **ROOM)


def place_of(organisation):
    read = node_settings.read(organisation.folder / "node.toml")
    return Workplace(
        policy=organisation.policy, ledger=read.ledger, memory=read.ledger_seen, identity=read.identity, data=read.data
    )


@pytest.fixture(scope="module")
def stop():
    return threading.Event()


@pytest.fixture(scope="module")
def worker(organisation, stop):
    made = Worker(place_of(organisation), train_timeout_s=30.0, stop=stop)
    made.start()
    with closing(made):
        yield made


def request(number, *, run="r", scenario=SCENARIO, size=None):
    parsed = parse(scenario)
    weights = flat.flatten(build(parsed.model, TASKS["digits"], seed=7)).numpy()[:size]
    private = parsed.privacy.unit == "record"
    mechanism = make_plan(parsed, records=(40, 40, 40), run=run).mechanism(0) if private else None
    order = Order(run=run, round=number, attempt=1, client=0, weights_P=weights, mechanism=mechanism)
    return Train(scalars=encode_order(order).scalars, weights=weights.tobytes(), scenario=scenario)


def word(act):
    """The word by which something is refused."""
    with pytest.raises(RefusedError) as refused:
        act()
    return refused.value.word


def kill_soon(worker):
    """Kill the process some time into its training."""
    threading.Timer(1.0, lambda: os.kill(worker.process_id, signal.SIGKILL)).start()


def test_an_order_is_kept_before_the_ledger_says_that_it_was_done(worker, organisation):
    """While it is kept the charge is there and unsettled; afterwards it is settled; then the run can be closed."""
    assert worker.propose(Propose(run="r", scenario=SCENARIO)).purpose == "a trial of the node"
    seen = []

    def unsettled():
        with closing(Ledger(organisation.ledger)) as ledger:
            return len(ledger.books.accounts["wards"].runs["r"].unsettled)

    worker.train(request(1), keep=lambda trained: seen.append((unsettled(), np.frombuffer(trained.update, "<f4"))))
    ((count, update),) = seen
    assert count == 1
    assert np.isfinite(update).all()
    assert unsettled() == 0
    worker.end(End(run="r"))
    with closing(Ledger(organisation.ledger)) as ledger:
        assert ledger.books.accounts["wards"].runs["r"].is_closed


def test_the_same_order_never_trains_twice(worker):
    """The ledger knows it, whatever the node remembers."""
    worker.train(request(1, run="twice"), keep=lambda trained: None)
    assert word(lambda: worker.train(request(1, run="twice"), keep=lambda trained: None)) is Refusal.ALREADY_TRAINED


def test_a_report_that_cannot_be_kept_stays_charged(worker, organisation):
    """The disk is full: nothing leaves, and nothing is refunded."""

    def keep(trained):
        raise SettingsError("the disk is full")

    with pytest.raises(SettingsError):
        worker.train(request(1, run="full"), keep=keep)
    with closing(Ledger(organisation.ledger)) as ledger:
        run = ledger.books.accounts["wards"].runs["full"]
    assert (run.charged, len(run.unsettled)) == (1, 0)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"scenario": "rubbish"}, Refusal.MALFORMED),
        ({"scenario": SCENARIO.replace("digits", "mnist")}, Refusal.DATA_UNFIT),
        ({"size": 3}, Refusal.MALFORMED),
    ],
    ids=["scenario", "records", "weights"],
)
def test_what_does_not_fit_is_one_word(worker, changes, expected):
    """Its text stays in the owner's log."""
    sent = request(2, run="odd")
    if "size" in changes:
        sent = request(2, run="odd", size=3)
    else:
        sent = Train(scalars=sent.scalars, weights=sent.weights, scenario=changes["scenario"])
    if "mnist" in sent.scenario:
        sent = request_mnist()
    assert word(lambda: worker.train(sent, keep=lambda trained: None)) is expected


def request_mnist():
    """An order for pictures of another size than this owner's."""
    scenario = ENDLESS.replace("digits", "mnist")
    weights = flat.flatten(build(parse(scenario).model, TASKS["mnist"], seed=7)).numpy()
    order = Order(run="odd", round=3, attempt=1, client=0, weights_P=weights)
    return Train(scalars=encode_order(order).scalars, weights=weights.tobytes(), scenario=scenario)


def test_a_process_that_is_killed_in_mid_training_is_replaced(worker):
    """The order is refused with a word, and the next one is carried out by another process."""
    before = worker.process_id
    kill_soon(worker)
    assert word(lambda: worker.train(request(1, run="k", scenario=ENDLESS), keep=print)) is Refusal.WORKER_DIED
    assert worker.process_id != before
    worker.train(request(1, run="after"), keep=lambda trained: None)


def test_a_process_that_dies_between_orders_costs_none(worker):
    """The next order finds another one."""
    worker.ready()
    os.kill(worker.process_id, signal.SIGKILL)
    time.sleep(0.2)
    worker.train(request(2, run="after"), keep=lambda trained: None)


def test_training_that_takes_too_long_is_killed(worker, monkeypatch):
    """`timed-out`, and the next order finds another process."""
    worker.ready()
    monkeypatch.setattr(worker, "_train_timeout_s", 0.5)
    before = worker.process_id
    assert word(lambda: worker.train(request(1, run="t", scenario=ENDLESS), keep=print)) is Refusal.TIMED_OUT
    assert worker.process_id != before


def test_a_request_to_stop_ends_the_wait(worker, stop, monkeypatch):
    """An order that would take for ever is abandoned after the grace."""
    worker.ready()
    monkeypatch.setattr(training, "GRACE_S", 0.3)
    threading.Timer(0.5, stop.set).start()
    begun = time.monotonic()
    with pytest.raises(StoppedError):
        worker.train(request(1, run="s", scenario=ENDLESS), keep=print)
    assert time.monotonic() - begun < 3


def test_a_ledger_that_is_missing_is_said_at_once(consortium):
    """Whoever starts the node reads what to do."""
    organisation = make(consortium, "localhost:1", number=1)
    lost = organisation.ledger.rename(organisation.ledger.with_suffix(".lost"))
    worker = Worker(place_of(organisation), train_timeout_s=1.0, stop=threading.Event())
    worker.start()
    with closing(worker), pytest.raises(BrokenError, match="expected a ledger, got no file") as broken:
        worker.ready()
    assert (broken.value.exit_code, broken.value.word) == (1, Refusal.NOT_RECORDED)
    lost.rename(organisation.ledger)
