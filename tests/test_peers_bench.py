"""Peers of the benchmark: processes that take turns, die, keep silent, or are not there."""

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent

import pytest
import torch

from common.config import parse
from common.errors import DiscreetError
from common.models.convolutional import ConvolutionalNet
from common.models.registry import build
from common.tasks import TASKS
from simulations.bench import workload as work
from simulations.bench.engine_rounds import CLIENTS, Contestant, engine
from simulations.bench.peer_process import Peer, missing_modules
from simulations.bench.peers_bench import PRIVATE, SCRIPTS, Rival, able, contest

ROOT = Path(__file__).resolve().parents[1]
PYTHON = Path(sys.executable)
OBEDIENT = f"""
    import sys
    sys.path.insert(0, {str(SCRIPTS)!r})
    from turns import Turns
    turns = Turns(clients=10)
    while turns.wait():
        print("a framework that talks")
        with open("rounds", "a") as file:
            file.write("x")
"""


@pytest.fixture
def peer(tmp_path: Path):
    """Start peers from the text of their scripts, and close them."""
    started: list[Peer] = []

    def start(script: str, **options: float) -> Peer:
        path = tmp_path / f"peer{len(started)}.py"
        path.write_text(dedent(script))
        started.append(Peer("fake", [PYTHON, path], **options))
        return started[-1]

    yield start
    for one in started:
        one.close()


def test_a_peer_answers_each_turn(peer):
    """Each turn has one round more than is asked for; what the framework prints is no answer."""
    obedient = peer(OBEDIENT)
    obedient.wait()
    rates = [obedient.turn(rounds=3), obedient.turn(rounds=2)]
    assert all(rate > 0 for rate in rates)
    assert (obedient._folder / "rounds").read_text() == "x" * (1 + 3 + 1 + 2)


def test_a_peer_that_dies_in_its_turn_is_an_error_with_its_last_words(peer):
    """Exit code and the end of its stderr are in the message."""
    dying = peer("""
        import sys
        print("ready", flush=True)
        input()
        sys.exit("no memory left")
    """)
    dying.wait()
    with pytest.raises(DiscreetError, match=r"fake: .* exit code 1.* no memory left"):
        dying.turn(rounds=3)


def test_a_peer_that_dies_at_its_start_is_an_error(peer):
    """It never says that it is ready."""
    with pytest.raises(DiscreetError, match="exit code 3"):
        peer("raise SystemExit(3)").wait()


def test_a_peer_that_keeps_silent_is_given_up(peer):
    """After `timeout_s` the contest ends with an error, and does not wait for ever."""
    with pytest.raises(DiscreetError, match=r"nothing for 0.5 s"):
        peer("input()", timeout_s=0.5).wait()


@pytest.mark.parametrize("answer", ["hello", '{"seconds": 3}', "[1]", '{"clients_per_second": null}'])
def test_an_answer_that_is_none_is_an_error(peer, answer):
    """Whatever a peer prints, it raises our error."""
    strange = peer(f"print('ready', flush=True); input(); print({answer!r})")
    strange.wait()
    with pytest.raises(DiscreetError, match="expected its clients per second"):
        strange.turn(rounds=1)


