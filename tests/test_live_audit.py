"""The live audit: canaries beside an organisation's records, by its own policy only, and N that counts them."""

import json
import stat
import subprocess
import sys
import tomllib
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import sample_consortium
import tomli_w
from ledger_reader import charges, entries, kinds
from organisation import ROOT, make
from owner_policy import RECORDS, write_policy
from test_client_app import ask
from test_node_training import place_of

from client import policy as policies
from client.gradients.hooks import Hooks
from client.ledger_views import verified
from client.live.audited import audited
from client.live.notebook import COINS, MOVES, Movement, notebook_of, notebooks_of
from client.live.probe import can_pull
from client.live.room import room_in, unreadable
from client.live.rows import beside
from client.live.show import show as show_audited
from client.live.watch import is_readable, one_movement
from client.node.decisions import _cost
from client.node.training_desk import Desk
from client.node.work import Done, Propose, Refused, Stored, Train
from client.owner import Owner
from client.policy import describe, in_words
from client.proposal_report import report, show
from client.proposals import objections, proposed
from client.trainer import Trainer
from common import flat
from common.canaries import MARK
from common.config import parse
from common.errors import BadInputError, JournalError, PolicyError, ScenarioError
from common.ledger import Ledger
from common.messages import Mechanism, Order, Refusal
from common.models.registry import model_of
from common.privacy.accounting import epsilon
from common.privacy.events import merged
from common.privacy.plan import make_plan
from common.shards import Shard, write_shards
from common.transparency.entries import Audit, Opening, type_of
from common.transparency.export import read
from common.wire import encode_order
from simulations.engine.executors import identify
from simulations.trials import cast, trial

CANARIES = 8  # that the policy allows; the scenario has room for 12
N = RECORDS + CANARIES
TEXT = """
run = {name = "x", rounds = 3, purpose = "a live audit"}
data = {dataset = "digits", clients = 2}
model = {name = "cnn", channels = [4, 4, 4], dense = 8}
training = {batch_size = 12, local_steps = 1, learning_rate = 0.5}
server = {spare_rounds = 2}
privacy = {epsilon = 6.0}
audit = {canaries = 12}
"""
SCENARIO = parse(TEXT)
ALLOWED = {"audit": {"canaries": CANARIES}}


@pytest.fixture(scope="module")
def consortium(tmp_path_factory):
    return sample_consortium.make(tmp_path_factory.mktemp("live"), owners=3, witness=False, ledgers=True)


@pytest.fixture(scope="module")
def organisation(consortium):
    """An organisation that audits live, with a budget for many runs."""
    return make(consortium, "localhost:1", **ALLOWED, budget__epsilon=300.0, budget__epsilon_per_run=8.0)


@pytest.fixture
def place(tmp_path):
    """A policy that allows canaries, and an empty ledger."""
    write_policy(tmp_path / "policy.toml", **ALLOWED)
    Ledger.create(tmp_path / "ledger.db").close()
    return tmp_path


def policy_with(tmp_path, **changes: object):
    return policies.load(write_policy(tmp_path / "policy.toml", **changes))


def ordered(number, *, run, text=TEXT, units=N, pad=0.0, body=None):
    """An order of the coordinator's plan, which counts on the units that were offered."""
    scenario = parse(text)
    weights_P = flat.flatten(model_of(scenario)).numpy().copy()
    if scenario.audit is not None:
        weights_P[-scenario.audit.canaries :] = pad
    if body is not None:
        weights_P[:-12] = body
    mechanism = make_plan(scenario, records=(units,) * 2, run=run).mechanism(0)
    order = Order(run=run, round=number, attempt=1, client=0, weights_P=weights_P, mechanism=mechanism)
    return Train(scalars=encode_order(order).scalars, weights=weights_P.tobytes(), scenario=text)


def answers(desk, request, *, is_kept=True):
    """What the training process says to an order."""
    sent = []
    desk.train(request, send=sent.append, receive=lambda: Stored(is_kept=is_kept))
    return sent


# --- by policy only ---------------------------------------------------------------------------------------------------


def test_without_the_table_a_policy_is_what_it_was(tmp_path):
    """Absent, and no canaries, are the same policy with the same digest; each number of canaries is another."""
    absent = policy_with(tmp_path)
    none = policy_with(tmp_path, audit={"canaries": 0})
    some, more = (policy_with(tmp_path, audit={"canaries": count}) for count in (8, 9))
    assert absent == none
    assert absent.digest == none.digest
    assert len({absent.digest, some.digest, more.digest}) == 3
    assert "audit" not in describe(absent)["policy"]
    assert describe(some)["policy"]["audit"] == {"canaries": 8}


