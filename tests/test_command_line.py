"""The command line as users and scripts meet it: real processes, exit codes, and nothing written on bad input."""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.config import load

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "simulations" / "scenarios" / "digits.toml"
MNIST = ROOT / "simulations" / "scenarios" / "mnist-silos.toml"


def discreet(*arguments: str | Path, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the real command."""
    import os

    return subprocess.run(
        [sys.executable, "-m", "discreet", *map(str, arguments)],
        cwd=cwd, env=os.environ | env, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


def test_help_answers_without_importing_torch():
    """`discreet --help` lists every verb, and starts no library that takes seconds."""
    code = (
        "import sys; sys.argv = ['discreet', '--help']\n"
        "import discreet\n"
        "try: discreet.main()\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'flwr', 'opacus', 'numpy', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(verb in done.stdout for verb in ("init", "simulate", "plan", "epsilon", "bench"))
    assert done.stdout.rstrip().endswith("[]")


def test_help_answers_in_under_half_a_second():
    """The median of five starts stays under half a second."""
    seconds = []
    for _ in range(5):
        started = time.monotonic()
        assert discreet("--help").returncode == 0
        seconds.append(time.monotonic() - started)
    assert statistics.median(seconds) < 0.5


def test_epsilon_of_the_tf_privacy_tutorial():
    """Batch 256 of 60,000, noise 1.1, 60 epochs: 2.3817 by PLD, in PRV's interval and below RDP."""
    done = discreet(
        "epsilon", "--noise-multiplier", "1.1", "--sampling-rate", "0.004266666666666667", "--steps", "14062",
        "--delta", "1e-5", "--json",
    )  # fmt: skip
    table = json.loads(done.stdout)
    assert table["pld"] == pytest.approx(2.3817, abs=5e-5)
    assert table["prv_interval"][0] < table["pld"] < table["prv_interval"][1]
    assert table["pld"] < table["rdp"] == pytest.approx(2.5966, abs=1e-3)
    assert table["adjacency"] == "zero-out"


def test_epsilon_of_a_heterogeneous_history(tmp_path):
    """Segments compose: row het-1 of the reference, 1.8975."""
    segments = tmp_path / "segments.json"
    segments.write_text(
        '[{"noise_multiplier": 1.0, "sampling_rate": 0.01, "steps": 500},'
        ' {"noise_multiplier": 1.5, "sampling_rate": "1/50", "steps": 500}]'
    )
    table = json.loads(discreet("epsilon", "--segments", segments, "--json").stdout)
    assert table["pld"] == pytest.approx(1.8975, abs=5e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--noise-multiplier", "0", "--sampling-rate", "0.1", "--steps", "1"], "noise_multiplier"),
        (["--noise-multiplier", "1", "--sampling-rate", "1.5", "--steps", "1"], "sampling_rate"),
        (["--noise-multiplier", "nan", "--sampling-rate", "0.1", "--steps", "1"], "noise_multiplier"),
        (["--noise-multiplier", "1", "--sampling-rate", "1/0", "--steps", "1"], "options"),
        (["--noise-multiplier", "1"], "--sampling-rate"),
    ],
)
def test_epsilon_of_impossible_values_is_bad_input(arguments, words):
    """Zero noise, a rate above 1, NaN: exit code 2 and the name of the figure."""
    done = discreet("epsilon", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_delta_too_small_to_compute_with_is_refused():
    """Below 1e-10 rounding decides: no figure is given."""
    done = discreet("epsilon", "--noise-multiplier", "1", "--sampling-rate", "0.1", "--steps", "1", "--delta", "1e-12")
    assert done.returncode == 1
    assert "1e-10" in done.stderr


def test_init_writes_a_scenario_that_plans(tmp_path):
    """A newcomer's first two commands work, and init overwrites nothing."""
    assert discreet("init", tmp_path / "study").returncode == 0
    scenario = tmp_path / "study" / "scenario.toml"
    assert load(scenario) == load(DIGITS)
    assert discreet("plan", scenario, "--json").returncode == 0
    again = discreet("init", tmp_path / "study")
    assert again.returncode == 2
    assert "scenario.toml" in again.stderr


def test_plan_states_what_each_client_will_spend():
    """With spares at most epsilon, without them a little less; the other accountants agree with --check."""
    table = json.loads(discreet("plan", DIGITS, "--check", "--json").stdout)
    (account,) = table["accounts"]
    assert (account["clients"], account["records"], account["participations"], account["reserved"]) == (
        10,
        143,
        120,
        122,
    )
    assert account["sampling_rate"] == 72 / 143
    assert 7.98 < account["epsilon_reserved"] <= 8.0
    assert 7.8 < table["epsilon"]["max"] < account["epsilon_reserved"]
    assert account["check"]["pld"] == account["epsilon_reserved"] <= account["check"]["rdp"]


def test_plan_refuses_to_exceed_the_budget():
    """A plan that needs more than the lifetime budget exits with 1 and both figures."""
    done = discreet("plan", DIGITS, "--set", "privacy.budget=4")
    assert done.returncode == 1
    assert "7.99" in done.stderr
    assert "4.000" in done.stderr


BAD = {
    "unknown key": (["--set", "privacy.epsilno=3"], "did you mean privacy.epsilon"),
    "unknown table": (["--set", "prvacy.epsilon=3"], "did you mean privacy"),
    "wrong type": (["--set", "run.rounds=many"], "run.rounds"),
    "epsilon not above 0": (["--set", "privacy.epsilon=0"], "privacy.epsilon"),
    "epsilon NaN": (["--set", "privacy.epsilon=nan"], "privacy.epsilon"),
    "delta above 1/N": (["--set", "privacy.delta=0.01"], "1/143"),
    "cohort above clients": (["--set", "server.cohort=11"], "server.cohort"),
    "clip of 0": (["--set", "privacy.max_grad_norm=0"], "privacy.max_grad_norm"),
    "batch above records": (["--set", "training.batch_size=144"], "training.batch_size"),
    "batch normalisation": (["--set", "model.normalization=batch"], "model.normalization"),
    "more clients than records": (
        ["--set", "data.clients=1438", "--set", "server.cohort=10", "--set", "training.batch_size=1"],
        "data.clients",
    ),
    "no natural partition": (["--set", "data.partition=natural"], "data.partition"),
    "image model for text": (["--set", "data.dataset=sms-spam"], "model.name"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_error_and_writes_nothing(case, tmp_path):
    """Exit code 2, one line that names the key, no traceback, no run folder."""
    overrides, words = BAD[case]
    done = discreet("simulate", DIGITS, "--out", tmp_path / "run", *overrides, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_missing_data_set_names_the_file_that_was_expected(tmp_path):
    """The error says which file belongs where, and nothing is written."""
    done = discreet("simulate", MNIST, "--out", tmp_path / "run", cwd=tmp_path, DISCREET_DATA=str(tmp_path / "data"))
    assert done.returncode == 2
    assert str(tmp_path / "data" / "mnist" / "train-images-idx3-ubyte.gz") in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_missing_scenario_says_how_to_get_one(tmp_path):
    """The remedy is in the message."""
    done = discreet("simulate", tmp_path / "none.toml")
    assert done.returncode == 2
    assert "discreet init" in done.stderr


def test_a_folder_that_is_not_empty_is_not_overwritten(tmp_path):
    """A run never mixes with what is there."""
    (tmp_path / "kept.txt").write_text("kept")
    done = discreet("simulate", DIGITS, "--out", tmp_path)
    assert done.returncode == 2
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


@pytest.mark.parametrize("name", sorted(path.name for path in DIGITS.parent.glob("*.toml")))
def test_every_shipped_scenario_reads(name):
    """The scenarios that come with Discreet are valid and say what they are."""
    path = DIGITS.parent / name
    assert load(path).run.name
    assert path.read_text().startswith("# ")
