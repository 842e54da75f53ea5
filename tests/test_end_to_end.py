"""Whole runs: their figures, their folders, their ledgers, and what is left of them after SIGKILL and Ctrl-C."""

import csv
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from ledger_reader import charged, charges, entries, kinds, refused, settled
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn import functional

from common.config import parse
from common.errors import BadInputError, LedgerError, PlanRefusedError, RunFailedError
from common.ledger import Ledger
from common.models.registry import build
from common.privacy.accounting import epsilon
from common.privacy.events import History, from_json
from common.privacy.plan import Plan
from common.privacy.plan_file import from_json_text
from common.privacy.renyi_filter import admissible, filter_order
from common.tasks import TASKS
from common.transparency.entries import Opening, Reserve
from common.transparency.export import read
from common.transparency.verification import verify
from server.observer import Observer, RoundRecord
from simulations import campaign, datasets
from simulations.figures import Outcome
from simulations.single_run import resume, simulate

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "simulations" / "scenarios" / "digits.toml"

SMALL = """
run = {name = "small", rounds = 8}
data = {dataset = "digits", clients = 4}
model = {name = "cnn", channels = [4, 4, 4], dense = 8}
training = {batch_size = 40, local_steps = 1}
server = {evaluate_every = 2}
engine = {kind = "sequential"}
"""
NONE = SMALL + 'privacy = {unit = "none"}\n'
RECORD = SMALL + "privacy = {epsilon = 8.0}\n"
CLIENT = SMALL.replace("[4, 4, 4]", "[2, 2, 2]") + 'privacy = {unit = "client", noise_multiplier = 2.0, delta = 0.05}\n'


def run(text: str, folder: Path, *, ledger: Path | None = None, watcher: Observer | None = None) -> Outcome:
    return simulate(parse(text), out=folder, ledger=ledger, watcher=watcher or Observer())


