"""A deployment on one machine: real processes, one run, and everything taken down."""

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from common.config import load, parse
from common.errors import BadInputError
from common.ledger import Ledger
from common.transparency.entries import Opening, Reserve, Settle
from common.transparency.export import read
from server.observer import Observer
from simulations import single_run
from simulations.trials import cast, trial

PRIVATE = """
run = {name = "small", rounds = 2, purpose = "to see it work"}
data = {dataset = "digits", clients = 10}
model = {name = "cnn", activation = "tanh"}
training = {batch_size = 64, local_steps = 1, learning_rate = 0.5}
privacy = {noise_multiplier = 1.5, delta = 1e-5}
"""
PUBLIC = PRIVATE.replace("noise_multiplier = 1.5, delta = 1e-5", 'unit = "none"').replace("clients = 10", "clients = 2")


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    """One trial through the command line, kept to be looked at."""
    folder = tmp_path_factory.mktemp("trial")
    scenario = folder / "scenario.toml"
    scenario.write_text(PRIVATE)
    kept = folder / "kept"
    arguments = ["trial", str(scenario), "--organisations", "2", "--keep", str(kept), "--json"]
    done = subprocess.run([sys.executable, "-m", "discreet", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), kept


def test_a_trial_says_what_the_run_reached_and_how_long_it_took(held):
    """The figures of a run, with the seconds from its start at the link to its end."""
    figures, _ = held
    assert figures["rounds"] == 2
    assert figures["client_updates"] == 4
    assert figures["unit"] == "record"
    assert 0 < figures["run_seconds"] < figures["trial_seconds"]
    assert [one["refusals"] for one in figures["organisations"]] == [0, 0]


def test_each_organisations_ledger_says_what_the_coordinator_asked(held):
    """What was spent stands in the organisations' ledgers, to the digit of the coordinator's figure."""
    figures, _ = held
    assert [one["epsilon"] for one in figures["ledgers"]] == [figures["epsilon"]["max"]] * 2
    assert all(one["epsilon"] < one["budget"] for one in figures["ledgers"])


def test_every_charge_was_cosigned_by_the_witness(held):
    """The newest cosigned note of each ledger is over all of its entries."""
    figures, kept = held
    for one in figures["ledgers"]:
        assert one["is_witnessed"]
        note = (kept / one["name"] / "ledger.db.cosigned").read_text()
        with closing(Ledger(kept / one["name"] / "ledger.db")) as ledger:
            assert int(note.split("\n")[1]) == ledger.books.size


def test_a_ledger_reads_as_the_run_went(held):
    """Opened, reserved as a whole, each round charged and carried out, closed: what was not used is free again."""
    figures, kept = held
    entries = read(kept / "organisation-1" / "ledger.db").entries
    kinds = [type(entry) for entry in entries]
    assert kinds == [Opening, Reserve, Reserve, Settle, Reserve, Settle, Settle]
    assert {entry.run for entry in entries if isinstance(entry, Reserve)} == {figures["run"]}


def test_the_processes_are_as_small_as_promised(held):
    """A node without torch under 150 MB, its training process under 550 MB."""
    figures, _ = held
    nodes = [one for one in figures["processes"] if one["name"].startswith("organisation")]
    assert all(one["memory_mb"] < 150 for one in nodes)
    assert all(0 < one["child_memory_mb"] < 550 for one in nodes)


def test_after_a_trial_no_process_is_left(held):
    """Link, witness, nodes and their training processes are all gone."""
    _, kept = held
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [line for line in lines if str(kept).encode() in line]


def test_no_private_key_is_readable_by_others(held):
    """Every private key of the consortium is for its owner's eyes alone."""
    _, kept = held
    keys = list(kept.rglob("*.key"))
    assert len(keys) > 8
    assert {path.stat().st_mode & 0o077 for path in keys} == {0}


def test_deployment_and_simulation_give_the_same_model(tmp_path):
    """Same scenario, same seed, no noise: the models agree to 1e-6."""
    made = cast.prepare(_empty(tmp_path / "trial"), parse(PUBLIC), 2)
    with trial.staged(made) as stage:
        trial.finished(stage.start_run(out=tmp_path / "deployed"))
    simulated = single_run.simulate(
        load(made.folder / "scenario.toml"), out=tmp_path / "simulated", ledger=None, watcher=Observer()
    )
    assert simulated.rounds == 2
    deployed, here = (load_file(tmp_path / name / "model.safetensors") for name in ("deployed", "simulated"))
    assert deployed.keys() == here.keys()
    assert max(float(np.abs(deployed[name] - here[name]).max()) for name in here) < 1e-6


def test_a_folder_in_use_is_not_taken(tmp_path):
    """A trial is kept in a new folder only."""
    (tmp_path / "something").touch()
    with pytest.raises(BadInputError, match="new or empty"):
        trial.hold(tmp_path / "scenario.toml", 2, overrides=(), keep=tmp_path)


def test_a_scenario_is_fitted_to_the_organisations():
    """Everybody is asked in every round, and a purpose is given where there is none."""
    fitted = cast.for_organisations(parse(PRIVATE, overrides=["run.purpose=", "server.cohort=3"]), 4)
    assert (fitted.data.clients, fitted.server.cohort, fitted.server.max_participations) == (4, 4, 2)
    assert fitted.run.purpose == cast.PURPOSE


def _empty(folder: Path) -> Path:
    folder.mkdir()
    return folder
