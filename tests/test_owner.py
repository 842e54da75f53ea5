"""A data owner that decides alone: its policy, its ledger, and orders that others propose."""

from contextlib import closing
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from ledger_reader import charged, charges, entries, kinds, refused, settled
from owner_policy import RECORDS, write_policy

from client import policy as policies
from client.owner import Owner, terms_of
from common.config import Scenario, parse
from common.errors import LedgerError, PolicyError, RefusedError
from common.ledger import Ledger
from common.messages import Order, Refusal
from common.privacy.accounting import epsilon
from common.privacy.plan import Plan, make_plan
from common.privacy.renyi_filter import admissible, filter_order
from common.transparency.entries import Opening
from common.transparency.export import read
from common.transparency.verification import balances, verify

TEXT = """
run = {name = "x", rounds = 2}
data = {dataset = "digits", clients = 2}
training = {batch_size = 10, local_steps = 1}
server = {spare_rounds = 1}
privacy = {epsilon = 8.0}
"""
SCENARIO = parse(TEXT)
NOTHING = np.zeros(0, np.float32)


class TrainingError(Exception):
    """The training failed."""


@pytest.fixture
def place(tmp_path) -> Path:
    """A folder with a policy and an empty ledger."""
    write_policy(tmp_path / "policy.toml")
    Ledger.create(tmp_path / "ledger.db").close()
    return tmp_path


def owner(place: Path) -> Owner:
    return Owner(policy=place / "policy.toml", ledger=place / "ledger.db")


def planned(run: str = "r", *, of: Scenario = SCENARIO, records: int = RECORDS) -> Plan:
    """The coordinator's plan."""
    return make_plan(of, records=(records,) * 2, run=run)


def order(number: int = 1, *, run: str = "r", of: Scenario = SCENARIO, **changes: object) -> Order:
    """An order of the coordinator's plan, with changes."""
    values = {"run": run, "round": number, "attempt": 1, "client": 0, "weights_P": NOTHING}
    plan = planned(run, of=of)
    agreed = {"mechanism": plan.mechanism(0), "metrics_noise_multiplier": plan.metrics_noise_multiplier(0)}
    return Order(**(values | agreed | changes))  # type: ignore[arg-type]


def asked(place: Path, proposed: Order, *, of: Scenario = SCENARIO) -> str | None:
    """Carry an order out, and return the word of its refusal or None."""
    try:
        with owner(place).charged(proposed, of):
            return None
    except RefusedError as error:
        return error.word.value


# --- one order --------------------------------------------------------------------------------------------------------


def test_an_order_is_charged_before_what_stands_within_and_committed_after_it(place):
    """The account is opened and the run reserved with the first order; the charge is on disk when training begins."""
    with owner(place).charged(order(), SCENARIO):
        assert kinds(place / "ledger.db") == ["GENESIS", "RESERVE", "RESERVE"]
        assert charged(place / "ledger.db") == [(1, 1, "wards")]
    assert settled(place / "ledger.db") == [("COMMIT", 1, 1, "wards")]
    assert charges(place / "ledger.db")[0].events == planned().accounts[0].events


def test_what_fails_stays_charged(place):
    """The error passes on, the order expires, and the same order never comes again."""
    with pytest.raises(TrainingError), owner(place).charged(order(), SCENARIO):
        raise TrainingError
    assert settled(place / "ledger.db") == [("EXPIRE", 1, 1, "wards")]
    assert asked(place, order()) == "already-trained"


def test_a_refused_order_does_nothing_within(place):
    """What stands within is not entered."""
    entered = False
    with pytest.raises(RefusedError), owner(place).charged(order(run="r", mechanism=None), SCENARIO):
        entered = True
    assert not entered


def test_the_same_order_twice_is_refused(place):
    """Also after the order was carried out, and by whatever client number it is called."""
    assert [asked(place, order()), asked(place, order()), asked(place, order(client=1))] == [
        None,
        "already-trained",
        "already-trained",
    ]
    assert len(charged(place / "ledger.db")) == 1


def test_no_more_than_the_run_s_participations(place):
    """Two rounds and a spare are three orders, whatever they are called."""
    words = [asked(place, order(number, attempt=attempt)) for number, attempt in [(1, 1), (1, 2), (2, 1), (3, 1)]]
    assert words == [None, None, None, "budget-spent"]
    assert refused(place / "ledger.db") == [("r", "budget-spent")]


# --- the owner's own figures ------------------------------------------------------------------------------------------

MECHANISM = planned().mechanism(0)
assert MECHANISM is not None


