"""The audit catches bugs that are planted into the source of the trainer and the accounts, and leaves clean runs alone.

Each audit is a whole one, of a copy of all rooms in a process of its own (`planted_bugs`). Coins, batches and noise are
the operating system's, so that no seed repeats a run; what that leaves to chance:

    a clean run is refuted          1e-4 a run, the design's bound: 30 clean runs fail with 3e-3
    a bug is missed                 `wrong-rate` at epsilon 1, where a canary weighs least, by far the likeliest: with
                                    2,400 canaries the mean movement of the 1,200 that are in is known to 11 % of what
                                    is planned, and the bug doubles it: 8.4 standard errors, of which the check
                                    forgives 4.4, so 3e-5 a run. All others are farther away.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import planted_bugs
import pytest
import torch
from planted_bugs import ALL, BUGS, CLIENT, MORE, ROOT, Attack, Change

from common.transparency.provenance import code_digest

EPSILONS = (1.0, 4.0, 8.0)
NOTES = "PLANTED_BUGS_NOTES"  # names the folder for what `make audit` puts into its table
CANARIES = 2_400
DIGITS = """
run = {name = "small", rounds = 40}
data = {dataset = "digits", clients = 10}
model = {name = "cnn", channels = [4, 4, 4], dense = 8}
training = {batch_size = 18, local_steps = 1, learning_rate = 0.7}
privacy = {epsilon = 4.0, delta = 1e-5}
engine = {kind = "sequential"}
"""
CLIENTS = """
run = {name = "small", rounds = 20}
data = {dataset = "digits", clients = 100}
model = {name = "cnn", channels = [4, 4, 4], dense = 8}
training = {batch_size = 14, learning_rate = 0.1}
server = {cohort = 25}
privacy = {unit = "client", epsilon = 4.0, delta = 1e-4, max_grad_norm = 0.5}
engine = {kind = "sequential"}
"""
PERSONS = """
run = {name = "small", rounds = 30}
data = {dataset = "mnist", clients = 3}
model = {name = "cnn", channels = [4, 4, 4], dense = 8}
training = {batch_size = 60, local_steps = 1, learning_rate = 0.5}
privacy = {unit_column = "writer", epsilon = 4.0, delta = 1e-4}
engine = {kind = "sequential"}
"""
TEXTS = """
run = {name = "small", rounds = 30}
data = {dataset = "sms-spam", clients = 5}
model = {name = "transformer", layers = 1, d_model = 8, heads = 2, feed_forward = 8, tokens = 4, vocabulary = 16}
training = {batch_size = 400, local_steps = 1, learning_rate = 0.5}
privacy = {epsilon = 4.0, delta = 1e-5}
engine = {kind = "sequential"}
"""
PATHS = {
    "hooks": (DIGITS, (), ("grouped-convolutions",), "no-clipping"),
    "four steps": (DIGITS, ("training.local_steps=4",), (), "noise-once-a-round"),
    "bf16": (DIGITS, ("training.precision=bf16",), (), "no-clipping"),
    "parallel": (DIGITS, ("engine.kind=parallel", "engine.workers=2"), (), "seeded-rounds"),
    "persons": (PERSONS, (), (), "records-of-a-person-apart"),
    "transformer": (TEXTS, (), (), "clip-after-averaging"),
    "unit client": (CLIENTS, (), (), "no-central-noise"),
}
"""Other paths than one backward pass in one process, by name: scenario, overrides, what else it takes, and a bug."""


def named(bugs):
    """The names of bugs, for a test to run through."""
    return [bug.name for bug in bugs]


def at(epsilon, scenario=DIGITS, overrides=(), *, canaries=CANARIES):
    """The attack on a scenario at an epsilon."""
    return Attack(scenario=scenario, overrides=(f"privacy.epsilon={epsilon}", *overrides), canaries=canaries)


def noted(where, bug, epsilon, audit):
    """Note an audit for the table, where one is wanted, and return what caught it; `bug` is None for a clean run."""
    found = planted_bugs.caught_by(audit)
    if NOTES in os.environ:
        line = {"where": where, "bug": bug, "epsilon": epsilon, "caught_by": found, "seconds": audit["seconds"]}
        with (Path(os.environ[NOTES]) / f"{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
    return found


def refuse_missed(where, bug, scenario):
    """Plant a bug, attack at all epsilons, and fail unless each audit refutes."""
    audits = planted_bugs.attacked([bug], [at(epsilon, scenario) for epsilon in EPSILONS])
    caught = {epsilon: noted(where, bug, epsilon, audit) for epsilon, audit in zip(EPSILONS, audits, strict=True)}
    assert all(caught.values()), caught
    assert all(audit["verdict"].startswith("REFUTED by ") for audit in audits)


def test_every_place_to_change_is_there_once_and_what_comes_of_it_compiles():
    """A bug changes its files and no others; code that has moved on is noticed before a long campaign."""
    for bug in ALL.values():
        with planted_bugs.planted(bug.name) as copy:
            files = {path.relative_to(copy) for path in copy.rglob("*.py")}
            changed = {file for file in files if (copy / file).read_bytes() != (ROOT / file).read_bytes()}
            assert changed == {Path(change.file) for change in bug.changes}, bug.name
            for file in changed:
                compile((copy / file).read_text(), str(file), "exec")


@pytest.mark.parametrize("text", ["", "aa"])
def test_a_place_that_is_missing_or_there_twice_is_refused(tmp_path, text):
    """A bug that would not be planted as it was meant fails the suite, and is not taken for one that was caught."""
    (tmp_path / "a.py").write_text(text)
    with pytest.raises(ValueError, match="Write the bug anew"):
        planted_bugs._plant(Change(file="a.py", before="a", after="b"), tmp_path)


def test_an_audit_that_breaks_is_no_audit_that_refutes():
    """A bug that only makes the code fall over would pass for one that was caught, were its exit code not looked at."""
    with pytest.raises(RuntimeError, match=r"no-noise the audit ended with 1\.(.|\n)*ScenarioError"):
        planted_bugs.attacked(["no-noise"], [Attack(scenario="run = 1")])


def test_the_script_runs_a_verb_on_a_bug_and_passes_its_exit_code_on(tmp_path):
    """`planted_bugs.py no-noise audit SCENARIO --json` says REFUTED, with exit code 1."""
    (tmp_path / "scenario.toml").write_text(DIGITS)
    command = [sys.executable, planted_bugs.__file__, "no-noise", "audit", "scenario.toml", "--out", "run", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    audit = json.loads(done.stdout)
    assert audit["verdict"].startswith("REFUTED by ")
    assert audit["claimed_epsilon"] == pytest.approx(4.0, rel=0.01)
    assert json.loads((tmp_path / "run" / "audit.json").read_text()) == audit


def test_the_script_lists_its_bugs():
    """One line a bug, with what it is."""
    command = [sys.executable, planted_bugs.__file__, "--list"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(ALL)


@pytest.mark.parametrize("bug", ["no-clipping", "accountant-reset"])
def test_a_planted_bug_is_caught(bug):
    """A short selection of the campaign below: one of the trainer, one of the accounts."""
    (audit,) = planted_bugs.attacked([bug], [at(4.0)])
    assert planted_bugs.caught_by(audit)
    assert audit["verdict"].startswith("REFUTED by ")
    assert audit["code"] != code_digest(ROOT)  # it was the copy that was audited, and the ledger's entry says so


def test_a_clean_run_is_not_refuted():
    """The same copy without a bug: what is refuted above is refuted for the bug."""
    (audit,) = planted_bugs.attacked([], [at(4.0)])
    assert planted_bugs.caught_by(audit) == []
    assert audit["verdict"] == "not refuted"
    assert audit["code"] == code_digest(ROOT)


@pytest.mark.audit
@pytest.mark.parametrize("bug", named([*BUGS, *MORE]))
def test_every_bug_is_caught_at_every_epsilon(bug):
    """Unit `record`: the nine that issue and PRIVACY.md name, and further ones."""
    refuse_missed("record", bug, DIGITS)


@pytest.mark.audit
@pytest.mark.parametrize("bug", named(CLIENT))
def test_every_bug_of_the_coordinator_is_caught_at_every_epsilon(bug):
    """Unit `client`: cohorts, the clipping of updates, and central noise."""
    refuse_missed("client", bug, CLIENTS)


@pytest.mark.audit
@pytest.mark.parametrize("first", [1, 3, 5, 7, 9])
def test_clean_runs_are_not_refuted(first):
    """Ten seeds at three epsilons, two seeds in one process."""
    runs = [(seed, epsilon) for seed in (first, first + 1) for epsilon in EPSILONS]
    audits = planted_bugs.attacked([], [at(epsilon, DIGITS, [f"run.seed={seed}"]) for seed, epsilon in runs])
    caught = {
        (seed, epsilon): noted(f"seed {seed}", None, epsilon, audit)
        for (seed, epsilon), audit in zip(runs, audits, strict=True)
    }
    assert not any(caught.values()), caught
    assert all(audit["verdict"] == "not refuted" for audit in audits)


@pytest.mark.audit
@pytest.mark.parametrize("path", PATHS)
def test_every_path_of_the_trainer_is_audited(path):
    """Each other way in which gradients come about: a clean run of it is left alone, a bug in it is caught."""
    scenario, overrides, taken_by, bug = PATHS[path]
    attack = at(4.0, scenario, overrides, canaries=1_000)
    (clean,) = planted_bugs.attacked(taken_by, [attack])
    (buggy,) = planted_bugs.attacked([*taken_by, bug], [attack])
    assert noted(path, None, 4.0, clean) == []
    assert noted(path, bug, 4.0, buggy) != []
    assert clean["gradients"].startswith("Opacus's hooks") == bool(taken_by)


@pytest.mark.audit
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("bug", ["noise-half", "no-clipping"])
def test_a_gpu_s_arithmetic_is_audited(bug):
    """The same on CUDA, where clipping and sums come from other kernels."""
    attack = at(4.0, DIGITS, ["engine.device=cuda"])
    (clean,) = planted_bugs.attacked([], [attack])
    (buggy,) = planted_bugs.attacked([bug], [attack])
    assert noted("CUDA", None, 4.0, clean) == []
    assert noted("CUDA", bug, 4.0, buggy) != []