def test_nothing_of_a_peer_is_left_after_it_was_closed(peer):
    """A process that the peer started in a session of its own is ended with it."""
    parent = peer("""
        import subprocess, sys
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        print("ready", flush=True)
        input()
    """)
    parent.wait()
    family = parent.pids
    assert len(family) == 2
    parent.close()
    deadline = time.monotonic() + 30  # the kernel ends them when it gets to it
    while any(map(_is_running, family)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not [pid for pid in family if _is_running(pid)]


def test_ratios_of_speed_and_memory_come_from_real_turns(tmp_path: Path):
    """Both sides take as many turns; memory is measured once."""
    script = tmp_path / "obedient.py"
    script.write_text(dedent(OBEDIENT))
    rival = Rival(figure="x", at_least=2.0, needs=(), arguments=(str(script),))
    ours = Contestant(turn=lambda: 10.0, memory_mb=lambda: 7.0)
    speed, memory = contest(ours, [rival], python=PYTHON, repeats=2)
    assert (speed.name, speed.target, speed.at_least, len(speed.turns)) == ("x", 2.0, True, 2)
    assert [mine for mine, _ in speed.sides] == [10.0, 10.0]
    assert (memory.name, memory.target, memory.at_least, len(memory.turns)) == ("x_memory", 1.0, False, 1)
    assert memory.sides[0][0] == 7.0
    assert memory.sides[0][1] > 1.0  # MB: no Python is smaller


def test_without_its_environment_the_benchmark_says_how_to_make_it(tmp_path: Path):
    """Exit code 2, one line that names `make peers`, and nothing written."""
    done = subprocess.run(
        [sys.executable, "-m", "discreet", "bench", "peers", "--out", str(tmp_path / "out")],
        env=os.environ | {"DISCREET_PEERS": str(tmp_path / "nowhere")}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "make peers" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_peer_that_cannot_be_imported_is_left_out_in_one_line(capsys):
    """The others go on."""
    missing = missing_modules(PYTHON, ["json", "no_such_peer"])
    assert missing == {"no_such_peer": "No module named 'no_such_peer'"}
    here = Rival(figure="here", at_least=1.0, needs=("json",), arguments=())
    absent = Rival(figure="absent", at_least=1.0, needs=("json", "no_such_peer"), arguments=())
    assert able([absent, here], missing) == [here]
    assert capsys.readouterr().err == "absent is left out: No module named 'no_such_peer'. Run `make peers`.\n"


def test_a_python_that_does_not_start_is_an_error(tmp_path: Path):
    """As after an upgrade of the Python that the environment was made with."""
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho gone >&2; exit 127\n")
    broken.chmod(0o755)
    with pytest.raises(DiscreetError, match=r"gone.*make peers"):
        missing_modules(broken, ["json"])


def test_peers_train_the_network_that_we_train():
    """With our weights their network gives our logits, for as many clients with as many records."""
    spec = importlib.util.spec_from_file_location("cnn", SCRIPTS / "cnn.py")
    cnn = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cnn)
    scenario = parse(work.TEXT + 'privacy = {unit = "none"}')
    ours, theirs = build(scenario.model, TASKS["mnist"], seed=7), cnn.network()
    assert isinstance(ours, ConvolutionalNet)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    images = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ours(images), theirs(images))
    assert sum(p.numel() for p in theirs.parameters()) == 93_322
    assert (CLIENTS, work.RECORDS, scenario.training.batch_size) == (cnn.CLIENTS, cnn.RECORDS, cnn.BATCH)
    assert scenario.training.learning_rate == cnn.LEARNING_RATE
    assert cnn.BATCH * scenario.training.local_steps == cnn.RECORDS


def test_peers_have_our_versions_of_what_both_use():
    """Else versions would be compared, not frameworks."""
    ours, theirs = (
        dict(line.split("==") for line in path.read_text().splitlines() if "==" in line)
        for path in (ROOT / "constraints.txt", SCRIPTS / "constraints.txt")
    )
    assert {name: theirs[name] for name in ("torch", "flwr", "opacus", "numpy")} == {
        name: ours[name] for name in ("torch", "flwr", "opacus", "numpy")
    }


def test_each_rival_has_a_script():
    """A figure without one would fail only after minutes."""
    scripts = {argument for rival in PRIVATE for argument in rival.arguments if argument.endswith(".py")}
    assert all(Path(script).is_file() for script in scripts)


@pytest.mark.parametrize("privacy", ['{unit = "none"}', "{noise_multiplier = 1.0, budget = 1000.0}"])
def test_our_own_contestant_runs_whole_rounds(privacy):
    """Two turns of one round and one, as many as the plan has room for."""
    with engine(privacy, turns=2, rounds=1, clients=4) as ours:
        assert ours.turn() > 0
        assert ours.turn() > 0
        assert ours.memory_mb() > 1.0


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