@pytest.mark.parametrize(
    "changes",
    [
        {"mechanism": None},
        {"mechanism": replace(MECHANISM, noise_multiplier=np.nextafter(MECHANISM.noise_multiplier, 0))},
        {"mechanism": replace(MECHANISM, noise_multiplier=MECHANISM.noise_multiplier * 2)},
        {"mechanism": replace(MECHANISM, sampling_rate=Fraction(1, 5))},
        {"mechanism": replace(MECHANISM, steps=2)},
        {"mechanism": replace(MECHANISM, max_grad_norm=0.5)},
        {"max_update_norm": 1.0},
        {"metrics_noise_multiplier": 20.0},
    ],
    ids=str,
)
def test_an_order_that_differs_from_the_owner_s_own_figures_is_not_in_plan(place, changes):
    """What the scenario means is worked out by the owner: not a digit is taken from the order."""
    assert asked(place, order(**changes)) == "not-in-plan"
    assert charged(place / "ledger.db") == []


def test_a_coordinator_that_takes_the_owner_for_larger_is_not_in_plan(place):
    """At 50 records the rate would be 1/5 and the noise less: the owner declared 40."""
    wrong = make_plan(SCENARIO, records=(50, 50), run="r").mechanism(0)
    assert asked(place, order(mechanism=wrong)) == "not-in-plan"
    assert asked(place, order()) is None


def test_a_scenario_that_has_no_plan_here_charges_nothing(place):
    """A batch of 41 of 40 records cannot be drawn: what the owner cannot count is outside its policy."""
    of = parse(TEXT.replace("batch_size = 10", "batch_size = 41"))
    assert asked(place, order(), of=of) == "outside-policy"
    with closing(Ledger(place / "ledger.db")) as ledger:
        assert ledger.books.size == 0


def test_noise_that_nobody_can_count_is_outside_the_policy(place):
    """At a thousandth of the bound the accountant has no figure: that is no failure, it is a no."""
    of = parse(TEXT.replace("epsilon = 8.0", "noise_multiplier = 0.001"))
    assert of.privacy.noise_multiplier == 0.001
    assert asked(place, order(), of=of) == "outside-policy"