@pytest.mark.parametrize("count", [-1, 2**20 + 1, 1.5, True])
def test_an_impossible_number_of_canaries_is_refused(tmp_path, count):
    """From none to 2^20, a whole number."""
    with pytest.raises(PolicyError, match=r"audit\.canaries"):
        policy_with(tmp_path, audit={"canaries": count})


def test_delta_counts_on_all_units(tmp_path):
    """40 records allow a delta of 1/40; with 8 canaries beside them 1/48 is the most."""
    policy_with(tmp_path, budget__delta=1 / 48, **ALLOWED)
    with pytest.raises(PolicyError, match=r"at most 1/\(data.records \+ audit.canaries\) = 0.0208, got 0.025"):
        policy_with(tmp_path, budget__delta=1 / 40, **ALLOWED)


def test_a_policy_says_in_words_what_it_allows(tmp_path):
    """Both what is put in and that nothing is."""
    assert in_words(policy_with(tmp_path))[-1] == "In runs that have room for a live audit: no canaries."
    expected = "In runs that have room for a live audit: up to 8 canaries beside the records, N is then all of them."
    assert in_words(policy_with(tmp_path, **ALLOWED))[-1] == expected


def test_a_pad_alone_changes_nothing(tmp_path):
    """Without the policy's word the owner counts its records, and has no notebook."""
    write_policy(tmp_path / "policy.toml")
    Ledger.create(tmp_path / "ledger.db").close()
    owner = Owner(policy=tmp_path / "policy.toml", ledger=tmp_path / "ledger.db")
    assert owner.units(SCENARIO) == RECORDS
    mechanism = make_plan(SCENARIO, records=(RECORDS,), run="r").mechanism(0)
    order = Order(run="r", round=1, attempt=1, client=0, weights_P=np.zeros(0, np.float32), mechanism=mechanism)
    with owner.charged(order, SCENARIO) as watch:
        assert watch is None
    assert not notebooks_of(tmp_path / "ledger.db")


# --- N ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allowed", "room", "expected"), [(8, 12, 48), (12, 8, 48), (8, 8, 48), (8, 0, 40), (0, 8, 40)]
)
def test_the_smaller_of_what_is_allowed_and_what_there_is_room_for(tmp_path, allowed, room, expected):
    """N = records + min(policy, scenario)."""
    assert policy_with(tmp_path, audit={"canaries": allowed}).units(room) == expected


UNREADABLE = {
    "another optimizer": ("learning_rate = 0.5", 'learning_rate = 0.5, optimizer = "adam"'),
    "momentum": ("learning_rate = 0.5", 'learning_rate = 0.5, optimizer = "momentum"'),
    "no privacy": ("epsilon = 6.0", 'unit = "none"'),
    "a gradient below the bound": ("canaries = 12", "canaries = 12, gradient_norm = 1e-30"),
    "a gradient far above the bound": ("canaries = 12", "canaries = 12, gradient_norm = 1e6"),
    "a bound that drowns": ("epsilon = 6.0", "epsilon = 6.0, max_grad_norm = 1e-9"),
    "no pad": ("audit = {canaries = 12}", ""),
}


@pytest.mark.parametrize("change", UNREADABLE.values(), ids=UNREADABLE)
def test_where_nothing_could_be_read_there_is_no_room(change):
    """A coordinator that chose the scenario could else have an owner believe in an audit that saw nothing."""
    scenario = parse(TEXT.replace(*change))
    assert room_in(scenario) == 0
    assert (unreadable(scenario) is None) == (scenario.audit is None)
    assert room_in(SCENARIO) == 12


def test_n_is_the_same_wherever_it_counts(organisation):
    """Offer, coordinator's plan, order, charge, report and approval: 40 records and 8 canaries, a batch of 12."""
    desk = Desk(place_of(organisation))
    offered = desk.offered(Propose(run="same", scenario=TEXT))
    assert (offered.refusal, offered.units) == (None, N)
    assert answers(desk, ordered(1, run="same", units=offered.units))[-1] == Done()
    (charge,) = charges(organisation.ledger, "same")
    assert charge.events[0].sampling_rate == Fraction(12, 48)
    table = report(SCENARIO, policy=organisation.policy)
    assert (table["run"]["records"], table["run"]["sampling_rate"]) == (48, 0.25)
    assert objections(policies.load(organisation.policy), proposed(SCENARIO, plan_for(N))) == ()
    (against,) = objections(policies.load(organisation.policy), proposed(SCENARIO, plan_for(RECORDS)))
    assert against == "sampling_rate: expected a whole number over the 40 declared records and 8 canaries, got 3/10"
    asked = type("Asked", (), {"scenario": TEXT, "run": "x"})
    assert _cost(asked, policies.load(organisation.policy))["epsilon"] == pytest.approx(table["run"]["epsilon"])


