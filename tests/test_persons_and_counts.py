"""Whole runs that protect persons, and whole runs that measure clients: what they spend is what they say.

MNIST's writers are looked for where DISCREET_DATA says, or in shared/data beside the repository.
"""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from client.metrics import correct
from common.config import Scenario, load, parse
from common.models.registry import build
from common.privacy.accounting import epsilon
from common.privacy.plan import Plan
from common.privacy.plan_file import from_json_text
from common.shards import Shard, open_shard, write_shards
from common.tasks import TASKS
from server.observer import Observer, RoundRecord
from simulations import datasets
from simulations.partition import declared_records, split
from simulations.single_run import simulate

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("DISCREET_DATA") or ROOT.parent / "shared" / "data")
PERSONS = ROOT / "simulations" / "scenarios" / "mnist-persons.toml"

needs_writers = pytest.mark.skipif(
    not (DATA / "mnist").is_dir() or not (DATA / "mnist-writers").is_dir(), reason=f"no MNIST writers in {DATA}"
)

DIGITS = """
run = {name = "counts", rounds = 4}
data = {dataset = "digits", clients = 4}
model = {name = "cnn", channels = [4, 4, 4], dense = 8}
training = {batch_size = 40, local_steps = 1}
server = {evaluate_every = 2}
engine = {kind = "sequential"}
privacy = {epsilon = 8.0, metrics = "noisy"}
"""


class Rounds(Observer):
    """Keeps the rounds."""

    def __init__(self) -> None:
        self.records: list[RoundRecord] = []

    def round_done(self, record: RoundRecord) -> None:
        self.records.append(record)


def plan_in(folder: Path) -> Plan:
    return from_json_text((folder / "plan.json").read_text())


def writers(*overrides: str) -> Scenario:
    """The shipped scenario, made small; its noise is given, which takes no calibration."""
    small = ("run.rounds=2", "training.batch_size=2", "engine.kind=sequential", "server.evaluate_every=2")
    noise = ("privacy.epsilon=", "privacy.noise_multiplier=1.0")
    return load(PERSONS, [f"data.path={DATA}", *small, *noise, *overrides])


def first_accuracy(of: Scenario) -> float:
    """What the first weights get right of the records that are shared out."""
    data = datasets.load(of)
    used = np.concatenate(split(of, data))
    shard = Shard(features_ND=data.train.features_ND[used], labels_N=data.train.labels_N[used])
    return correct(build(of.model, TASKS["digits"], seed=of.run.seed), shard, physical_batch=128) / len(shard)


def test_a_run_with_noisy_metrics_reports_the_clients_accuracy_and_is_charged_for_it(tmp_path):
    """Each round has a pooled accuracy, each client's epsilon is that of both events, and it keeps to the plan."""
    watcher = Rounds()
    outcome = simulate(parse(DIGITS), out=tmp_path / "run", watcher=watcher, ledger=None)
    plan = plan_in(tmp_path / "run")
    (account,) = plan.accounts
    assert account.metrics_event is not None
    assert account.epsilon == epsilon(account.history(4), delta=1e-5) > epsilon((account.event.times(4),), delta=1e-5)
    assert outcome.epsilon == {"max": account.epsilon, "median": account.epsilon}
    assert all(record.replies == 4 and not record.refused for record in watcher.records)
    with (tmp_path / "run" / "rounds.csv").open() as file:
        column = [row["client_accuracy"] for row in csv.DictReader(file)]
    shares = [record.client_accuracy for record in watcher.records]
    assert column == [f"{share:.6g}" for share in shares]
    # the noise of a share of 4 x 359 records is 20 x sqrt(4) / 1436 = 0.028: five deviations fail once in 1.7 million
    assert shares[0] == pytest.approx(first_accuracy(parse(DIGITS)), abs=5 * 0.028)


def test_a_run_reports_no_accuracy_of_clients_by_default(tmp_path):
    """The column is there and empty: metrics on private data are withheld."""
    watcher = Rounds()
    simulate(parse(DIGITS, overrides=["privacy.metrics="]), out=tmp_path / "run", watcher=watcher, ledger=None)
    assert [record.client_accuracy for record in watcher.records] == [None] * 4
    assert all(line.endswith(",") for line in (tmp_path / "run" / "rounds.csv").read_text().splitlines()[1:])


@needs_writers
def test_writers_lie_with_one_client_each_as_the_plan_declares(tmp_path):
    """Of 539 writers each of three clients has 179, all their records, and the shards on disk name them."""
    of = writers()
    data = datasets.load(of)
    write_shards(tmp_path, train=data.train, test=data.test, indices=split(of, data))
    people = []
    for client, declared in enumerate(declared_records(of)):
        shard = open_shard(tmp_path, client)
        assert shard.units_N is not None
        people.append(set(shard.units_N.tolist()))
        assert len(people[-1]) == declared == 179
        assert len(shard) == np.isin(data.train.units_N, list(people[-1])).sum()
    assert len(set.union(*people)) == 3 * 179


@needs_writers
@pytest.mark.parametrize("metrics", ["none", "noisy"])
def test_a_run_that_protects_persons_trains_and_is_charged_for_persons(tmp_path, metrics):
    """A small run of the shipped scenario: every event names persons, and epsilon is that of the plan."""
    watcher = Rounds()
    outcome = simulate(writers(f"privacy.metrics={metrics}"), out=tmp_path / "run", watcher=watcher, ledger=None)
    plan = plan_in(tmp_path / "run")
    (account,) = plan.accounts
    assert {event.unit for event in account.events} == {"person"}
    assert len(account.events) == (2 if metrics == "noisy" else 1)
    assert plan.records == (179,) * 3
    assert outcome.epsilon == {"max": plan.epsilon, "median": plan.epsilon}
    assert all(record.replies == 3 and not record.refused for record in watcher.records)
    assert all((record.client_accuracy is not None) == (metrics == "noisy") for record in watcher.records)


@needs_writers
@pytest.mark.slow
def test_the_persons_scenario_reaches_its_accuracy():
    """`mnist-persons.toml` ends at 0.88 or more, at epsilon 8 or less for every organisation."""
    done = subprocess.run(
        [sys.executable, "-m", "discreet", "simulate", str(PERSONS), "--set", f"data.path={DATA}", "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    table = json.loads(done.stdout)
    assert table["metrics"]["accuracy"] >= 0.88
    assert table["epsilon"]["max"] <= 8.0
