"""A node as its organisation runs it: a real process, real TLS, a link and a coordinator that do what they like."""

import os
import signal
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sample_consortium
from fake_link import Coordinator, FakeLink, shim
from organisation import SCENARIO, Node, make, resident_mib, running

from common import flat
from common.config import parse
from common.ledger import Ledger
from common.messages import Order
from common.models.registry import build
from common.privacy.plan import make_plan
from common.tasks import TASKS

ENDLESS = SCENARIO.replace("local_steps = 1", "local_steps = 1000000").replace("epsilon = 4.0", 'unit = "none"')
LONG = SCENARIO.replace("local_steps = 1", "local_steps = 3000")  # with noise: half a minute
PLAN = make_plan(parse(SCENARIO), records=(40, 40, 40), run="r")
MECHANISM = PLAN.mechanism(0)
WEIGHTS = flat.flatten(build(parse(SCENARIO).model, TASKS["digits"], seed=7)).numpy()


def order(number=1, *, run="r", weights=WEIGHTS, client=0, mechanism=MECHANISM):
    return Order(run=run, round=number, attempt=1, client=client, weights_P=weights, mechanism=mechanism)


@pytest.fixture(scope="module")
def consortium(tmp_path_factory):
    return sample_consortium.make(tmp_path_factory.mktemp("consortium"), owners=3, witness=False, ledgers=True)


@pytest.fixture(scope="module")
def link(consortium):
    with closing(FakeLink(consortium)) as opened:
        yield opened


@pytest.fixture(scope="module")
def organisation(consortium, link):
    return make(consortium, link.address, limits__without_privacy=True, limits__max_steps_per_round=5000)


@pytest.fixture(scope="module")
def node(organisation):
    with running(organisation) as process:
        yield process


@pytest.fixture
def coordinator(consortium, link, organisation):
    """Of a run of its own each time."""
    number = len(link.runs) + 2**63
    return Coordinator(
        consortium=consortium, link=link, scenario=SCENARIO, flower_run=number, policy=organisation.digest
    ).begin()


def charged(organisation, run):
    """How many orders of a run the ledger has charged; None before it was reserved."""
    with closing(Ledger(organisation.ledger)) as ledger:
        account = ledger.books.accounts.get("wards")
        known = account.runs.get(run) if account else None
        return None if known is None else known.charged


@contextmanager
def another(consortium, number, **policy: object):
    """A node of another organisation at a link of its own, which a test may kill."""
    with closing(FakeLink(consortium)) as link:
        organisation = make(consortium, link.address, number=number, **policy)
        with running(organisation) as process:
            yield organisation, process, link


def test_a_run_from_proposal_to_end(node, organisation, coordinator, link):
    """Three rounds, each report signed over its order; the ledger has them, and closes the run when it is told."""
    offer = link.said(coordinator.ask("run-a"))[0]["answer"]
    assert offer == {"run": "run-a", "records": 40, "policy": organisation.digest, "code": offer["code"], "refusal": ""}
    for number in (1, 2, 3):
        sent = order(number, run="run-a")
        reply = link.said(coordinator.order(sent))
        assert coordinator.refuse_unsigned(sent, reply) == ""
        assert np.isfinite(np.frombuffer(reply[1]["update"], "<f4")).all()
        assert reply[0]["seal"]["code"] == offer["code"]
    assert link.said(coordinator.ask("run-a", "end"))[0]["answer"] == {"run": "run-a"}
    with closing(Ledger(organisation.ledger)) as ledger:
        run = ledger.books.accounts["wards"].runs["run-a"]
    assert (run.charged, run.is_closed, len(run.unsettled)) == (3, True, 0)


def test_the_node_stays_small_and_its_child_too(node, coordinator, link):
    """Node under 150 MB without torch, scipy or the accountants; training process under 550 MB, with one order done."""
    link.said(coordinator.order(order(run="small")))
    (child,) = node.children()
    loaded = Path(f"/proc/{node.process.pid}/maps").read_text()
    assert not [name for name in ("torch", "scipy", "pandas") if f"/{name}/" in loaded]
    assert "/torch/" in Path(f"/proc/{child}/maps").read_text()
    assert resident_mib(node.process.pid) < 150
    assert resident_mib(child) < 550


