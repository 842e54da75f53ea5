"""What a record looks like is agreed before anything else: a coordinator asks no value by declaring it."""

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import sample_consortium
from organisation import make
from test_node_training import place_of

from client.node.training_desk import Desk
from client.node.work import Done, Propose, Refused, Stored, Train
from client.own_data import layout_digest
from client.proposal_report import report
from common import flat
from common.config import parse
from common.ledger import Ledger
from common.messages import Order, Refusal
from common.models.registry import build
from common.privacy.plan import make_plan
from common.sources import parse as parse_source
from common.tasks import task_of
from common.wire import encode_order

RECORDS = 40
SCENARIO = """
run = {name = "x", rounds = 3}
training = {batch_size = 10, local_steps = 1}
privacy = {noise_multiplier = 2.0}
[data]
dataset = "csv"
clients = 3
[data.table]
label = "sick"
classes = ["no", "yes"]
columns = [{name = "ward", values = ["A", "B"]}]
"""
PROBE = SCENARIO.replace('"A", "B"', '"A"')  # refused by the file, if anybody is in ward B


@pytest.fixture(scope="module")
def organisation(tmp_path_factory):
    consortium = sample_consortium.make(tmp_path_factory.mktemp("pin"), owners=2, witness=False, ledgers=True)
    return make(consortium, "localhost:1", budget__epsilon=50.0, budget__epsilon_per_run=20.0)


@pytest.fixture
def table(organisation):
    """The owner's file: somebody is in ward B."""
    path = organisation.folder / "wards.csv"
    path.write_text("ward,sick\n" + "A,no\n" * (RECORDS - 1) + "B,yes\n")
    return path


def desk(organisation, *, layout):
    """What a node with this source does."""
    source = parse_source({"kind": "csv", "path": "wards.csv", "layout": layout}, folder=organisation.folder)
    return Desk(replace(place_of(organisation), data=source))


def ordered(text, run):
    scenario = parse(text)
    weights_P = flat.flatten(build(scenario.model, task_of(scenario.data), seed=0)).numpy()
    mechanism = make_plan(scenario, records=(RECORDS,) * 3, run=run).mechanism(0)
    order = Order(run=run, round=1, attempt=1, client=0, weights_P=weights_P, mechanism=mechanism)
    return Train(scalars=encode_order(order).scalars, weights=weights_P.astype(np.float32).tobytes(), scenario=text)


def answered(node, text, run):
    """How an order of this scenario ends."""
    sent = []
    node.train(ordered(text, run), send=sent.append, receive=lambda: Stored(is_kept=True))
    return sent[-1]


def entries(organisation):
    with closing(Ledger(organisation.ledger)) as ledger:
        return ledger.books.size


@pytest.mark.parametrize("pin", ["", layout_digest(parse(SCENARIO).data)], ids=["no pin", "another pin"])
def test_a_declaration_that_nobody_pinned_is_refused_when_it_is_proposed(organisation, caplog, pin):
    """Before the file is opened: there is none here. The owner's one line says what to pin."""
    offered = desk(organisation, layout=pin).offered(Propose(run="probe", scenario=PROBE))
    assert offered.refusal is Refusal.OUTSIDE_POLICY
    (line,) = [record.getMessage() for record in caplog.records]
    assert f'layout = "{layout_digest(parse(PROBE).data)}"' in line
    assert "Nothing was read" in line


@pytest.mark.parametrize("pin", ["", layout_digest(parse(SCENARIO).data)], ids=["no pin", "another pin"])
def test_an_order_that_nobody_pinned_is_neither_charged_nor_read(organisation, table, pin):
    """The word is the same whatever the file holds, and the ledger has no entry more."""
    node, before, answers = desk(organisation, layout=pin), entries(organisation), []
    for rows in (table.read_text(), table.read_text().replace("B", "A"), ""):
        table.write_text(rows)
        answers.append(answered(node, PROBE, "probe"))
    assert answers == 3 * [Refused(word=Refusal.OUTSIDE_POLICY)]
    assert all("Nothing was read" in answer.why for answer in answers)
    assert entries(organisation) == before


def test_what_was_pinned_is_trained(organisation, table):
    """The agreed declaration is offered for, charged and trained."""
    assert table.exists()
    node = desk(organisation, layout=layout_digest(parse(SCENARIO).data))
    assert node.offered(Propose(run="agreed", scenario=SCENARIO)).refusal is None
    assert answered(node, SCENARIO, "agreed") == Done()
    with closing(Ledger(organisation.ledger)) as ledger:
        assert ledger.books.accounts["wards"].runs["agreed"].charged == 1


def test_the_digest_to_pin_is_told_before_anybody_says_yes(organisation):
    """`discreet plan --policy` has it."""
    told = report(parse(SCENARIO), policy=organisation.policy)
    assert told["layout"] == layout_digest(parse(SCENARIO).data)
