"""What an owner is told of a proposed run: what it costs, what is left, every objection, and the answer of its node."""

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from owner_policy import RECORDS, write_policy

from client import policy as policies
from client.owner import Owner
from client.proposal_report import books_of, report, show
from common.config import Scenario, parse
from common.errors import PolicyError
from common.ledger import Ledger
from common.messages import Refusal
from common.privacy.accounting import epsilon
from common.privacy.plan import make_plan

ROOT = Path(__file__).resolve().parents[1]
TEXT = """
run = {name = "x", rounds = 2, purpose = "to find [bold]out[/bold]"}
data = {dataset = "digits", clients = 2}
training = {batch_size = 10, local_steps = 1}
server = {spare_rounds = 1}
privacy = {epsilon = 4.0}
"""
SCENARIO = parse(TEXT)


@pytest.fixture
def place(tmp_path) -> Path:
    """A folder with a policy and an empty ledger."""
    write_policy(tmp_path / "policy.toml")
    Ledger.create(tmp_path / "ledger.db").close()
    return tmp_path


def told(place: Path, given: Scenario = SCENARIO, *, ledger: str = "ledger.db") -> dict[str, Any]:
    """What the owner is told; it goes into JSON as it is."""
    table = report(given, policy=place / "policy.toml", ledger=place / ledger)
    return json.loads(json.dumps(table))


def spend(place: Path, given: Scenario = SCENARIO, *, run: str = "earlier") -> None:
    """Reserve a whole run on the owner's ledger, as its node would."""
    from client.budget import Budget, agreements
    from client.owner import terms_of

    owner = policies.load(place / "policy.toml")
    plan = make_plan(given, records=(RECORDS,), run=run)
    with closing(Ledger(place / "ledger.db")) as ledger:
        Budget(ledger, run=run, agreements=agreements(plan, ["wards"])).begin({"wards": terms_of(owner)})


def answered(place: Path, given: Scenario = SCENARIO) -> Refusal | None:
    """What the owner's node would answer."""
    return Owner(policy=place / "policy.toml", ledger=place / "ledger.db").offer(given, "new")


def test_noise_that_nobody_can_count_is_an_objection(place):
    """A proposal far outside of what can be counted is answered, and by the node with the same no."""
    given = parse(TEXT.replace("epsilon = 4.0", "noise_multiplier = 0.001"))
    table = told(place, given)
    assert (table["accepted"], table["run"]) == (False, None)
    assert "too large for its grid" in table["objections"][0]
    assert answered(place, given) is Refusal.OUTSIDE_POLICY


def test_a_run_inside_the_policy_is_accepted_with_its_costs(place):
    """Two rounds and a spare one, of which each is a step on 10 of the policy's 40 records, at the policy's delta."""
    table = told(place)
    plan = make_plan(SCENARIO, records=(RECORDS,), run="x")
    expected = epsilon((plan.accounts[0].event.times(3),), delta=1e-5)
    assert table["accepted"]
    assert table["objections"] == []
    assert table["run"]["participations"] == table["run"]["admitted"] == 3
    assert table["run"]["epsilon"] == pytest.approx(expected)
    assert table["run"]["sampling_rate"] == 0.25
    assert table["lifetime"]["epsilon_before"] == 0
    assert table["lifetime"]["left_before"] == 8.0
    assert table["lifetime"]["epsilon_after"] == pytest.approx(expected)
    assert table["lifetime"]["left_after"] == pytest.approx(8.0 - table["lifetime"]["filter_epsilon_after"])
    assert answered(place) is None


def test_the_figures_are_at_the_policys_delta(place):
    """The scenario's delta is the coordinator's; a smaller one of the policy's makes a larger epsilon."""
    before = told(place)["run"]["epsilon"]
    write_policy(place / "policy.toml", budget__delta=1e-7)
    assert told(place)["run"]["epsilon"] > before


def test_the_past_counts(place):
    """What an earlier run has reserved is spent, and the lifetime's figure is more than the run's."""
    spend(place)
    table = told(place)
    assert table["lifetime"]["runs_before"] == 1
    assert table["lifetime"]["epsilon_before"] > 0
    assert table["lifetime"]["epsilon_after"] > table["run"]["epsilon"]
    assert table["lifetime"]["gate"] == "filter"
    assert table["lifetime"]["left_after"] < table["lifetime"]["left_before"] < 8.0
    assert answered(place) is None


def test_a_run_for_which_nothing_is_left_is_not_accepted(place):
    """The answer is the node's own."""
    write_policy(place / "policy.toml", budget__epsilon=4.0, budget__epsilon_per_run=4.0)
    spend(place)
    table = told(place)
    assert table["run"]["admitted"] == 0
    assert not table["accepted"]
    assert table["objections"] == ["budget: expected 3 participations within 4.0, got 0; it refuses all of them"]
    assert answered(place) is Refusal.BUDGET_SPENT