def discreet(*arguments: object):
    """The command line, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "discreet", *map(str, arguments)], capture_output=True, text=True, check=False, cwd=ROOT
    )


def plan_for(units):
    return make_plan(SCENARIO, records=(units,), run="r")


def test_an_order_that_leaves_the_canaries_out_of_n_is_refused(organisation):
    """Its sampling rate is another than the owner's own: 12/40."""
    refused = answers(Desk(place_of(organisation)), ordered(1, run="short", units=RECORDS))
    assert refused == [Refused(word=Refusal.NOT_IN_PLAN)]
    assert charges(organisation.ledger, "short") == []


def test_the_ledgers_terms_keep_the_records(organisation):
    """What an account is about does not change with a run."""
    terms = [entry.terms.records for entry in entries(organisation.ledger) if isinstance(entry, Opening)]
    assert terms == [RECORDS] * len(terms)


def test_delta_of_a_run_counts_on_its_n(tmp_path):
    """1/45 is more than 1/48: no such run is planned with canaries."""
    write_policy(tmp_path / "policy.toml", budget__delta=1e-5, **ALLOWED)
    Ledger.create(tmp_path / "ledger.db").close()
    owner = Owner(policy=tmp_path / "policy.toml", ledger=tmp_path / "ledger.db")
    wide = parse(TEXT.replace("epsilon = 6.0", f"epsilon = 6.0, delta = {1 / 45}"))
    assert owner.offer(wide, "r") is Refusal.OUTSIDE_POLICY
    assert owner.offer(SCENARIO, "r") is None


# --- coins ------------------------------------------------------------------------------------------------------------


def test_coins_are_drawn_once_and_kept_for_the_owner_alone(organisation, caplog):
    """The same in every round and after a restart, in files of mode 600 in a folder of mode 700, and in no log."""
    caplog.set_level("DEBUG")
    assert answers(Desk(place_of(organisation)), ordered(1, run="coins"))[-1] == Done()
    notebook = notebook_of(organisation.ledger, "coins")
    first = (notebook.folder / COINS).read_text()
    assert answers(Desk(place_of(organisation)), ordered(2, run="coins"))[-1] == Done()  # another process's desk
    assert (notebook.folder / COINS).read_text() == first
    assert notebook.coins().shape == (CANARIES,)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (notebook.folder / COINS, notebook.folder / MOVES)]
    assert modes == [0o600, 0o600]
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (notebook.folder, notebook.folder.parent)} == {0o700}
    assert json.loads(first)["is_in"] not in caplog.text


def test_each_run_has_coins_of_its_own(tmp_path):
    """64 fair coins are equal in two runs with a probability of 2^-64."""
    drawn = [notebook_of(tmp_path / "l.db", run).draw(run, 64, is_begun=False) for run in ("a", "b")]
    assert not np.array_equal(*drawn)
    assert all(10 <= is_in.sum() <= 54 for is_in in drawn)  # outside with a probability of 1e-8


def test_coins_are_there_before_the_first_charge(place, monkeypatch):
    """A crash between the two leaves coins that nobody used, and never a charge without coins."""
    seen = []
    reserve = Ledger.reserve
    monkeypatch.setattr(
        Ledger, "reserve", lambda *given: (seen.append(len(notebooks_of(place / "ledger.db"))), reserve(*given))[1]
    )
    order = Order(
        run="r", round=1, attempt=1, client=0, weights_P=np.zeros(0, np.float32), mechanism=plan_for(N).mechanism(0)
    )
    owner = Owner(policy=place / "policy.toml", ledger=place / "ledger.db")
    with owner.charged(order, SCENARIO) as watch:
        assert len(watch.is_in_M) == CANARIES
    assert seen == [1]


