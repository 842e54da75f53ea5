"""Clients on Ray: a run's bits, its charges, and what the death of an actor costs; on one machine, on loopback.

Ray takes seconds to start: what joins a cluster shares one. Without the extra only its absence is tested.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from importlib import metadata
from pathlib import Path

import pytest
from fake_clients import SECRET, message_to, words
from flwr.app import Message, UserConfig
from ledger_reader import charged, settled
from safetensors.torch import load_file

from common.config import parse
from common.errors import BadInputError, RunFailedError, ScenarioError
from common.transparency.export import read
from common.transparency.verification import verify
from server.observer import Observer
from simulations.engine.executors import identify
from simulations.engine.grid import InProcessGrid
from simulations.engine.ray_actors import MAX_DEATHS, RayActors
from simulations.single_run import simulate

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
PATIENCE_S = 60
SMALL = """
run = {name = "small", rounds = 2}
data = {dataset = "digits", clients = 6, partition = "dirichlet"}
model = {name = "cnn", channels = [8, 16, 16], dense = 32}
training = {batch_size = 16, local_steps = 2}
engine = {kind = "ray", workers = 2, device = "cpu"}
"""
NONE = SMALL + 'privacy = {unit = "none"}\n'
RECORD = SMALL.replace(', partition = "dirichlet"', "") + "privacy = {epsilon = 8.0}\n"


def has_ray() -> bool:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return bool(metadata.version("ray"))
    return False


needs_ray = pytest.mark.skipif(not has_ray(), reason="needs the extra: make test-ray")


# --- without the extra ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(has_ray(), reason="the extra is installed")
def test_missing_extra_is_one_error_that_names_it(tmp_path):
    """Exit code 2, the key, what to type; and nothing is written."""
    with pytest.raises(BadInputError, match=r"engine\.kind: .*'.\[ray\]'") as caught:
        simulate(parse(NONE), out=tmp_path / "run", ledger=None, watcher=Observer())
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("address", ["", "here", "ray://10.0.0.1:10001", "10.0.0.1", "host:", "host:123456"])
def test_address_that_is_none_is_refused(address):
    """A cluster is named as local, auto or host:port; Ray's client protocol is none of them."""
    with pytest.raises(ScenarioError, match=r"engine\.ray_address"):
        parse(NONE.replace("engine = {", f'engine = {{ray_address = "{address}", '))


@pytest.mark.parametrize("address", ["local", "auto", "10.0.0.1:6379", "head.example.org:6379", "[::1]:6379"])
def test_address_of_a_cluster_is_kept(address):
    """What names a cluster reaches Ray as it is."""
    scenario = parse(NONE.replace("engine = {", f'engine = {{ray_address = "{address}", '))
    assert scenario.engine.ray_address == address


# --- a Ray of its own -------------------------------------------------------------------------------------------------