def plan_in(folder: Path) -> Plan:
    return from_json_text((folder / "plan.json").read_text())


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of events.jsonl."""

    run: str
    round: int
    attempt: int
    account: str
    events: History


def lines(folder: Path) -> list[Line]:
    tables = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [Line(**(table | {"events": tuple(from_json(event) for event in table["events"])})) for table in tables]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / name).open() as file:
        return list(csv.DictReader(file))


def equal(left: Path, right: Path) -> bool:
    a, b = weights(left), weights(right)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class KilledError(Exception):
    """The process ends here."""


class Dying(Observer):
    """Ends the process after so many answers of clients."""

    def __init__(self, *, answers: int) -> None:
        self._left = answers

    def client_done(self) -> None:
        self._left -= 1
        if not self._left:
            raise KilledError


def start(text: str, folder: Path) -> subprocess.Popen[str]:
    """Start a run in a process of its own, in a process group of its own."""
    scenario = folder.with_suffix(".toml")
    scenario.write_text(text)
    return subprocess.Popen(
        [sys.executable, "-m", "discreet", "simulate", str(scenario), "--out", str(folder), "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def resumed(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "discreet", "simulate", *arguments, "--resume", str(folder), "--json"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def wait_for_round(folder: Path, number: int, process: subprocess.Popen[str]) -> None:
    """Wait until a round has begun, which is noted before anybody is asked."""
    attempts = folder / "checkpoint" / "attempts.txt"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        if attempts.exists() and len(attempts.read_text().split()) >= number:
            return
        time.sleep(0.005)
    raise AssertionError(f"round {number} never began")


def kill_in_mid_round(folder: Path, number: int, process: subprocess.Popen[str]) -> None:
    """SIGKILL a run in round `number` or later, after the round has begun and before its checkpoint is on disk.

    The process is stopped while its files are looked at, so that what they say still holds when the signal comes.
    """
    wait_for_round(folder, number, process)
    for _ in range(1000):
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        begun = int((folder / "checkpoint" / "attempts.txt").read_text().split()[-1])
        with safe_open(folder / "checkpoint" / "state.safetensors", framework="pt") as saved:
            done = int(saved.metadata()["round"])
        if begun > done:
            process.kill()
            process.communicate()
            return
        process.send_signal(signal.SIGCONT)
        time.sleep(0.002)
    raise AssertionError("the run was never in the middle of a round")


def test_one_full_batch_step_of_all_clients_is_one_central_step(tmp_path):
    """Federated averaging of full-batch gradient steps over equal shards equals gradient descent on all records."""
    text = NONE.replace("rounds = 8", "rounds = 1").replace("batch_size = 40", "batch_size = 2000, learning_rate = 0.5")
    run(text, tmp_path / "run")
    scenario = parse(text)
    data = datasets.load(scenario).train
    from simulations.partition import split

    used = np.concatenate(split(scenario, datasets.load(scenario)))
    model = build(scenario.model, TASKS["digits"], seed=7)
    features, labels = torch.from_numpy(data.features_ND[used]), torch.from_numpy(data.labels_N[used])
    functional.cross_entropy(model(features), labels).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        central = parameter.detach() - 0.5 * parameter.grad
        torch.testing.assert_close(weights(tmp_path / "run")[name], central, atol=1e-6, rtol=1e-5)


def test_without_privacy_a_seed_repeats_a_run_and_another_does_not(tmp_path):
    """Data split, first weights and batches follow from the seed."""
    for name in ("a", "b"):
        run(NONE, tmp_path / name)
    run(NONE.replace("rounds = 8", "rounds = 8, seed = 8"), tmp_path / "c")
    assert equal(tmp_path / "a", tmp_path / "b")
    assert not equal(tmp_path / "a", tmp_path / "c")


def test_with_privacy_a_seed_does_not_repeat_a_run(tmp_path):
    """Noise never comes from the seed."""
    for name in ("a", "b"):
        run(RECORD.replace("rounds = 8", "rounds = 2"), tmp_path / name)
    assert not equal(tmp_path / "a", tmp_path / "b")


def test_a_private_run_reports_what_its_plan_and_its_events_say(tmp_path):
    """Epsilon is that of the events on disk, equals the plan's when no round was lost, and is in every file alike."""
    outcome = run(RECORD, tmp_path / "run")
    folder = tmp_path / "run"
    plan = plan_in(folder)
    events = lines(folder)
    assert len(events) == 8 * 4
    own = tuple(event for line in events if line.account == "digits/client-000002" for event in line.events)
    spent = epsilon(own, delta=1e-5)
    assert outcome.epsilon == outcome.lifetime_epsilon == {"max": spent, "median": spent}
    assert spent == plan.epsilon
    clients = rows(folder, "clients.csv")
    assert [float(row["epsilon"]) for row in clients] == pytest.approx([spent] * 4)
    assert {(row["records"], row["steps"], row["participations"]) for row in clients} == {("359", "8", "8")}
    rounds = rows(folder, "rounds.csv")
    assert [row["round"] for row in rounds] == [str(number) for number in range(1, 9)]
    assert float(rounds[-1]["epsilon_max"]) == pytest.approx(spent, rel=1e-3)
    assert rounds[0]["accuracy"] == ""  # evaluate_every = 2
    assert outcome.rounds == 8
    assert outcome.stopped is None
    assert outcome.client_updates == 32


def test_a_run_s_events_are_those_of_its_ledger(tmp_path):
    """events.jsonl, written at the end, has a line for each charge of the ledger, which is whole, and is closed."""
    run(RECORD.replace("rounds = 8", "rounds = 2"), tmp_path / "run")
    ledger = tmp_path / "run" / "ledger.db"
    names = [f"digits/client-{client:06d}" for client in range(4)]
    assert [(line.round, line.attempt, line.account) for line in lines(tmp_path / "run")] == charged(ledger)
    assert [line.events for line in lines(tmp_path / "run")] == [entry.events for entry in charges(ledger)]
    # four accounts, each with the whole run; then each round in two writes; then the end of the run
    assert kinds(ledger) == ["GENESIS"] * 4 + ["RESERVE"] * 4 + (["RESERVE"] * 4 + ["COMMIT"] * 4) * 2 + ["COMMIT"] * 4
    assert settled(ledger)[-4:] == [("COMMIT", 0, 1, name) for name in names]
    verify(read(ledger))