def test_coins_that_are_gone_stop_the_run(organisation):
    """Others would spoil the audit: the run is not trained any more, and nothing more of it is charged."""
    assert answers(Desk(place_of(organisation)), ordered(1, run="gone"))[-1] == Done()
    (notebook_of(organisation.ledger, "gone").folder / COINS).unlink()
    (refused,) = answers(Desk(place_of(organisation)), ordered(2, run="gone"))
    assert refused == Refused(word=Refusal.NOT_RECORDED)
    assert "coins of a run that is under way" in refused.why
    assert len(charges(organisation.ledger, "gone")) == 1


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"run": "r", "is_in": "01x"}', '{"run": "r", "is_in": "0"}'])
def test_coins_that_do_not_read_are_refused(tmp_path, content):
    """Torn, of another form, or of another number."""
    notebook = notebook_of(tmp_path / "l.db", "r")
    notebook.draw("r", 3, is_begun=False)
    (notebook.folder / COINS).write_text(content)
    with pytest.raises(JournalError, match="coins"):
        notebook.draw("r", 3, is_begun=True)


def test_a_run_of_any_name_has_a_folder_beside_the_ledger(tmp_path):
    """The coordinator names runs: none of its names leads out of the owner's folder."""
    for run in ("../../etc/cron.d/x", "/root/x", "a" * 10_000, "\0", "ok"):
        notebook = notebook_of(tmp_path / "l.db", run)
        assert notebook.folder.parent == tmp_path / "l.db.audits"
        assert notebook.draw(run, 2, is_begun=False).shape == (2,)
        assert notebook.run == run


def test_refused_runs_leave_no_coins(organisation):
    """A flood of runs outside the policy, or in other numbers than agreed, fills no disk."""
    before = len(notebooks_of(organisation.ledger))
    outside = TEXT.replace("rounds = 3", "rounds = 3000").replace("epsilon = 6.0", "noise_multiplier = 0.3")
    assert answers(Desk(place_of(organisation)), ordered(1, run="much", text=outside))[-1].word is (
        Refusal.OUTSIDE_POLICY
    )
    assert len(notebooks_of(organisation.ledger)) == before


# --- rows -------------------------------------------------------------------------------------------------------------


def shard(records=40, *, persons=None):
    generator = np.random.default_rng(0)
    return Shard(
        features_ND=generator.random((records, 1, 8, 8), dtype=np.float32),
        labels_N=generator.integers(0, 10, records),
        units_N=persons,
    )


def test_all_canaries_are_rows_always():
    """As many rows whatever the coins say, of the records' shape and type, label 0; idle ones pull nowhere."""
    for coins in ([True] * 4, [False] * 4, [True, False, True, False]):
        grown = beside(shard(), np.array(coins))
        rows = grown.features_ND[40:].reshape(4, -1)
        assert (len(grown), grown.features_ND.dtype) == (44, np.float32)
        assert rows[:, 0].tolist() == [MARK] * 4
        assert rows[:, 1].tolist() == [weight if is_in else -1 for weight, is_in in enumerate(coins)]
        assert grown.labels_N[40:].tolist() == [0] * 4
        assert np.array_equal(grown.features_ND[:40], shard().features_ND)


def test_tokens_get_canaries_of_tokens():
    """The mark and the weight are whole numbers there."""
    texts = Shard(features_ND=np.ones((2, 6), np.int64), labels_N=np.zeros(2, np.int64))
    grown = beside(texts, np.array([False, True]))
    assert grown.features_ND.dtype == np.int64
    assert grown.features_ND[2:, :2].tolist() == [[MARK, -1], [MARK, 1]]


@pytest.mark.parametrize("names", [[7, 5, 7, 9], [2**63 - 1, -(2**63), 2**63 - 1, 0]])
def test_each_canary_is_a_person_of_one_row(names):
    """Whatever numbers the owner's persons have: 3 persons, 2 canaries, and who is whose stays."""
    grown = beside(shard(4, persons=np.array(names, np.int64)), np.array([True, False]))
    assert len(np.unique(grown.units_N)) == 5
    assert grown.units_N[0] == grown.units_N[2]
    assert len(np.unique(grown.units_N[[0, 1, 3]])) == 3
    assert not set(grown.units_N[4:]) & set(grown.units_N[:4])


@pytest.mark.parametrize("allowed", [CANARIES, 0])
def test_a_record_with_the_mark_is_unfit(consortium, allowed):
    """Where the model has a pad it would be taken for a canary, also when the owner has none of its own."""
    other = make(consortium, "localhost:1", number=1, audit={"canaries": allowed}, budget__epsilon=300.0)
    features = shard().features_ND
    features[17, 0, 0, 0] = MARK
    np.savez(other.folder / "data.npz", features=features, labels=shard().labels_N)
    request = ordered(1, run=f"marked-{allowed}", units=RECORDS + allowed)
    assert answers(Desk(place_of(other)), request)[-1] == Refused(word=Refusal.DATA_UNFIT)


