"""A data owner's node that kills itself in the middle of an order; `test_crashes` runs it as a program of its own.

    python crashing_node.py FOLDER '{"calls": [0.1, 0.5], "times": [0.3]}'

Everything is imported and warmed up once. Then, for each point, a fork of this process carries out two orders through
the real Flower app and is killed there by SIGKILL: by itself at a share of all Python and C calls that the project's
own code makes, or from outside at a share of the time. A second fork, where nothing is counted, is then asked for the
same orders again and for more, until it refuses. A line of JSON says what happened.
"""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from client import policy
from client.app import app
from common import flat
from common.config import parse
from common.ledger import Ledger
from common.messages import Order
from common.models.registry import build
from common.privacy.plan import make_plan
from common.shards import Shard, open_shard, write_shards
from common.tasks import TASKS
from common.wire import encode_order
from simulations.engine.executors import identify

ROOT = Path(policy.__file__).parents[1]
OURS = tuple(str(ROOT / room) for room in ("client", "common"))
READS = open_shard.__code__  # where the records come from
RECORDS = 40
ROUNDS = (1, 2)  # before the crash; the plan has a spare one
TEXT = """
run = {name = "x", rounds = 2}
data = {dataset = "digits", clients = 1}
training = {batch_size = 10, local_steps = 1}
server = {spare_rounds = 1}
privacy = {epsilon = 8.0}
"""
POLICY = f"""
version = 2
owner = "St Mary's"
data = {{lineage = "digits", version = "1", records = {RECORDS}, unit = "record"}}
budget = {{adjacency = "zero-out", delta = 1e-5, epsilon = 20.0}}
limits = {{min_noise_multiplier = 0.1, max_grad_norm = 10.0, max_steps_per_round = 10}}
"""
SCENARIO = parse(TEXT)
PLAN = make_plan(SCENARIO, records=(RECORDS,), run="r")


def make_node(folder: Path) -> None:
    """Write one organisation's policy, ledger and records."""
    generator = np.random.default_rng(0)
    features = generator.random((RECORDS, 1, 8, 8), dtype=np.float32)
    data = Shard(features_ND=features, labels_N=generator.integers(0, 10, RECORDS))
    write_shards(folder, train=data, test=data, indices=[np.arange(RECORDS)])
    (folder / "policy.toml").write_text(POLICY)
    Ledger.create(folder / "a.ledger").close()


def ask(folder: Path, number: int) -> str:
    """Send an order to the node; return "trained", or the word that came back."""
    weights = flat.flatten(build(SCENARIO.model, TASKS["digits"], seed=7)).numpy()
    asked = Order(run="r", round=number, attempt=1, client=0, weights_P=weights, mechanism=PLAN.mechanism(0))
    frame = encode_order(asked)
    content = RecordDict(
        {"arrays": ArrayRecord({"weights": Array(frame.array)}), "order": ConfigRecord(dict(frame.scalars))}
    )
    node = {
        "partition-id": 0,
        "shards": str(folder),
        "policy": str(folder / "policy.toml"),
        "ledger": str(folder / "a.ledger"),
    }
    reply = app(
        Message(content, dst_node_id=1, message_type="train"), Context(1, 1, node, RecordDict(), {"scenario": TEXT})
    )
    return reply.error.reason if reply.has_error() else "trained"


@contextmanager
def watched(folder: Path, number: int, count: Callable[[], None]) -> Iterator[None]:
    """Count calls of our own code, and note durably, before records are read, for which order they are."""

    def watch(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code is READS:
            note(folder / "read.txt", f"{number}\n")
        if frame.f_code.co_filename.startswith(OURS):
            count()

    sys.setprofile(watch)
    try:
        yield
    finally:
        sys.setprofile(None)


def note(path: Path, text: str) -> None:
    """Add a line to a file and wait for the disk."""
    with path.open("a") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def orders(folder: Path, *, kill_at: int | None) -> None:
    """Carry out the first orders, to the death; note how many calls there were, and how long it took."""
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1
        if calls == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    begun = time.monotonic()
    for number in ROUNDS:
        with watched(folder, number, count):
            word = ask(folder, number)
        note(folder / "answered.txt", f"{number} {word}\n")
    note(folder / "done.json", json.dumps({"calls": calls, "seconds": time.monotonic() - begun}))


def again(folder: Path) -> None:
    """Send the same orders once more, and then new ones until the budget is spent."""
    for number in (*ROUNDS, *range(len(ROUNDS) + 1, 20)):
        with watched(folder, number, lambda: None):
            word = ask(folder, number)
        note(folder / "again.txt", f"{number} {word}\n")
        if word == "budget-spent":
            return


def forked(work: Callable[[], None], *, kill_after_s: float | None = None) -> int:
    """Do something in a fork of this process; return its exit status, or minus the signal that ended it."""
    process = os.fork()
    if process == 0:
        status = 70
        with suppress(BaseException):
            work()
            status = 0
        os._exit(status)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def main(folder: Path, points: dict[str, list[float]]) -> None:
    """Kill and ask again at every point; print what happened."""
    torch.set_num_threads(1)  # threads do not survive a fork
    identify()
    for name in ("template", "warm"):
        (folder / name).mkdir()
        make_node(folder / name)
    again(folder / "warm")
    shutil.copytree(folder / "template", folder / "whole")
    assert forked(lambda: orders(folder / "whole", kill_at=None)) == 0
    whole = json.loads((folder / "whole" / "done.json").read_text())
    nodes = []
    for kind, shares in points.items():
        for share in shares:
            node = folder / f"{kind}-{share:.4f}"
            shutil.copytree(folder / "template", node)
            if kind == "calls":
                ended = forked(lambda: orders(node, kill_at=int(share * whole["calls"])))  # noqa: B023 - done at once
            else:
                work = lambda: orders(node, kill_at=None)  # noqa: B023, E731 - done at once
                ended = forked(work, kill_after_s=share * whole["seconds"])
            shutil.copytree(node, folder / f"{node.name}-killed")
            asked = forked(lambda: again(node))  # noqa: B023 - done at once
            nodes.append({"node": node.name, "ended": ended, "asked": asked})
    sys.stdout.write(json.dumps(whole | {"nodes": nodes}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