def test_a_run_that_fits_in_part_is_accepted_so_far(place):
    """The node carries out what fits, and then refuses."""
    long = parse(TEXT, overrides=("run.rounds=8", "privacy.epsilon=7.9"))
    write_policy(place / "policy.toml", budget__epsilon=5.0)
    table = told(place, long)
    assert 0 < table["run"]["admitted"] < table["run"]["participations"] == 9
    assert "then it refuses" in table["objections"][-1]


@pytest.mark.parametrize(
    ("changes", "overrides", "about"),
    [
        ({"limits__min_noise_multiplier": 50.0}, (), "noise_multiplier: expected at least 50.0"),
        ({"limits__max_grad_norm": 0.5}, (), "max_grad_norm: expected at most 0.5"),
        ({"limits__models": ["mlp"]}, (), "model: expected one of mlp"),
        ({"limits__min_cohort": 3}, (), "cohort: expected at least 3, got 2"),
        ({"budget__epsilon_per_run": 1.0}, (), "epsilon: expected at most 1.0 a run"),
        ({}, ("training.local_steps=2",), "steps: expected at most 1 a round, got 2"),
        ({}, ("privacy.unit=client",), "unit: expected record"),
        ({}, ("privacy.unit=none", "privacy.epsilon="), "unit: expected record"),
        ({}, ("training.batch_size=41",), "training.batch_size: expected at most the 40 records"),
    ],
)
def test_every_objection_of_the_policy_is_told(place, changes, overrides, about):
    """The answer is no, as the node's would be, and says why."""
    write_policy(place / "policy.toml", **changes)
    given = parse(TEXT, overrides=overrides)
    table = told(place, given)
    assert not table["accepted"]
    assert any(about in objection for objection in table["objections"])
    assert answered(place, given) is not None


def test_a_run_without_privacy_costs_nothing_where_it_is_allowed(place):
    """There is no epsilon to tell."""
    write_policy(place / "policy.toml", limits__without_privacy=True)
    table = told(place, parse(TEXT, overrides=("privacy.unit=none", "privacy.epsilon=")))
    assert table["accepted"]
    assert table["run"] is None


def test_what_else_is_needed_is_told(place):
    """A person who approves, and a witness who cosigns."""
    write_policy(place / "policy.toml", limits__approval=True, limits__witness="auditor")
    table = told(place)
    assert table["needs_approval"]
    assert table["witness"] == "auditor"


def test_nothing_is_written_and_no_key_is_needed(place):
    """Whoever may read the ledger may ask; one that is not there yet is a fresh one and stays away."""
    spend(place)
    before = (place / "ledger.db").read_bytes()
    (place / "ledger.db.key").unlink()
    assert told(place)["lifetime"]["runs_before"] == 1
    assert (place / "ledger.db").read_bytes() == before
    assert told(place, ledger="none.db")["lifetime"]["runs_before"] == 0
    assert not (place / "none.db").exists()


def test_a_ledger_without_entries_is_a_fresh_one(place):
    """`discreet ledger new` makes one."""
    assert books_of(place / "ledger.db").size == 0


def test_a_policy_that_does_not_read_is_bad_input(place):
    """It permits nothing, and no answer is made up."""
    (place / "policy.toml").write_text("version = 2")
    with pytest.raises(PolicyError):
        told(place)


@pytest.mark.parametrize("overrides", [(), ("training.local_steps=2",), ("privacy.unit=none", "privacy.epsilon=")])
def test_the_report_is_shown_to_people(place, capsys, overrides):
    """A purpose is shown as it was written: it is the coordinator's text, and no markup."""
    show(told(place, parse(TEXT, overrides=overrides)))
    shown = capsys.readouterr().out
    assert "[bold]out[/bold]" in shown
    assert f"Answer: {'no' if overrides else 'yes'}" in shown


def discreet(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command line, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "discreet", *map(str, arguments)], capture_output=True, text=True, check=False, cwd=ROOT
    )


def test_the_command_line_answers_an_owner(place):
    """`plan --policy` prints the same as JSON, and refuses options that are about something else."""
    (place / "scenario.toml").write_text(TEXT)
    asked = ("plan", place / "scenario.toml", "--policy", place / "policy.toml", "--ledger", place / "ledger.db")
    done = discreet(*asked, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == told(place)
    assert "Answer: yes" in discreet(*asked).stdout
    assert discreet(*asked, "--check").returncode == 2