def test_under_another_optimiser_no_canary_is_put_in(organisation, caplog):
    """The movements could not be read: N is the records, and the log says why."""
    text = TEXT.replace("learning_rate = 0.5", 'learning_rate = 0.5, optimizer = "adam"')
    desk = Desk(place_of(organisation))
    assert desk.offered(Propose(run="adam", scenario=text)).units == RECORDS
    assert answers(desk, ordered(1, run="adam", text=text, units=RECORDS))[-1] == Done()
    assert "no canaries are put in: training.optimizer is 'adam'" in caplog.text
    assert not notebook_of(organisation.ledger, "adam").folder.exists()


def test_behind_flowers_own_app_it_is_the_same(tmp_path):
    """An owner whose node is a SuperNode of Flower's: policy, ledger and shards in its configuration."""
    identify()
    write_policy(tmp_path / "policy.toml", **ALLOWED)
    Ledger.create(tmp_path / "ledger.db").close()
    (tmp_path / "shards").mkdir()
    write_shards(tmp_path / "shards", train=shard(), test=shard(), indices=[np.arange(40)])
    node = {"partition-id": 0, "shards": str(tmp_path / "shards"), "policy": str(tmp_path / "policy.toml")}
    weights_P = flat.flatten(model_of(SCENARIO)).numpy()
    order = Order(run="r", round=1, attempt=1, client=0, weights_P=weights_P, mechanism=plan_for(N).mechanism(0))
    assert not ask(node | {"ledger": str(tmp_path / "ledger.db")}, order, text=TEXT).has_error()
    (movement,) = notebook_of(tmp_path / "ledger.db", "r").movements()
    assert movement.moves_M.shape == (CANARIES,)


# --- what is seen -----------------------------------------------------------------------------------------------------


def test_the_movement_of_each_report_is_kept(organisation):
    """What left in a report, in units of 0.5 * 1 / 12; one that was not stored left nothing."""
    desk, sent = Desk(place_of(organisation)), []
    for number in (1, 2):
        request = ordered(number, run="seen")
        sent.append(answers(desk, request, is_kept=number != 2)[1])
    (movement,) = notebook_of(organisation.ledger, "seen").movements()
    assert (movement.round, movement.attempt) == (1, 1)
    update_P = np.frombuffer(sent[0].update, "<f4")
    assert movement.moves_M == pytest.approx(update_P[-12:-4].astype(float) / one_movement(SCENARIO), rel=1e-12)
    assert one_movement(SCENARIO) == pytest.approx(0.5 / 12)


def test_a_movement_that_a_crash_cut_off_is_missing(tmp_path):
    """The others are read, also those noted after it; a round noted twice counts as it was first."""
    notebook = notebook_of(tmp_path / "l.db", "r")
    notebook.draw("r", 2, is_begun=False)
    for number in (1, 2):
        notebook.note(Movement(round=number, attempt=1, moves_M=np.array([float(number), 0.0])))
    path = notebook.folder / MOVES
    path.write_bytes(path.read_bytes()[:-9])
    notebook.note(Movement(round=3, attempt=1, moves_M=np.array([3.0, 0.0])))
    notebook.note(Movement(round=1, attempt=1, moves_M=np.array([9.0, 0.0])))
    assert [(one.round, one.moves_M[0]) for one in notebook.movements()] == [(1, 1.0), (3, 3.0)]


@pytest.mark.parametrize("far", [1e3, 1e30, -1e30])
def test_a_round_whose_pad_lies_too_far_out_is_not_counted(organisation, caplog, far):
    """Canaries would not pull there, or rounding would swallow them: the log says so, and the round is missing."""
    run = f"far{far}"
    desk = Desk(place_of(organisation))
    assert answers(desk, ordered(1, run=run, pad=far))[-1] == Done()
    assert answers(desk, ordered(2, run=run))[-1] == Done()
    assert [one.round for one in notebook_of(organisation.ledger, run).movements()] == [2]
    assert "not audited, the order's pad lies too far out" in caplog.text


@pytest.mark.parametrize(
    ("changes", "far", "expected"),
    [
        ({}, 0.0, True),
        ({}, 10.0, True),
        ({}, 1e4, False),  # a canary's logit at 1e5: it no longer pulls
        ({"learning_rate": 1e-8}, 0.0, True),
        ({"learning_rate": 1e-8}, 10.0, False),  # a movement of 8e-10 beside 10 is lost in float32
        ({"learning_rate": 1e-35}, 0.0, False),
        ({"learning_rate": 1e30}, 0.0, False),
        ({"learning_rate": 1e308}, 0.0, False),
    ],
)
def test_what_a_coordinator_chooses_decides_whether_a_round_is_readable(changes, far, expected):
    """Not the noise: leaving rounds out then favours no outcome."""
    training = SCENARIO.training.model_copy(update=changes)
    scenario = SCENARIO.model_copy(update={"training": training})
    assert is_readable(scenario, plan_for(N).mechanism(0), far=far) is expected


