"""Worker processes: the same bits as in one process, and what a death costs.

Each worker imports torch, which takes seconds: tests that do not kill one share a pair.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from fake_clients import SECRET, message_to, words
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from safetensors.torch import load_file

from common.config import parse
from common.errors import RunFailedError
from server.observer import Observer
from simulations.engine.executors import Sequential
from simulations.engine.grid import InProcessGrid
from simulations.engine.workers import MAX_DEATHS, SLOTS, Workers
from simulations.single_run import simulate

APP = "fake_clients:app"
SHARED = Path("/dev/shm")  # noqa: S108 - where Linux keeps shared memory
PATIENCE_S = 30

T = TypeVar("T")


def grid_of(workers: Workers | Sequential, clients: int = 9) -> InProcessGrid:
    return InProcessGrid(
        clients=clients, executor=workers, node_config=lambda client: {"partition-id": client}, budget=None
    )


def send(workers: Workers, messages: Iterable[Message]) -> dict[int, Message]:
    """Return the answers by node."""
    replies = grid_of(workers).send_and_receive(messages, timeout=60)
    return {reply.metadata.src_node_id: reply for reply in replies}


class Recording(Workers):
    """Notes the names of all shared memory that it ever made; other processes have theirs in the same place."""

    def __init__(self, app: str, *, count: int) -> None:
        self.made: set[str] = set()
        super().__init__(app, {}, count=count)

    def _ask(self, worker: Any, *arguments: Any) -> None:
        super()._ask(worker, *arguments)
        self.made |= {slot.name.lstrip("/") for slot in worker.slots}

    def _lay_out(self, content: RecordDict) -> Any:
        parcel = super()._lay_out(content)
        self.made.add(parcel.block.lstrip("/"))
        return parcel

    def left(self) -> set[str]:
        return {name for name in self.made if (SHARED / name).exists()}


def pids(workers: Workers) -> set[int]:
    return {worker.process.pid for worker in workers._workers if worker.process.pid is not None}


@pytest.fixture(scope="module")
def pair() -> Iterator[Workers]:
    with closing(Workers(APP, {}, count=2)) as workers:
        workers.wait()
        yield workers


# --- equal to one process ---------------------------------------------------------------------------------------------


def test_parallel_run_is_bit_equal_to_a_sequential_one(tmp_path):
    """The real app over six clients and two rounds of a plain scenario: every weight has the same bits."""
    threads = torch.get_num_threads()
    try:
        for kind in ("sequential", "parallel"):
            scenario = parse(
                'run = {name = "x", rounds = 2}\ndata = {dataset = "digits", clients = 6, partition = "dirichlet"}\n'
                'model = {name = "cnn", channels = [8, 16, 16], dense = 32}\ntraining = {batch_size = 16}\n'
                f'privacy = {{unit = "none"}}\nengine = {{kind = "{kind}", workers = 2, device = "cpu"}}'
            )
            simulate(scenario, out=tmp_path / kind, ledger=None, watcher=Observer())
    finally:
        torch.set_num_threads(threads)
    one, other = (load_file(tmp_path / kind / "model.safetensors") for kind in ("sequential", "parallel"))
    assert {name: value.numpy().tobytes() for name, value in one.items()} == {
        name: value.numpy().tobytes() for name, value in other.items()
    }
    tables = [(tmp_path / kind / "rounds.csv").read_text().splitlines() for kind in ("sequential", "parallel")]
    first, second = ([line.split(",")[:7] for line in table] for table in tables)  # without the seconds
    assert first == second
    assert len(first) == 3


def test_answers_are_those_of_one_process(pair):
    """Records of every kind come back as the app in this process answers them."""
    here = words(send_here([message_to(node) for node in (4, 1, 9)]))
    assert words(send(pair, [message_to(node) for node in (4, 1, 9)])) == here == {1: "0.0", 4: "3.0", 9: "8.0"}


def send_here(messages: Iterable[Message]) -> dict[int, Message]:
    replies = grid_of(Sequential(APP, {})).send_and_receive(messages)
    return {reply.metadata.src_node_id: reply for reply in replies}


def test_each_message_has_a_record_of_its_own(pair):
    """What one client writes into a record, no client that the same worker serves finds."""
    shared = RecordDict(message_to(1, "scribble").content)
    shared["config"] = ConfigRecord({"behaviour": "scribble", "list": [1]})
    shared["numbers"] = send(pair, [message_to(1)])[1].content["metrics"]
    replies = send(pair, [Message(shared, node, "train") for node in range(1, 8)])
    assert len(replies) == 7
    for reply in replies.values():
        record = reply.content.metric_records["metrics"]
        assert {record[f"{kind}_touched"] for kind in ("config", "list", "metrics", "arrays")} == {0}


def test_messages_with_different_arrays_do_not_mix(pair):
    """Two models on their way at once, of different sizes: each client gets its own."""
    messages = []
    for node in range(1, 8):
        content = RecordDict(
            {
                "arrays": ArrayRecord({"weights": Array(np.full(node * 1000, 100 * node, np.float32))}),
                "config": ConfigRecord({}),
            }
        )
        messages.append(Message(content, node, "train"))
    replies = send(pair, messages)
    for node, reply in replies.items():
        weights = reply.content.array_records["arrays"]["weights"].numpy()
        assert weights.shape == (node * 1000,)
        assert (weights == 100 * node + node - 1).all()
    assert sorted(replies) == list(range(1, 8))


def test_workers_are_other_processes_with_one_thread_each(pair):
    """Both workers are at work, neither is this process, and each has one thread."""
    replies = send(pair, [message_to(node, "facts") for node in range(1, 10)])
    records = [reply.content.metric_records["metrics"] for reply in replies.values()]
    assert {record["pid"] for record in records} <= pids(pair)
    assert os.getpid() not in pids(pair)
    assert {record["threads"] for record in records} == {1}


def test_workers_inherit_no_random_state(pair):
    """Of nine draws from the workers' global generators no two agree, as those of two forked workers would."""
    replies = send(pair, [message_to(node, "facts") for node in range(1, 10)])
    records = [reply.content.metric_records["metrics"] for reply in replies.values()]
    assert len({record["draw"] for record in records}) == 9
    assert {worker.process._start_method for worker in pair._workers} == {"forkserver"}  # type: ignore[attr-defined]