def test_the_node_imports_none_of_the_heavy_libraries():
    """Neither while it is put together nor when it answers: by name, in a process of its own."""
    import subprocess
    import sys

    code = (
        "import sys; import client.node.node_process, client.commands.node; "
        "print([name for name in ('torch', 'scipy', 'dp_accounting', 'opacus', 'pandas', 'sklearn') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_same_order_gets_the_very_same_report(node, organisation, coordinator, link):
    """Bit for bit, and it is charged once; another one with its numbers is refused."""
    first = link.said(coordinator.order(order(run="same")))
    again = link.said(coordinator.order(order(run="same")))
    assert again == first
    other = order(run="same", weights=WEIGHTS + 1)
    assert coordinator.refuse_unsigned(other, link.said(coordinator.order(other))) == "already-trained"
    assert charged(organisation, "same") == 1


@pytest.mark.parametrize(
    "lie",
    [
        lambda c: c.order(order(run="lie"), tamper={"round": 2}),
        lambda c: c.order(order(run="lie"), signature=b"\0" * 64),
        lambda c: c.order(order(run="lie"), signature=replace(c, party=1).sealed(order(run="lie"))[1]),
        lambda c: c.order(order(run="lie"), signature=replace(c, flower_run=5).sealed(order(run="lie"))[1]),
        lambda c: c.order(order(run="lie"), signature=replace(c, scenario="x").sealed(order(run="lie"))[1]),
        lambda c: c.order(order(run="lie"), signature=c.sealed(order(run="lie", weights=WEIGHTS + 1))[1]),
    ],
    ids=["round", "no signature", "another owner's", "another run's", "another scenario's", "other weights"],
)
def test_what_the_coordinator_did_not_say_is_forged(node, organisation, coordinator, link, lie):
    """A link that changes, swaps or replays is found out before anything is charged."""
    reply = link.said(lie(coordinator))
    assert reply[0]["refusal"] == {"word": "forged"}
    assert (set(reply[0]), reply[1]) == ({"refusal", "seal"}, {})
    assert charged(organisation, "lie") is None


def test_an_order_for_another_policy_is_outside(node, coordinator, link):
    """The owner changed its policy after it was asked: nothing is done under the old one."""
    old = coordinator.told("e" * 64)
    assert old.refuse_unsigned(order(), link.said(old.order(order()))) == "outside-policy"


def test_an_order_for_another_client_is_not_in_the_plan(node, coordinator, link):
    """A node's number is its place in the roster."""
    sent = order(client=2)
    assert coordinator.refuse_unsigned(sent, link.said(coordinator.order(sent))) == "not-in-plan"


@pytest.mark.parametrize("files", [{"client__py": "import os"}, {"README__md": "another hash, without code"}])
def test_a_bundle_that_is_not_allowed_is_refused(node, organisation, coordinator, link, files):
    """With code in it or of another hash: the word comes before the order is looked at, even a forged one."""
    coordinator.begin(bundle=shim(**files))
    link.runs[coordinator.flower_run + 2**62] = link.runs.pop(coordinator.flower_run)
    told = replace(coordinator, flower_run=coordinator.flower_run + 2**62)
    sent = order(run="bundle")
    assert told.refuse_unsigned(sent, link.said(told.order(sent))) == "bundle-refused"
    assert link.said(told.order(sent, signature=b"x"))[0]["refusal"] == {"word": "bundle-refused"}
    assert link.said(told.ask("bundle"))[0]["answer"]["refusal"] == "bundle-refused"
    assert charged(organisation, "bundle") is None


def test_a_scenario_that_does_not_parse_is_malformed(node, consortium, link, organisation):
    """One word; the line that says where stays here."""
    bad = Coordinator(
        consortium=consortium, link=link, scenario="rubbish", flower_run=99, policy=organisation.digest
    ).begin()
    assert link.said(bad.ask("bad"))[0]["answer"]["refusal"] == "malformed"
    assert bad.refuse_unsigned(order(), link.said(bad.order(order()))) == "malformed"


def test_a_child_that_is_killed_is_an_answer_and_not_the_end(node, consortium, link, organisation):
    """SIGKILL in mid-training: `worker-died`, signed; the next order is carried out by another process."""
    endless = Coordinator(
        consortium=consortium, link=link, scenario=ENDLESS, flower_run=98, policy=organisation.digest
    ).begin()
    sent = order(run="killed", mechanism=None)
    (child,) = node.children()
    name = endless.order(sent)
    threading.Timer(1.5, os.kill, (child, signal.SIGKILL)).start()
    assert endless.refuse_unsigned(sent, link.said(name)) == "worker-died"
    told = Coordinator(
        consortium=consortium, link=link, scenario=SCENARIO, flower_run=97, policy=organisation.digest
    ).begin()
    sent = order(run="after-kill")
    assert told.refuse_unsigned(sent, link.said(told.order(sent))) == ""
    assert node.children() != [child]


def test_a_link_that_is_away_is_waited_for(node, coordinator, link):
    """An answer that cannot be sent is sent when it can; people read two lines."""
    link.broken = dict.fromkeys(("pull-messages", "push-messages", "send-node-heartbeat"), (503, ""))
    node.wait_line("Trying again until it works")
    time.sleep(1.0)
    link.broken = {}
    sent = order(run="away")
    assert coordinator.refuse_unsigned(sent, link.said(coordinator.order(sent))) == ""
    node.wait_line("answers again")


def test_a_second_node_with_the_same_state_is_refused(node, organisation):
    """Two would share a journal; it says so and ends with 2."""
    second = Node(organisation)
    assert second.process.wait(timeout=30) == 2
    second.wait_line("expected no other node with this state")


def test_a_report_that_was_signed_survives_the_node(consortium):
    """Killed between the signature and the answer: started again, it sends that report, charged once."""
    with another(consortium, 1) as (organisation, node, link):
        told = Coordinator(
            consortium=consortium, link=link, scenario=SCENARIO, flower_run=96, party=1, policy=organisation.digest
        ).begin()
        link.broken["push-messages"] = (503, "")
        sent = order(run="cut", client=1)
        name = told.order(sent)
        node.wait_line("trained in")
        node.kill()
        link.broken.clear()
        with running(organisation) as again:
            again.wait_line("is taken up again")
            assert told.refuse_unsigned(sent, link.said(name)) == ""
            again.wait_line("the same report is sent again")
        assert charged(organisation, "cut") == 1


def test_an_order_that_was_cut_short_stays_charged(consortium):
    """Killed in mid-training: started again, the ledger says that it was trained, and nothing trains twice."""
    room = {"limits__max_steps_per_round": 5000, "limits__min_noise_multiplier": 0.01}
    with another(consortium, 1, **room) as (organisation, node, link):
        told = Coordinator(
            consortium=consortium, link=link, scenario=LONG, flower_run=95, party=1, policy=organisation.digest
        ).begin()
        plan = make_plan(parse(LONG), records=(40, 40, 40), run="short")
        sent = order(run="short", client=1, mechanism=plan.mechanism(1))
        name = told.order(sent)
        deadline = time.monotonic() + 60
        while charged(organisation, "short") != 1:
            assert time.monotonic() < deadline, "".join(node.log)
            time.sleep(0.1)
        node.kill()
        with running(organisation):
            assert told.refuse_unsigned(sent, link.said(name)) == "already-trained"
        assert charged(organisation, "short") == 1


def test_a_run_waits_for_a_person_and_then_trains(consortium):
    """Proposed, listed, approved on the command line, trained; another scenario under its name is refused."""
    with another(consortium, 2, limits__approval=True) as (organisation, _, link):
        told = Coordinator(
            consortium=consortium, link=link, scenario=SCENARIO, flower_run=94, party=2, policy=organisation.digest
        ).begin()
        sent = order(run="asked", client=2)
        assert told.refuse_unsigned(sent, link.said(told.order(sent))) == "awaits-approval"
        assert link.said(told.ask("asked"))[0]["answer"]["refusal"] == "awaits-approval"
        approved = organisation.command("approve", "asked", "--by", "Dr Grey")
        assert approved.returncode == 0, approved.stderr
        assert link.said(told.ask("asked"))[0]["answer"]["refusal"] == ""
        assert told.refuse_unsigned(sent, link.said(told.order(sent))) == ""
        other = replace(told, scenario=SCENARIO + "\n", flower_run=93).begin()
        assert other.refuse_unsigned(sent, link.said(other.order(sent))) == "not-in-plan"


def test_a_node_told_to_stop_in_mid_training_stops_within_five_seconds(consortium):
    """Exit 0; the link is told, the child is gone, and the message waits for the next start."""
    with another(consortium, 2, limits__without_privacy=True) as (organisation, node, link):
        told = Coordinator(
            consortium=consortium, link=link, scenario=ENDLESS, flower_run=92, party=2, policy=organisation.digest
        ).begin()
        name = told.order(order(run="stopped", client=2, mechanism=None))
        time.sleep(2.0)
        (child,) = node.children()
        status, seconds = node.stop()
        assert (status, link.online) == (0, False)
        assert seconds < 5
        assert not Path(f"/proc/{child}").exists()
        assert name not in link.confirmed


def test_a_clock_that_is_wrong_is_said_in_one_line(consortium):
    """The node waits until it is right, and is then there."""
    with closing(FakeLink(consortium)) as link:
        link.broken["activate-node"] = (401, "clock")
        node = Node(make(consortium, link.address, number=1))
        try:
            node.wait_line("Set this machine's clock right")
            time.sleep(3.0)
            assert len([line for line in node.log if "clock" in line]) == 1
            del link.broken["activate-node"]
            node.wait_ready()
            assert node.stop()[0] == 0
        finally:
            node.kill()