RELU = TEXT.replace("dense = 8", 'dense = 8, activation = "relu"')


def test_a_round_whose_model_overflows_is_not_counted(organisation, caplog):
    """The canaries are silent then, as the coordinator wanted: that is no reason to refute the owner's training."""
    desk = Desk(place_of(organisation))
    assert answers(desk, ordered(1, run="over", text=RELU, body=1e38))[-1] == Done()
    assert not notebook_of(organisation.ledger, "over").movements()
    assert "round 1: not audited, the model overflows" in caplog.text


@pytest.mark.parametrize("text", [RELU, RELU.replace("[4, 4, 4]", '[4, 4, 4], normalization = "group"')])
def test_a_canary_can_pull_where_nothing_overflows(text):
    """Not where the body's activations are infinite, and not where its own weight is too far out."""
    scenario = parse(text)
    weights_P = flat.flatten(model_of(scenario)).numpy().copy()
    assert can_pull(scenario, weights_P)
    for place, far in ((slice(0, -12), 1e38), (slice(-12, None), 1e4)):
        other_P = weights_P.copy()
        other_P[place] = far
        assert not can_pull(scenario, other_P)
    assert can_pull(scenario, weights_P)


def trained(text, rows, *, pad=0.0, hooks=False):
    """An update with next to no noise, on all rows, two steps."""
    scenario = parse(text)
    trainer = Trainer(scenario)
    if hooks:
        trainer._private._sums = Hooks(trainer._model)
    weights_P = flat.flatten(model_of(scenario)).numpy().copy()
    weights_P[-12:] = pad
    mechanism = Mechanism(sampling_rate=Fraction(1), noise_multiplier=1e-6, max_grad_norm=1.0, steps=2)
    order = Order(run="r", round=1, attempt=1, client=0, weights_P=weights_P, mechanism=mechanism)
    return trainer.train(order, rows).update_P


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_canary_that_is_in_moves_by_one_a_step(precision):
    """By 0.5 * 1 / 12 (learning rate, bound, batch), downhill, twice; one that is out moves by noise of 1e-6 alone."""
    coins = np.array([True, False, False, True, True, False, True, False])
    text = TEXT.replace("local_steps = 1", f'local_steps = 1, precision = "{precision}"')
    moved = trained(text, beside(shard(), coins))[-12:] / one_movement(SCENARIO)
    assert moved == pytest.approx([*(2.0 * coins), 0, 0, 0, 0], abs=1e-4)


# --- a malicious coordinator ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hooks", [False, True], ids=["one backward", "hooks"])
@pytest.mark.parametrize("norm", ["10.0", "1e-30", "1e6"])
@pytest.mark.parametrize("pad", [0.0, 1e3, 1e30, -1e30, 3e38])
def test_no_pad_and_no_gradient_norm_reach_the_records(hooks, norm, pad):
    """The body moves by what the records say, canaries or none, and whatever overflows in a canary is its own."""
    text = TEXT.replace("canaries = 12", f"canaries = 12, gradient_norm = {norm}")
    coins = np.array([True, False] * 4)
    clean = trained(TEXT, shard())[:-12]
    assert trained(text, shard(), pad=pad, hooks=hooks)[:-12] == pytest.approx(clean, abs=1e-6)
    assert trained(text, beside(shard(), coins), pad=pad, hooks=hooks)[:-12] == pytest.approx(clean, abs=1e-6)


def test_a_gradient_norm_that_might_overflow_is_no_scenario():
    """Infinity times zero would be NaN in each record's row of the pad: nobody trains it, nothing is charged."""
    with pytest.raises(ScenarioError, match="gradient_norm"):
        parse(TEXT.replace("canaries = 12", "canaries = 12, gradient_norm = 1e300"))


