"""Whole runs: their figures, their folders, and what is left of them after SIGKILL and Ctrl-C."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from common.config import parse
from common.models.registry import build
from common.privacy.accounting import epsilon
from common.privacy.event_log import read_entries
from common.privacy.plan_file import from_json_text
from common.tasks import TASKS
from server.observer import Observer
from simulations import datasets
from simulations.figures import Outcome
from simulations.single_run import simulate

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
CLIENT = SMALL.replace("[4, 4, 4]", "[2, 2, 2]") + 'privacy = {unit = "client", epsilon = 8.0, delta = 0.05}\n'


def run(text: str, folder: Path, **engine: str) -> Outcome:
    scenario = parse(text, overrides=[f"engine.{key}={value}" for key, value in engine.items()])
    return simulate(scenario, out=folder, watcher=Observer())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / name).open() as file:
        return list(csv.DictReader(file))


def equal(left: Path, right: Path) -> bool:
    a, b = weights(left), weights(right)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


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
        run(RECORD.replace("rounds = 8", "rounds = 1"), tmp_path / name)
    assert not equal(tmp_path / "a", tmp_path / "b")


def test_a_private_run_reports_what_its_plan_and_its_events_say(tmp_path):
    """Epsilon is that of the events on disk, equals the plan's when no round was lost, and is in every file alike."""
    outcome = run(RECORD, tmp_path / "run")
    folder = tmp_path / "run"
    plan = from_json_text((folder / "plan.json").read_text())
    entries = read_entries(folder / "events.jsonl")
    assert len(entries) == 8 * 4
    own = tuple(entry.event for entry in entries if entry.account == "client-000002")
    spent = epsilon(own, delta=1e-5)
    assert outcome.epsilon == {"max": spent, "median": spent}
    assert spent == plan.epsilon
    clients = rows(folder, "clients.csv")
    assert [float(row["epsilon"]) for row in clients] == pytest.approx([spent] * 4)
    assert {(row["records"], row["steps"], row["participations"]) for row in clients} == {("359", "8", "8")}
    rounds = rows(folder, "rounds.csv")
    assert [row["round"] for row in rounds] == [str(number) for number in range(1, 9)]
    assert float(rounds[-1]["epsilon_max"]) == pytest.approx(spent, rel=1e-3)
    assert rounds[0]["accuracy"] == ""  # evaluate_every = 2
    assert outcome.rounds == 8
    assert outcome.client_updates == 32


def test_client_level_privacy_charges_the_population_once_a_round(tmp_path):
    """One account, one event a round with the cohort's Poisson rate, whoever takes part."""
    outcome = run(CLIENT.replace("evaluate_every = 2", "cohort = 2, evaluate_every = 2"), tmp_path / "run")
    entries = read_entries(tmp_path / "run" / "events.jsonl")
    assert [(e.round, e.account, e.event.steps, str(e.event.sampling_rate)) for e in entries] == [
        (number, "population", 1, "1/2") for number in range(1, 9)
    ]
    assert outcome.epsilon is not None
    assert outcome.epsilon["max"] == epsilon(tuple(e.event for e in entries), delta=0.05)
    assert {int(row["cohort"]) for row in rows(tmp_path / "run", "rounds.csv")} <= {0, 1, 2, 3, 4}


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_run_killed_in_mid_round_resumes_bit_equal_without_privacy(optimizer, tmp_path):
    """SIGKILL in round 5: the resumed run ends with the weights and the lines of an unbroken one."""
    text = NONE.replace("evaluate_every = 2", f'optimizer = "{optimizer}", ema_decay = 0.5, evaluate_every = 2')
    process = start(text, tmp_path / "broken")
    wait_for_round(tmp_path / "broken", 5, process)
    process.kill()
    process.communicate()
    done = resumed(tmp_path / "broken")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rounds"] == 8
    run(text, tmp_path / "whole")
    assert equal(tmp_path / "broken", tmp_path / "whole")
    timeless = [
        [{key: value for key, value in row.items() if key != "seconds"} for row in rows(folder, "rounds.csv")]
        for folder in (tmp_path / "broken", tmp_path / "whole")
    ]
    assert timeless[0] == timeless[1]