def test_ctrl_c_is_the_parent_s_business(pair):
    """An interrupt that the terminal sends to the whole group kills no worker."""
    before = pids(pair)
    for pid in before:
        os.kill(pid, signal.SIGINT)
    assert words(send(pair, [message_to(node) for node in (1, 2, 3, 4)])) == {1: "0.0", 2: "1.0", 3: "2.0", 4: "3.0"}
    assert pids(pair) == before


def test_a_worker_has_two_slots(pair):
    """There is room for two messages a worker, so that it never waits for the coordinator, and for no more."""
    for taken in range(2 * SLOTS):
        assert pair.has_room(), taken
        pair.submit(identified(message_to(taken + 1)), {"partition-id": taken}, RecordDict())
    assert not pair.has_room()
    came: list[Message] = []
    while len(came) < 2 * SLOTS:
        came += pair.answers(PATIENCE_S)
    assert pair.has_room()


def identified(message: Message) -> Message:
    """Give a message an id, as a grid does."""
    message.metadata.__dict__["_message_id"] = str(message.metadata.dst_node_id)
    return message


def test_exception_of_an_app_leaves_as_one_word(pair):
    """The text stays in the worker, which goes on."""
    before = pids(pair)
    replies = send(pair, [message_to(1, "raise"), message_to(2)])
    assert words(replies) == {1: "failed", 2: "1.0"}
    assert SECRET not in repr(replies)
    assert pids(pair) == before


def test_reply_larger_than_its_slot_is_an_error_reply(pair):
    """Four megabytes in a slot for sixteen bytes: the client failed, its worker lives, the others are answered."""
    before = pids(pair)
    replies = send(pair, [message_to(1), message_to(2, "grow"), message_to(3), message_to(4)])
    assert words(replies) == {1: "0.0", 2: "failed", 3: "2.0", 4: "3.0"}
    assert pids(pair) == before


# --- deaths -----------------------------------------------------------------------------------------------------------