def test_every_word_and_number_that_leaves_is_the_same_for_all_coins(organisation):
    """A report has its address and an update of the model's size; the offer has N, which is public."""
    offered = Desk(place_of(organisation)).offered(Propose(run="words", scenario=TEXT))
    assert vars(offered).keys() == {"refusal", "purpose", "units"}
    _, sent, _ = answers(Desk(place_of(organisation)), ordered(1, run="words"))
    assert sent.scalars == {"run": "words", "round": 1, "attempt": 1, "client": 0}
    assert len(sent.update) == 4 * flat.size(model_of(SCENARIO))


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_the_plan_says_what_the_audit_costs(place, capsys):
    """40 of 48 units are records: 10 of an expected batch of 12, as if it were smaller by a sixth; epsilon stays."""
    table = json.loads(json.dumps(report(SCENARIO, policy=place / "policy.toml")))
    live = table["live_audit"]
    assert (live["canaries"], live["units_before"], live["units"]) == (8, 40, 48)
    assert (live["sampling_rate_before"], live["sampling_rate"]) == (0.3, 0.25)
    assert (live["records_per_batch"], live["share_of_records"]) == (10.0, pytest.approx(5 / 6))
    plan = plan_for(N).account(0)
    assert live["epsilon"] == pytest.approx(epsilon(plan.history(plan.reserved), delta=1e-5))
    assert live["epsilon"] <= 6.0
    assert live["noise_multiplier"] < live["noise_multiplier_before"]  # a smaller rate needs less noise
    show(table)
    told = " ".join(capsys.readouterr().out.split())
    assert "N goes from 40 to 48, the sampling rate from 0.30000 to 0.25000." in told
    assert "of an expected batch of 12, 10.0 are records." in told
    assert "as if the batch were smaller by 16.7%" in told


def test_the_plan_says_why_there_is_no_audit(place, capsys):
    """A scenario whose movements could not be read; and nothing where there is no pad."""
    show(report(parse(TEXT, overrides=["training.optimizer=adam"]), policy=place / "policy.toml"))
    told = " ".join(capsys.readouterr().out.split())
    assert "Live audit: no canaries, since training.optimizer is 'adam', and only under 'sgd' movements can" in told
    assert (
        report(parse(TEXT.replace("audit = {canaries = 12}", "")), policy=place / "policy.toml")["live_audit"] is None
    )


# --- the verdict ------------------------------------------------------------------------------------------------------

MANY = TEXT.replace("canaries = 12", "canaries = 300").replace("rounds = 3", "rounds = 8")


@pytest.fixture(scope="module")
def run(consortium):
    """A run of six rounds, of 40 records and 250 canaries, with a noise of 1 and a batch of 87: q = 3/10."""
    text = MANY.replace("epsilon = 6.0", "noise_multiplier = 1.0").replace("batch_size = 12", "batch_size = 87")
    owner = make(consortium, "localhost:1", number=2, audit={"canaries": 250}, budget__epsilon=50.0)
    desk = Desk(place_of(owner))
    for number in range(1, 7):
        assert answers(desk, ordered(number, run="5ca1ab1e", text=text, units=290))[-1] == Done()
    return owner