# --- the policy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"limits__min_noise_multiplier": 2.0}, "noise_multiplier: expected at least 2.0, got 0.65"),
        ({"limits__max_grad_norm": 0.5}, "max_grad_norm: expected at most 0.5, got 1.0"),
        ({"limits__min_cohort": 3}, "cohort: expected at least 3, got 2"),
        ({"limits__models": ["transformer"]}, "model: expected one of transformer, got 'cnn'"),
        ({"limits__code": ["0" * 64]}, "code: expected one of the digests in limits.code"),
        ({"budget__epsilon_per_run": 7.9}, "epsilon: expected at most 7.9 a run, got 7.99"),
        ({"data__unit": None, "data__unit_column": "patient"}, "unit: expected person by column 'patient', got record"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_run_outside_the_policy_is_refused_before_anything_is_charged(place, changes, reason):
    """One word leaves; the reason is in the error's text; the ledger has the refusal and no reservation."""
    write_policy(place / "policy.toml", **changes)
    with pytest.raises(RefusedError) as caught, owner(place).charged(order(), SCENARIO):
        pass
    assert caught.value.word is Refusal.OUTSIDE_POLICY
    assert reason in str(caught.value)
    assert kinds(place / "ledger.db") == ["GENESIS", "REFUSE"]


def test_steps_beyond_the_policy_are_refused(place):
    """The policy allows one step a round, and the run takes two."""
    of = parse(TEXT.replace("local_steps = 1", "local_steps = 2"))
    assert asked(place, order(of=of), of=of) == "outside-policy"


def test_metrics_that_the_policy_closes_are_refused(place):
    """Noised counts leave only where the policy says so; then they are charged with the update."""
    of = parse(TEXT.replace("epsilon = 8.0", 'epsilon = 8.0, metrics = "noisy"'))
    assert asked(place, order(of=of), of=of) == "outside-policy"
    write_policy(place / "policy.toml", limits__metrics="noisy")
    assert asked(place, order(of=of), of=of) is None
    assert [len(entry.events) for entry in charges(place / "ledger.db")] == [2]


def test_a_refused_run_is_noted_once(place):
    """A coordinator that asks again and again fills no disk."""
    write_policy(place / "policy.toml", limits__min_cohort=3)
    assert [asked(place, order(number)) for number in (1, 2, 3)] == ["outside-policy"] * 3
    assert refused(place / "ledger.db") == [("r", "outside-policy")]


@pytest.mark.parametrize("content", [None, "", "rubbish", "version = 2"])
def test_without_a_policy_that_reads_there_is_no_owner(place, content):
    """Nothing is trained under a policy that nobody can read."""
    (place / "policy.toml").unlink()
    if content is not None:
        (place / "policy.toml").write_text(content)
    with pytest.raises(PolicyError):
        owner(place)


@pytest.mark.parametrize("content", [None, b"", b"rubbish"])
def test_without_a_ledger_that_reads_there_is_no_owner(place, content):
    """Nothing is trained where what was spent is not known."""
    (place / "ledger.db").unlink()
    if content is not None:
        (place / "ledger.db").write_bytes(content)
    with pytest.raises(LedgerError):
        owner(place)


# --- a lifetime -------------------------------------------------------------------------------------------------------

LIFETIME = 9.5


def use_up(place: Path, run: str, of: Scenario = SCENARIO) -> int:
    """Ask a run's orders until one is refused; return how many were carried out."""
    for number in range(1, 9):
        if asked(place, order(number, run=run, of=of), of=of) is not None:
            return number - 1
    raise AssertionError("no end")


def test_the_first_run_is_admitted_by_pld_and_the_next_by_the_filter(place):
    """Of a lifetime of 9.5 the first run spends 8.00; of the second's seven, PLD would allow all, the filter three."""
    write_policy(place / "policy.toml", budget__epsilon=LIFETIME, budget__epsilon_per_run=8.0)
    quiet = parse(TEXT.replace("epsilon = 8.0", "noise_multiplier = 1.2").replace("rounds = 2", "rounds = 6"))
    first, second = (planned("r"), planned("s", of=quiet))
    assert use_up(place, "r") == first.accounts[0].reserved == 3
    past = first.accounts[0].history(3)
    order_ = filter_order(first.accounts[0].events, budget=LIFETIME, delta=1e-5)
    once = second.accounts[0].events
    by_filter = admissible(past, once, wanted=7, budget=LIFETIME, delta=1e-5, order=order_)
    assert by_filter == 3
    assert epsilon((*past, once[0].times(7)), delta=1e-5) < 8.6
    assert use_up(place, "s", quiet) == by_filter
    statement = read(place / "ledger.db")
    verify(statement)
    (balance,) = balances(statement)
    assert balance.runs == 2
    assert balance.verdict.reported == epsilon((*past, once[0].times(by_filter)), delta=1e-5)
    assert balance.verdict.reported < balance.filter_epsilon <= LIFETIME


def test_a_spent_lifetime_refuses_every_run_to_come(place):
    """With a lifetime of 8 the first run takes all of it; the second is refused, and the ledger says so once."""
    assert use_up(place, "r") == 3
    assert [asked(place, order(number, run="s")) for number in (1, 2)] == ["budget-spent"] * 2
    assert refused(place / "ledger.db") == [("r", "budget-spent"), ("s", "budget-spent")]


def test_other_terms_are_a_policy_change_and_no_fresh_budget(place):
    """A new version of the data and a larger budget stand in the ledger; what was spent before stays spent."""
    assert use_up(place, "r") == 3
    write_policy(place / "policy.toml", data__version="2", budget__epsilon=9.0, budget__epsilon_per_run=8.0)
    assert use_up(place, "s") < 3
    openings = [entry for entry in entries(place / "ledger.db") if isinstance(entry, Opening)]
    assert [(opening.is_change, opening.terms.version, opening.terms.budget) for opening in openings] == [
        (False, "1", 8.0),
        (True, "2", 9.0),
    ]
    assert openings[1].terms == terms_of(policies.load(place / "policy.toml"))


def test_terms_that_did_not_change_are_not_written_again(place):
    """A comment, or another spelling, is no change of policy."""
    assert asked(place, order(1)) is None
    text = (place / "policy.toml").read_text()
    (place / "policy.toml").write_text(f"# checked by the board\n{text}")
    assert asked(place, order(2)) is None
    assert kinds(place / "ledger.db").count("POLICY_CHANGE") == 0


def test_a_run_under_way_keeps_to_a_budget_that_was_lowered(place):
    """A lifetime lowered in mid-run counts from then on: what was charged under it is within it, and it adds up."""
    small = parse(TEXT.replace("epsilon = 8.0", "epsilon = 3.0"))
    assert use_up(place, "r", small) == 3
    assert asked(place, order(1, run="s", of=small), of=small) is None
    write_policy(place / "policy.toml", budget__epsilon=3.2)
    assert asked(place, order(2, run="s", of=small), of=small) == "budget-spent"
    verify(read(place / "ledger.db"))


def test_an_account_s_unit_never_changes(place):
    """Epsilon of single records says nothing of persons: what was spent on the one cannot be counted for the other."""
    assert asked(place, order()) is None
    before = kinds(place / "ledger.db")
    write_policy(place / "policy.toml", data__unit=None, data__unit_column="patient", data__records=20)
    assert asked(place, order(run="s")) is not None
    assert kinds(place / "ledger.db")[: len(before)] == before
    units = {entry.terms.unit for entry in entries(place / "ledger.db") if isinstance(entry, Opening)}
    assert units == {"record"}