def test_client_level_privacy_charges_the_population_once_a_round(tmp_path):
    """One account, one event a round with the cohort's Poisson rate, whoever takes part."""
    outcome = run(CLIENT.replace("evaluate_every = 2", "cohort = 2, evaluate_every = 2"), tmp_path / "run")
    events = lines(tmp_path / "run")
    assert [(e.round, e.account, e.events[0].steps, str(e.events[0].sampling_rate)) for e in events] == [
        (number, "digits/population", 1, "1/2") for number in range(1, 9)
    ]
    assert outcome.epsilon is not None
    assert outcome.epsilon["max"] == epsilon(tuple(event for e in events for event in e.events), delta=0.05)
    assert {int(row["cohort"]) for row in rows(tmp_path / "run", "rounds.csv")} <= {0, 1, 2, 3, 4}
    assert settled(tmp_path / "run" / "ledger.db") == [
        *(("COMMIT", number, 1, "digits/population") for number in range(1, 9)),
        ("COMMIT", 0, 1, "digits/population"),
    ]
    verify(read(tmp_path / "run" / "ledger.db"))


def test_without_privacy_there_is_no_ledger(tmp_path):
    """Nothing is spent, so that nothing is kept: neither a ledger nor events."""
    outcome = run(NONE.replace("rounds = 8", "rounds = 1"), tmp_path / "run")
    assert (outcome.epsilon, outcome.lifetime_epsilon) == (None, None)
    assert not [path.name for path in (tmp_path / "run").iterdir() if "ledger" in path.name or "events" in path.name]


def test_a_run_killed_in_mid_round_resumes_bit_equal_without_privacy(tmp_path):
    """SIGKILL in round 5: the resumed run ends with the weights and the lines of an unbroken one."""
    text = NONE.replace("evaluate_every = 2", 'optimizer = "adam", ema_decay = 0.5, evaluate_every = 2')
    process = start(text, tmp_path / "broken")
    kill_in_mid_round(tmp_path / "broken", 5, process)
    assert resume(tmp_path / "broken", None, watcher=Observer()).rounds == 8
    run(text, tmp_path / "whole")
    assert equal(tmp_path / "broken", tmp_path / "whole")
    timeless = [
        [{key: value for key, value in row.items() if key != "seconds"} for row in rows(folder, "rounds.csv")]
        for folder in (tmp_path / "broken", tmp_path / "whole")
    ]
    assert timeless[0] == timeless[1]


def test_a_private_run_killed_in_mid_round_charges_the_lost_round_and_runs_it_as_a_spare(tmp_path):
    """SIGKILL in round 5: equal plan; the charges are the unbroken run's plus the lost round's, and so is epsilon."""
    process = start(RECORD, tmp_path / "broken")
    kill_in_mid_round(tmp_path / "broken", 5, process)
    ledger = tmp_path / "broken" / "ledger.db"
    plan = (tmp_path / "broken" / "plan.json").read_text()
    before = entries(ledger)
    assert not (tmp_path / "broken" / "events.jsonl").exists()
    done = resumed(tmp_path / "broken")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "broken" / "plan.json").read_text() == plan
    assert entries(ledger)[: len(before)] == before, "nothing that was charged is taken back"
    events = lines(tmp_path / "broken")
    assert [(line.round, line.attempt, line.account) for line in events] == charged(ledger)
    orders = [(line.round, line.attempt) for line in events if line.account == "digits/client-000000"]
    lost = [number for number, attempt in orders if attempt == 2]
    charged_before = {(entry.round, entry.attempt) for entry in before if isinstance(entry, Reserve)}
    assert len(lost) == 1
    # the kill may come before the round's charge is on disk: then the round was not trained, and is not charged
    expected = 9 if (lost[0], 1) in charged_before else 8
    assert len(orders) == len(set(orders)) == expected
    spent = json.loads(done.stdout)["epsilon"]["max"]
    assert spent == epsilon((events[0].events[0].times(expected),), delta=1e-5)
    assert spent <= json.loads(plan)["epsilon_reserved"] <= 8.0
    # what was charged and not heard of again expires when the run ends, and nothing is left open
    committed = {entry[1:3] for entry in settled(ledger) if entry[0] == "COMMIT" and entry[1]}
    expired = {entry[1:3] for entry in settled(ledger) if entry[0] == "EXPIRE"}
    assert expired <= {(lost[0], 1), (lost[0] - 1, 1)}
    assert committed | expired == set(orders)
    assert not committed & expired
    verify(read(ledger))