def test_an_honest_run_is_not_refuted(run):
    """An honest one is, with a probability of 1e-4. The ledger keeps the verdict, and stays whole."""
    done = discreet("audited", "5ca1", "--policy", run.policy, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert (told["verdict"], told["canaries"], told["rounds"], told["charged"]) == ("not refuted", 250, 6, 6)
    spent = [charge.events[0] for charge in charges(run.ledger, "5ca1ab1e")]
    assert told["claimed_epsilon"] == pytest.approx(epsilon(merged(spent), delta=1e-5))
    notebook = notebook_of(run.ledger, "5ca1ab1e")
    assert json.loads((notebook.folder / "audit.json").read_text()) == told
    noted = entries(run.ledger)[-1]
    assert (noted.account, noted.run) == ("wards", "5ca1ab1e")
    assert (noted.findings["kind"], noted.findings["verdict"]) == ("live", "not refuted")
    assert set(noted.findings) >= {"lower_bound_f_dp", "lower_bound_steinke", "lower_bound_gaussian", "code", "rounds"}
    assert "".join(noted.findings.values()).isascii()


@contextmanager
def changed(run, change):
    """The run's movements, for a moment, as if something else had happened; None leaves one out."""
    notebook = notebook_of(run.ledger, "5ca1ab1e")
    before = notebook.movements()
    path = notebook.folder / MOVES
    text = path.read_text()
    path.write_text("")
    for movement in before:
        moved = change(movement, notebook.coins())
        if moved is not None:
            notebook.note(replace(movement, moves_M=moved))
    try:
        yield
    finally:
        path.write_text(text)


def judged(owner, run=""):
    return audited(owner.folder / "node.toml", owner.policy, run)


def test_the_command_says_by_its_exit_code_that_epsilon_is_refuted(run):
    """1, as for whatever failed or is not verified."""
    with changed(run, BUGS["half the noise"]):
        done = discreet("audited", "--policy", run.policy)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "REFUTED" in done.stdout


BUGS = {
    "half the noise": lambda one, is_in_M: is_in_M * 0.3 + (one.moves_M - is_in_M * 0.3) / 2,
    "no clipping": lambda one, is_in_M: one.moves_M + 3 * is_in_M,
}


@pytest.mark.parametrize("bug", BUGS.values(), ids=BUGS)
def test_a_run_that_did_not_do_what_was_charged_is_refuted(run, bug):
    """The ledger keeps that too."""
    with changed(run, bug):
        assert judged(run).findings.is_refuted
    noted = entries(run.ledger)[-1]
    assert isinstance(noted, Audit)
    assert noted.findings["verdict"].startswith("REFUTED by ")


def test_a_round_that_was_lost_is_no_reason_to_refute(run, capsys):
    """A crash before its movement was noted: five rounds were seen, six were charged."""
    with changed(run, lambda one, _: None if one.round == 3 else one.moves_M):
        made = judged(run)
    assert (made.findings.verdict, made.rounds, made.charged) == ("not refuted", 5, 6)
    show_audited(made)
    assert "the pad was seen in 5 rounds, 1 more were charged and not seen" in " ".join(capsys.readouterr().out.split())


def test_where_nothing_was_seen_nothing_is_said(run):
    """No verdict is better than one that rests on nothing."""
    before = len(entries(run.ledger))
    expected = "expected movements of the pad in run 5ca1ab1e, got none of 6 charged rounds"
    with changed(run, lambda _one, _coins: None), pytest.raises(BadInputError, match=expected):
        judged(run, "5ca")
    assert len(entries(run.ledger)) == before


@pytest.mark.parametrize("name", ["77", "5ca1ab1e0"])
def test_a_run_that_was_not_audited_is_named(run, name):
    """With those that were."""
    with pytest.raises(BadInputError, match=r"expected one audited run that begins with .* There are: 5ca1ab1e\."):
        judged(run, name)


def test_too_few_canaries_for_the_claim_is_bad_input(organisation):
    """Eight guesses, all right, refute no epsilon of six; nothing is noted."""
    desk = Desk(place_of(organisation))
    for number in range(1, 5):
        assert answers(desk, ordered(number, run="ab00few"))[-1] == Done()
    with pytest.raises(BadInputError, match="canaries: expected at least"):
        judged(organisation, "ab00")
    assert "AUDIT" not in kinds(organisation.ledger)


# --- a deployment -----------------------------------------------------------------------------------------------------

DEPLOYED = """
run = {name = "audited", rounds = 4, purpose = "to see it audited"}
data = {dataset = "digits", clients = 10}
model = {name = "cnn", activation = "tanh"}
training = {batch_size = 64, local_steps = 2, learning_rate = 0.5}
privacy = {noise_multiplier = 1.5, delta = 1e-5}
audit = {canaries = 500}
"""


@pytest.mark.slow
def test_one_of_three_organisations_audits_live(tmp_path):
    """Real processes on loopback: its N is 479 + 300, the others' their records, and its ledger has the verdict."""
    made = cast.prepare(tmp_path, parse(DEPLOYED), 3)
    policy = made.of("organisation-1") / "policy.toml"
    policy.write_text(tomli_w.dumps(tomllib.loads(policy.read_text()) | {"audit": {"canaries": 300}}))
    with trial.staged(made) as stage:
        figures = trial.finished(stage.start_run(out=tmp_path / "run"))
    assert [one["records"] for one in figures["organisations"]] == [779, 479, 479]
    assert [one["refusals"] for one in figures["organisations"]] == [0, 0, 0]
    told = audited(policy.with_name("node.toml"), policy, "").to_json()
    assert (told["verdict"], told["run"], told["canaries"], told["rounds"]) == ("not refuted", figures["run"], 300, 4)
    ledger = policy.with_name("ledger.db")
    verified(ledger, key=ledger.with_name("ledger.db.pub"), extends=None)  # raises where it is not whole
    assert [type_of(entry) for entry in read(ledger).entries].count("AUDIT") == 1
    coins = json.loads((notebook_of(ledger, figures["run"]).folder / COINS).read_text())["is_in"]
    for path in (tmp_path / "logs").iterdir():
        assert coins not in path.read_text(errors="replace")
    for other in ("organisation-2", "organisation-3"):
        assert not (made.of(other) / "ledger.db.audits").exists()