def test_worker_that_dies_costs_its_message_only():
    """A worker killed while it trains client 3 loses that answer only, is replaced, and leaves no shared memory."""
    with closing(Recording(APP, count=2)) as workers:
        workers.wait()
        before = pids(workers)
        replies = send(workers, [message_to(node, "die" if node == 3 else "add") for node in range(1, 8)])
        assert words(replies) == {
            1: "0.0", 2: "1.0", 3: "worker-died", 4: "3.0", 5: "4.0", 6: "5.0", 7: "6.0",
        }  # fmt: skip
        after = pids(workers)
        assert len(after) == 2
        assert len(after & before) == 1
        assert words(send(workers, [message_to(3), message_to(4)])) == {3: "2.0", 4: "3.0"}
        assert workers.left()
    assert len(workers.made) > 2 * SLOTS  # the dead worker's slots too
    assert workers.left() == set()


def test_run_ends_when_workers_die_again_and_again():
    """Three deaths in a row are three lost messages; the fourth ends the run with a remedy, and nothing is left."""
    with closing(Recording(APP, count=1)) as workers:
        grid = grid_of(workers)
        ids = list(grid.push_messages([message_to(node, "die") for node in range(1, 8)]))
        came: list[str | None] = []

        def pull() -> None:
            while True:
                came.extend(reply.error.reason for reply in grid.pull_messages(ids))

        with pytest.raises(RunFailedError, match=r"4 worker processes died in a row \(exit code -9\).*engine\.workers"):
            pull()
        assert came == ["worker-died"] * MAX_DEATHS
    assert len(workers.made) >= (MAX_DEATHS + 1) * SLOTS
    assert workers.left() == set()


ORPHANS = """
import sys, time
from fake_clients import message_to
from simulations.engine.grid import InProcessGrid
from simulations.engine.workers import Workers

workers = Workers("fake_clients:app", {}, count=2)
workers.wait()
grid = InProcessGrid(clients=2, executor=workers, node_config=lambda client: {"partition-id": client})
ids = list(grid.push_messages([message_to(1, "sleep", seconds=1.0)]))
grid.pull_messages(ids)
print(*(worker.process.pid for worker in workers._workers), flush=True)
print(*workers._blocks, *(slot.name for worker in workers._workers for slot in worker.slots), flush=True)
time.sleep(600)
"""


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be buried does not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def wait_until_over(what: Iterable[T], is_there: Callable[[T], bool]) -> list[T]:
    """Return what is still there when patience ends."""
    deadline = time.monotonic() + PATIENCE_S
    left = list(what)
    while left and time.monotonic() < deadline:
        left = [one for one in left if is_there(one)]
        time.sleep(0.05)
    return left


def test_workers_end_when_the_parent_is_killed():
    """A SIGKILL of the parent, which can tidy nothing up, ends an idle and a busy worker and frees the memory."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHANS],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with parent:
        assert parent.stdout is not None
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        memory = [SHARED / name.lstrip("/") for name in parent.stdout.readline().split()]
        assert [is_alive(pid) for pid in workers] == [True, True]
        assert len(memory) == 1 + SLOTS  # the model, and the slots of the worker that was asked
        assert [path for path in memory if not path.exists()] == []
        parent.kill()
        parent.wait()
    assert wait_until_over(workers, is_alive) == []
    assert wait_until_over(memory, Path.exists) == []


def test_closing_frees_the_shared_memory_and_ends_the_workers(capfd):
    """After `close` no process and no block is left, also when a worker was busy; it complains to nobody's screen."""
    workers = Recording(APP, count=1)
    workers.wait()
    ids = pids(workers)
    for node in (1, 2):
        workers.submit(identified(message_to(node, "sleep", seconds=0.3)), {"partition-id": 0}, RecordDict())
    assert len(workers.left()) == 2 + SLOTS  # two models, and the worker's slots
    workers.close()
    assert workers.left() == set()
    assert [pid for pid in ids if is_alive(pid)] == []
    assert capfd.readouterr().err == ""


def test_environment_is_as_before_once_workers_are_started(pair):
    """The variables that make a worker single-threaded are set for the workers only."""
    del pair
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    with closing(Workers(APP, {}, count=0)):
        assert {name: os.environ.get(name) for name in names} == before