@needs_ray
def test_run_on_ray_is_bit_equal_to_a_sequential_one(tmp_path):
    """By the command line: every weight has the same bits, and stdout holds the figures alone."""
    (tmp_path / "s.toml").write_text(NONE)
    figures = {}
    for kind in ("ray", "sequential"):
        done = subprocess.run(
            [sys.executable, "-m", "discreet", "simulate", str(tmp_path / "s.toml"), "--set", f"engine.kind={kind}",
             "--out", str(tmp_path / kind), "--json"],
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        figures[kind] = json.loads(done.stdout)["metrics"]
    assert figures["ray"] == figures["sequential"]
    one, other = (load_file(tmp_path / kind / "model.safetensors") for kind in figures)
    assert {name: value.numpy().tobytes() for name, value in one.items()} == {
        name: value.numpy().tobytes() for name, value in other.items()
    }


# --- a cluster that is there already ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[str]:
    """The address of a Ray of one node that somebody else started, on loopback, on a port of its own."""
    folder = Path(tmp_path_factory.mktemp("r"))
    quiet = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    head = subprocess.Popen(
        [BIN / "ray", "start", "--head", "--block", "--port=0", "--num-cpus=2", "--include-dashboard=false",
         f"--temp-dir={folder}"],
        env=os.environ | quiet, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield address_in(folder, head)
    finally:
        head.terminate()
        head.wait(PATIENCE_S)


def address_in(folder: Path, head: subprocess.Popen[bytes]) -> str:
    """Where a head that is starting listens, once it says so."""
    deadline = time.monotonic() + PATIENCE_S
    while not (folder / "ray_current_cluster").exists():
        assert head.poll() is None, "ray start failed"
        assert time.monotonic() < deadline, "ray start takes too long"
        time.sleep(0.1)
    address = (folder / "ray_current_cluster").read_text().strip()
    assert address.startswith("127.0.0.1:")
    return address


def settings() -> dict[str, str]:
    """What of the environment concerns Ray."""
    return {name: value for name, value in os.environ.items() if name.startswith("RAY") or name == "PYTHONPATH"}


def wait_until_it_listens(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait for a server on loopback."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        assert process.poll() is None, "it ended"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.2)


def joined(cluster: str, *, count: int = 2, run_config: UserConfig | None = None) -> RayActors:
    identify()  # as a grid does: without it no message is made
    return RayActors("fake_clients:app", run_config or {}, address=cluster, count=count, most=9, on_gpu=False)


def send(actors: RayActors, messages: Iterable[Message]) -> dict[int, Message]:
    """Return the answers by node."""
    grid = InProcessGrid(clients=9, executor=actors, node_config=lambda client: {"partition-id": client}, budget=None)
    return {reply.metadata.src_node_id: reply for reply in grid.send_and_receive(messages, timeout=PATIENCE_S)}


def when_all_are_ready(actors: RayActors, count: int = 2) -> dict[str, set[float]]:
    """What the actors' processes say of themselves, once there are `count`."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        replies = send(actors, [message_to(node, "facts") for node in range(1, 10)])
        records = [reply.content.metric_records["metrics"] for reply in replies.values() if not reply.has_error()]
        facts = {name: {float(str(record[name])) for record in records} for name in ("pid", "threads")}
        if len(facts["pid"]) == count:
            return facts
        assert time.monotonic() < deadline, facts


@needs_ray
def test_private_run_on_a_cluster_is_charged_whole(cluster, tmp_path):
    """Two rounds of six clients: each order was charged and carried out, and the ledger is whole."""
    text = RECORD.replace("engine = {", f'engine = {{ray_address = "{cluster}", ')
    outcome = simulate(parse(text), out=tmp_path / "run", ledger=None, watcher=Observer())
    assert (outcome.rounds, outcome.client_updates) == (2, 12)
    ledger = tmp_path / "run" / "ledger.db"
    names = [f"digits/client-{client:06d}" for client in range(6)]
    assert charged(ledger) == [(number, 1, name) for number in (1, 2) for name in names]
    assert {entry for entry in settled(ledger) if entry[1]} == {
        ("COMMIT", n, 1, name) for n in (1, 2) for name in names
    }
    verify(read(ledger))


@needs_ray
def test_actor_that_is_killed_costs_its_message_only(cluster):
    """SIGKILL in the midst of client 3: the others are answered, in the next round all are, by one new actor."""
    with closing(joined(cluster)) as actors:
        before = when_all_are_ready(actors)
        assert before["threads"] == {1}
        assert os.getpid() not in before["pid"]
        replies = send(actors, [message_to(node, "die" if node == 3 else "add") for node in range(1, 8)])
        assert words(replies) == {
            1: "0.0", 2: "1.0", 3: "worker-died", 4: "3.0", 5: "4.0", 6: "5.0", 7: "6.0",
        }  # fmt: skip
        assert words(send(actors, [message_to(3), message_to(4)])) == {3: "2.0", 4: "3.0"}
        assert len(when_all_are_ready(actors)["pid"] & before["pid"]) == 1


@needs_ray
@pytest.mark.slow
def test_actor_that_is_killed_while_it_is_idle_is_replaced(cluster):
    """A signal from outside, between two rounds: at most one message is lost to it."""
    with closing(joined(cluster)) as actors:
        os.kill(int(max(when_all_are_ready(actors)["pid"])), signal.SIGKILL)
        found = list(words(send(actors, [message_to(node) for node in range(1, 8)])).values())
        assert len(found) == 7
        assert found.count("worker-died") <= 1
        assert len(when_all_are_ready(actors)["pid"]) == 2


@needs_ray
def test_exception_leaves_an_actor_as_one_word(cluster):
    """The text stays in the actor, which goes on."""
    with closing(joined(cluster)) as actors:
        actors.wait()
        replies = send(actors, [message_to(1, "raise"), message_to(2)])
        assert words(replies) == {1: "failed", 2: "1.0"}
        assert SECRET not in repr(replies)


@needs_ray
@pytest.mark.slow
def test_run_ends_when_actors_die_again_and_again(cluster):
    """Three deaths in a row are three lost messages; the fourth ends the run."""
    with closing(joined(cluster, count=1)) as actors:
        actors.wait()
        grid = InProcessGrid(
            clients=9, executor=actors, node_config=lambda client: {"partition-id": client}, budget=None
        )
        ids = list(grid.push_messages([message_to(node, "die") for node in range(1, 8)]))
        came: list[str | None] = []

        def pull() -> None:
            while True:
                came.extend(reply.error.reason for reply in grid.pull_messages(ids))

        with pytest.raises(RunFailedError, match="4 Ray actors died in a row"):
            pull()
        assert came == ["worker-died"] * MAX_DEATHS


@needs_ray
def test_node_that_does_not_see_the_shards_is_named_before_anybody_is_asked(cluster, tmp_path):
    """The folder is somewhere else for that node: one error says which, and what to set."""
    with (
        closing(joined(cluster, run_config={"shards": str(tmp_path / "elsewhere")})) as actors,
        pytest.raises(RunFailedError, match=r"does not see .*elsewhere.*engine\.scratch"),
    ):
        actors.wait()


@needs_ray
def test_cluster_that_was_joined_is_left_running(cluster):
    """It keeps its address and cores, no actor stays behind, and neither does a setting in this process."""
    import ray

    before = settings()
    with closing(joined(cluster, count=1)) as actors:
        actors.wait()
        assert [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]] == ["127.0.0.1"]
        assert int(ray.cluster_resources()["CPU"]) == 2
        deadline = time.monotonic() + PATIENCE_S
        while ray.available_resources().get("CPU", 0) < 1 and time.monotonic() < deadline:
            time.sleep(0.1)  # what was killed a moment ago gives its core back
        assert int(ray.available_resources()["CPU"]) == 1
    assert not ray.is_initialized()
    assert settings() == before


@needs_ray
def test_address_where_no_cluster_is_ends_the_run():
    """One error names the key and the address, at once."""
    with pytest.raises(RunFailedError, match=r"engine\.ray_address: expected a Ray cluster .* at '127\.0\.0\.1:1'"):
        joined("127.0.0.1:1")


# --- plain `flwr run` -------------------------------------------------------------------------------------------------


@needs_ray
@pytest.mark.slow
def test_flwr_run_on_a_ray_that_is_there_charges_every_order(cluster, tmp_path):
    """Flower's own runtime, a SuperLink and its simulation, as docs/ray.md has it: completed, charged, verified."""
    environment = os.environ | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(tmp_path / "flower"), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_ADDRESS": cluster, "RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }  # fmt: skip
    (tmp_path / "flower").mkdir()
    (tmp_path / "flower" / "config.toml").write_text('[superlink.here]\naddress = "127.0.0.1:39295"\ninsecure = true\n')
    link = subprocess.Popen(
        ["flower-superlink", "--insecure", "--simulation", "--disable-runtime-dependency-installation",
         "--host", "127.0.0.1", "--port", "39295"],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until_it_listens(39295, link)
        (tmp_path / "s.toml").write_text(RECORD)
        config = f'scenario="{tmp_path / "s.toml"}" folder="{tmp_path / "run"}"'
        done = subprocess.run(
            ["flwr", "run", str(ROOT / "simulations" / "flower_app"), "here", "--stream", "--run-config", config,
             "--federation-config", "num-supernodes=6 client-resources-num-cpus=1"],
            env=environment, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        listed = subprocess.run(
            ["flwr", "ls", "here", "--format", "json"], env=environment, capture_output=True, text=True, check=True,
            timeout=60,
        )  # fmt: skip
    finally:
        link.terminate()
        link.wait(PATIENCE_S)
    assert json.loads(listed.stdout)["runs"][0]["status"] == "finished:completed", done.stdout + done.stderr
    ledger = tmp_path / "run" / "ledger.db"
    names = [f"digits/client-{client:06d}" for client in range(6)]
    assert sorted(charged(ledger)) == [(number, 1, name) for number in (1, 2) for name in names]
    verify(read(ledger))