def test_a_run_that_dies_too_often_stops_before_it_overspends(tmp_path):
    """When the spares are used up the run refuses to go on, and the budget holds; the lost round stays charged."""
    text = RECORD.replace("evaluate_every = 2", "spare_rounds = 0").replace("rounds = 8", "rounds = 4")
    with pytest.raises(KilledError):
        run(text, tmp_path / "run", watcher=Dying(answers=9))  # of the third round's four, the first came
    with pytest.raises(RunFailedError, match=r"Round 3: 1 rounds were lost so far and server\.spare_rounds is 0"):
        resume(tmp_path / "run", None, watcher=Observer())
    ledger = tmp_path / "run" / "ledger.db"
    assert [number for number, _, account in charged(ledger) if account == "digits/client-000000"] == [1, 2, 3]
    spent = tuple(event for entry in charges(ledger)[::4] for event in entry.events)
    assert epsilon(spent, delta=1e-5) <= 8.0
    verify(read(ledger))


def test_ctrl_c_stops_the_workers_and_leaves_a_run_to_resume(tmp_path):
    """SIGINT to the whole group, as a terminal sends it: one line says how to go on."""
    text = NONE.replace('kind = "sequential"', 'kind = "parallel", workers = 2').replace("rounds = 8", "rounds = 300")
    process = start(text, tmp_path / "run")
    wait_for_round(tmp_path / "run", 4, process)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"--resume {tmp_path / 'run'}" in errors
    assert "Traceback" not in errors
    scenario = (tmp_path / "run.toml").read_text()
    assert "300" in scenario
    deadline = time.monotonic() + 10
    while _group_lives(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _group_lives(process.pid), "a worker outlived its parent"


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_finished_run_resumes_to_the_same_figures(tmp_path):
    """Resuming what is done trains nothing and spends nothing."""
    outcome = run(RECORD.replace("rounds = 8", "rounds = 2"), tmp_path / "run")
    before = (tmp_path / "run" / "events.jsonl").read_bytes(), entries(tmp_path / "run" / "ledger.db")
    again = resume(tmp_path / "run", None, watcher=Observer())
    assert ((tmp_path / "run" / "events.jsonl").read_bytes(), entries(tmp_path / "run" / "ledger.db")) == before
    assert again.epsilon == outcome.epsilon
    assert again.metrics["accuracy"] == pytest.approx(outcome.metrics["accuracy"], rel=1e-5)
    assert again.client_updates == 0


@pytest.mark.parametrize(
    "change", ["privacy.max_grad_norm=2.0", "training.batch_size=41", "model.dense=9", "data.alpha=0.7", "run.seed=8"]
)
def test_a_resume_with_another_scenario_is_refused(change, tmp_path):
    """What decides the result may not change in mid-run; the key is named."""
    folder = tmp_path / "run"
    run(RECORD.replace("rounds = 8", "rounds = 2"), folder)
    done = resumed(folder, str(folder / "scenario.toml"), "--set", change)
    assert done.returncode == 2
    assert change.split("=")[0] in done.stderr


def test_the_run_folder_says_all_of_the_scenario(tmp_path):
    """Every default is written out, so that the folder can be cited and run again."""
    run(NONE.replace("rounds = 8", "rounds = 1"), tmp_path / "run")
    text = (tmp_path / "run" / "scenario.toml").read_text()
    assert "min_replies = 1" in text
    assert parse(text) == parse(NONE.replace("rounds = 8", "rounds = 1"))
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {
        "scenario.toml", "plan.json", "rounds.csv", "clients.csv", "checkpoint", "model.safetensors",
    }  # fmt: skip


def test_several_seeds_report_mean_spread_and_what_they_spend_together(tmp_path):
    """Each seed is a run of its own; a record that is in both spends what two runs compose to."""
    scenario = parse(RECORD.replace("rounds = 8", "rounds = 2"))
    results = campaign.run(scenario, out=tmp_path / "runs", seeds=2, watcher=Observer())
    table = json.loads(json.dumps(campaign.to_json(results)))
    accuracies = [single["metrics"]["accuracy"] for single in table["runs"]]
    assert table["metrics"]["accuracy"]["mean"] == pytest.approx(np.mean(accuracies))
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["seed-7", "seed-8"]
    plan = plan_in(tmp_path / "runs" / "seed-7")
    twice = plan.accounts[0].event.times(2 * plan.accounts[0].reserved)
    assert table["epsilon_all_runs"] == epsilon((twice,), delta=1e-5) > 8.0


def test_several_seeds_on_one_ledger_are_refused(tmp_path):
    """Another seed is another split: no account would know all that a record spent."""
    with pytest.raises(BadInputError, match="--ledger: expected it without --seeds, got both"):
        campaign.run(parse(RECORD), out=tmp_path / "runs", seeds=2, ledger=tmp_path / "owners.db", watcher=Observer())
    assert list(tmp_path.iterdir()) == []


# --- a ledger that several runs share ---------------------------------------------------------------------------------

# Its four rounds spend 3.597, with the two spares 3.999: as part of a lifetime of 5, PLD would allow it nearly twice.
SHARED = SMALL.replace("rounds = 8", "rounds = 4").replace("evaluate_every = 2", "evaluate_every = 3")
FIRST = SHARED + "privacy = {epsilon = 4.0, budget = 5.0}\n"
LARGER = SHARED + "privacy = {epsilon = 4.0, budget = 9.0}\n"
ACCOUNTS = [f"digits/client-{client:06d}" for client in range(4)]


@dataclass(frozen=True, kw_only=True)
class Lifetime:
    """Three runs on one ledger: one that fits, one that does not, and one under a larger budget."""

    folder: Path
    first: Outcome
    second: subprocess.CompletedProcess[str]
    third: Outcome

    @property
    def ledger(self) -> Path:
        return self.folder / "owners.db"

    def run(self, name: str) -> str:
        return plan_in(self.folder / name).run

    def taken(self, name: str) -> int:
        """Return in how many rounds each client was charged."""
        return len(charged(self.ledger, self.run(name))) // 4


@pytest.fixture(scope="module")
def lifetime(tmp_path_factory) -> Lifetime:
    folder = tmp_path_factory.mktemp("lifetime")
    (folder / "s.toml").write_text(FIRST)
    first = run(FIRST, folder / "first", ledger=folder / "owners.db")
    second = subprocess.run(
        [sys.executable, "-m", "discreet", "simulate", str(folder / "s.toml"), "--out", str(folder / "second"),
         "--ledger", str(folder / "owners.db"), "--json"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    third = run(LARGER, folder / "third", ledger=folder / "owners.db")
    return Lifetime(folder=folder, first=first, second=second, third=third)


def times(lifetime: Lifetime, **taken: int) -> History:
    """Return what a client did in so many rounds of each run, without merging them."""
    return tuple(
        plan_in(lifetime.folder / name).accounts[0].event.times(count) for name, count in taken.items() if count
    )


def test_runs_that_share_a_ledger_have_a_link_to_it(lifetime):
    """Each run's folder leads to the one ledger, which is whole and adds up."""
    for name in ("first", "second", "third"):
        assert (lifetime.folder / name / "ledger.db").resolve() == lifetime.ledger.resolve()
    verify(read(lifetime.ledger))


def test_the_first_run_on_a_ledger_is_admitted_whole(lifetime):
    """PLD admits four rounds and two spares; what it spends is its own, in all as in the run."""
    assert lifetime.first.stopped is None
    assert lifetime.first.epsilon == lifetime.first.lifetime_epsilon
    assert lifetime.taken("first") == 4
    (whole, *_) = [entry for entry in entries(lifetime.ledger) if isinstance(entry, Reserve) and entry.round == 0]
    assert whole.participations == 6


def test_the_second_run_goes_on_from_what_the_first_spent(lifetime):
    """The filter admits two rounds of four to a lifetime of 5: in round 3 the run stops, with exit code 1."""
    event = plan_in(lifetime.folder / "second").accounts[0].events
    order = filter_order(event, budget=5.0, delta=1e-5)
    past = times(lifetime, first=4)
    assert admissible(past, event, wanted=6, budget=5.0, delta=1e-5, order=order) == 2
    assert lifetime.taken("second") == 2
    assert lifetime.second.returncode == 1
    outcome = json.loads(lifetime.second.stdout)
    assert outcome["stopped"].startswith("Round 3: all 4 clients said budget-spent.")
    assert lifetime.second.stderr.count("Round 3: all 4 clients said budget-spent.") >= 1
    assert "Traceback" not in lifetime.second.stderr


def test_a_run_that_stopped_leaves_its_model_and_its_figures(lifetime):
    """The model of round 2 is saved and measured, and clients.csv says what was spent in this run."""
    outcome = json.loads(lifetime.second.stdout)
    folder = lifetime.folder / "second"
    assert outcome["rounds"] == 2
    assert weights(folder).keys() == weights(lifetime.folder / "first").keys()
    assert [row["round"] for row in rows(folder, "rounds.csv")] == ["1", "2"]
    assert float(rows(folder, "rounds.csv")[-1]["accuracy"]) == pytest.approx(outcome["metrics"]["accuracy"], rel=1e-5)
    clients = rows(folder, "clients.csv")
    assert [(row["participations"], row["steps"]) for row in clients] == [("2", "2")] * 4
    own = epsilon(times(lifetime, second=2), delta=1e-5)
    assert outcome["epsilon"] == {"max": own, "median": own}
    assert [float(row["epsilon"]) for row in clients] == pytest.approx([own] * 4)
    assert len(lines(folder)) == 8


def test_lifetime_epsilon_is_that_of_all_runs_composed(lifetime):
    """By PLD: six participations after the second run, ten after the third, and not the sum of the runs' figures."""
    both = epsilon(times(lifetime, first=4, second=2), delta=1e-5)
    assert json.loads(lifetime.second.stdout)["lifetime_epsilon"] == {"max": both, "median": both}
    assert both < 5.0
    assert lifetime.first.epsilon is not None
    assert both < lifetime.first.epsilon["max"] + json.loads(lifetime.second.stdout)["epsilon"]["max"]
    all_three = epsilon(times(lifetime, first=4, second=2, third=4), delta=1e-5)
    assert lifetime.third.lifetime_epsilon == {"max": all_three, "median": all_three}


def test_a_refusal_is_in_the_ledger_once_for_each_client(lifetime):
    """Four clients turned the second run down in round 3; no other run was."""
    assert refused(lifetime.ledger) == [(lifetime.run("second"), "budget-spent")] * 4
    assert [row["refusals"] for row in rows(lifetime.folder / "first", "clients.csv")] == ["0"] * 4


def test_a_larger_budget_is_a_policy_change_and_lets_a_run_complete(lifetime):
    """Under 9 the third run does all its rounds; every account shows that its budget was 5 before."""
    assert lifetime.third.stopped is None
    assert lifetime.third.rounds == lifetime.taken("third") == 4
    openings = [entry for entry in entries(lifetime.ledger) if isinstance(entry, Opening)]
    assert [(entry.account, entry.is_change, entry.terms.budget) for entry in openings] == [
        *((name, False, 5.0) for name in ACCOUNTS),
        *((name, True, 9.0) for name in ACCOUNTS),
    ]


def test_a_stopped_run_that_is_resumed_stops_again(lifetime):
    """Its account was closed: a larger budget since then opens nothing for it, and the budget in force stays."""
    before = charged(lifetime.ledger), kinds(lifetime.ledger).count("POLICY_CHANGE")
    outcome = resume(lifetime.folder / "second", None, watcher=Observer())
    assert outcome.stopped is not None
    assert (outcome.rounds, outcome.client_updates) == (2, 0)
    assert (charged(lifetime.ledger), kinds(lifetime.ledger).count("POLICY_CHANGE")) == before


@pytest.mark.parametrize(
    "change",
    [
        "run.seed=8",
        'data.partition="dirichlet"',
        "data.clients=3",
        "privacy.unit=client",
    ],
)
def test_another_split_of_the_same_data_is_refused(lifetime, change, tmp_path):
    """Another seed, partition, number of clients or unit puts a record into another account: nothing is written."""
    before = lifetime.ledger.read_bytes()
    others = ["privacy.delta=0.05", "server.min_replies=0"] if "unit" in change else []
    scenario = parse(FIRST, overrides=[change, *others])
    with pytest.raises(PlanRefusedError, match="a record would be in two accounts"):
        simulate(scenario, out=tmp_path / "run", ledger=lifetime.ledger, watcher=Observer())
    assert list(tmp_path.iterdir()) == []
    assert lifetime.ledger.read_bytes() == before


def test_a_ledger_for_a_run_without_privacy_is_refused(tmp_path):
    """Unit none spends nothing: exit code 2, and nothing is written."""
    with pytest.raises(BadInputError, match="--ledger: expected none of it with unit 'none'") as caught:
        run(NONE, tmp_path / "run", ledger=tmp_path / "owners.db")
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"rubbish", "lost"])
def test_a_ledger_that_does_not_read_is_refused_before_anything_is_written(tmp_path, content):
    """Empty, foreign, or lost, so that only its key is left: no folder is begun."""
    path = tmp_path / "owners.db"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        Ledger.create(path).close()
        path.unlink()
    with pytest.raises(LedgerError):
        run(FIRST, tmp_path / "run", ledger=path)
    assert not (tmp_path / "run").exists()


# --- older copies of a ledger -----------------------------------------------------------------------------------------


def copy(ledger: Path, to: Path) -> None:
    """Copy a ledger as it stands, also while it is open."""
    to.unlink(missing_ok=True)
    with closing(sqlite3.connect(ledger)) as source, closing(sqlite3.connect(to)) as target:
        source.backup(target)


def restore(copied: Path, ledger: Path) -> None:
    """Put a copy in the ledger's place."""
    for name in (f"{ledger.name}-wal", f"{ledger.name}-shm"):
        ledger.with_name(name).unlink(missing_ok=True)
    ledger.write_bytes(copied.read_bytes())


class AfterRound(Observer):
    """Does something after some rounds."""

    def __init__(self, **acts: Callable[[], None]) -> None:
        self._acts = acts

    def round_done(self, record: RoundRecord) -> None:
        self._acts.get(f"round_{record.round}", lambda: None)()


def die() -> None:
    raise KilledError


@pytest.mark.parametrize("unit", ["record", "client"])
def test_a_resume_on_a_ledger_from_before_the_run_is_refused(tmp_path, unit):
    """The copy was made between two runs: it knows nothing of the second, which does not go on with it."""
    text = {"record": RECORD, "client": CLIENT}[unit].replace("rounds = 8", "rounds = 2")
    ledger = tmp_path / "owners.db"
    run(text, tmp_path / "first", ledger=ledger)
    copy(ledger, tmp_path / "copy.db")
    run(text.replace("privacy = {", "privacy = {budget = 20.0, "), tmp_path / "second", ledger=ledger)
    restore(tmp_path / "copy.db", ledger)
    with pytest.raises(LedgerError, match="this is an older copy"):
        resume(tmp_path / "second", None, watcher=Observer())


@pytest.mark.parametrize("unit", ["record", "client"])
def test_a_resume_on_a_ledger_from_earlier_in_the_run_is_refused(tmp_path, unit):
    """The copy was made after round 1, the run died after round 2: with it, a round would be spent for free."""
    text = {"record": RECORD, "client": CLIENT}[unit].replace("rounds = 8", "rounds = 2")
    ledger = tmp_path / "run" / "ledger.db"
    watcher = AfterRound(round_1=lambda: copy(ledger, tmp_path / "copy.db"), round_2=die)
    with pytest.raises(KilledError):
        run(text, tmp_path / "run", watcher=watcher)
    assert {number for number, _, _ in charged(ledger)} == {1, 2}
    restore(tmp_path / "copy.db", ledger)
    with pytest.raises(LedgerError, match="this is an older copy"):
        resume(tmp_path / "run", None, watcher=Observer())


@pytest.mark.parametrize("unit", ["record", "client"])
def test_a_resume_on_the_run_s_own_ledger_goes_on(tmp_path, unit):
    """With the ledger as it was left, the run ends, and every account was charged once a round."""
    text = {"record": RECORD, "client": CLIENT}[unit].replace("rounds = 8", "rounds = 2")
    with pytest.raises(KilledError):
        run(text, tmp_path / "run", watcher=AfterRound(round_1=die))
    assert resume(tmp_path / "run", None, watcher=Observer()).rounds == 2
    accounts = {"record": ACCOUNTS, "client": ["digits/population"]}[unit]
    assert charged(tmp_path / "run" / "ledger.db") == [(number, 1, name) for number in (1, 2) for name in accounts]


@pytest.mark.slow
def test_the_demo_reaches_its_accuracy():
    """`make demo` ends at 0.85 or more, at epsilon 8 or less for every organisation."""
    done = subprocess.run(
        [sys.executable, "-m", "discreet", "simulate", str(DIGITS), "--seeds", "3", "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    table = json.loads(done.stdout)
    assert table["metrics"]["accuracy"]["min"] >= 0.85
    assert all(single["epsilon"]["max"] <= 8.0 for single in table["runs"])