def test_a_private_run_killed_in_mid_round_charges_the_lost_round_and_runs_it_as_a_spare(tmp_path):
    """SIGKILL in round 5: equal plan; the events are the unbroken run's plus the lost round's, and so is epsilon."""
    process = start(RECORD, tmp_path / "broken")
    wait_for_round(tmp_path / "broken", 5, process)
    time.sleep(0.02)
    process.kill()
    process.communicate()
    plan = (tmp_path / "broken" / "plan.json").read_text()
    before = read_entries(tmp_path / "broken" / "events.jsonl")
    done = resumed(tmp_path / "broken")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "broken" / "plan.json").read_text() == plan
    entries = read_entries(tmp_path / "broken" / "events.jsonl")
    assert entries[: len(before)] == before, "nothing that was charged is taken back"
    orders = [(entry.round, entry.attempt) for entry in entries if entry.account == "client-000000"]
    lost = [number for number, attempt in orders if attempt == 2]
    charged_before = {(entry.round, entry.attempt) for entry in before}
    assert len(lost) == 1
    # the kill may come before the round's charge is on disk: then the round was not trained, and is not charged
    expected = 9 if (lost[0], 1) in charged_before else 8
    assert len(orders) == len(set(orders)) == expected
    spent = json.loads(done.stdout)["epsilon"]["max"]
    assert spent == epsilon((entries[0].event.times(expected),), delta=1e-5)
    assert spent <= json.loads(plan)["epsilon_reserved"] <= 8.0


def test_a_run_that_is_killed_too_often_stops_before_it_overspends(tmp_path):
    """When the spares are used up the run refuses to go on, and the budget holds."""
    text = RECORD.replace("evaluate_every = 2", "spare_rounds = 0, evaluate_every = 2")
    process = start(text, tmp_path / "run")
    wait_for_round(tmp_path / "run", 3, process)
    process.kill()
    process.communicate()
    done = resumed(tmp_path / "run")
    assert done.returncode == 1
    assert "spare_rounds" in done.stderr
    assert "Traceback" not in done.stderr
    entries = read_entries(tmp_path / "run" / "events.jsonl")
    assert epsilon(tuple(e.event for e in entries if e.account == "client-000000"), delta=1e-5) <= 8.0


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
    before = (tmp_path / "run" / "events.jsonl").read_bytes()
    again = json.loads(resumed(tmp_path / "run").stdout)
    assert (tmp_path / "run" / "events.jsonl").read_bytes() == before
    assert again["epsilon"] == outcome.epsilon
    assert again["metrics"]["accuracy"] == pytest.approx(outcome.metrics["accuracy"], rel=1e-5)
    assert again["client_updates"] == 0


@pytest.mark.parametrize(
    "change", ["privacy.max_grad_norm=2.0", "training.batch_size=41", "model.dense=9", "data.alpha=0.7", "run.seed=8"]
)
def test_a_resume_with_another_scenario_is_refused(change, tmp_path):
    """What decides the result may not change in mid-run; the key is named."""
    folder = tmp_path / "run"
    run(RECORD.replace("rounds = 8", "rounds = 1"), folder)
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
    (tmp_path / "s.toml").write_text(RECORD.replace("rounds = 8", "rounds = 2"))
    done = subprocess.run(
        [sys.executable, "-m", "discreet", "simulate", str(tmp_path / "s.toml"), "--seeds", "2", "--json",
         "--out", str(tmp_path / "runs")],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    table = json.loads(done.stdout)
    accuracies = [single["metrics"]["accuracy"] for single in table["runs"]]
    assert table["metrics"]["accuracy"]["mean"] == pytest.approx(np.mean(accuracies))
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["seed-7", "seed-8"]
    plan = from_json_text((tmp_path / "runs" / "seed-7" / "plan.json").read_text())
    twice = plan.accounts[0].event.times(2 * plan.accounts[0].reserved)
    assert table["epsilon_all_runs"] == epsilon((twice,), delta=1e-5) > 8.0


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
