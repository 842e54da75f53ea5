"""One organisation with its node as a process of its own, for tests."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from owner_policy import RECORDS, write_policy
from sample_consortium import SampleConsortium

from client import policy as policies

ROOT = Path(__file__).parents[1]
SCENARIO = """
run = {name = "x", rounds = 3, purpose = "a trial of the node"}
data = {dataset = "digits", clients = 3}
training = {batch_size = 10, local_steps = 1}
server = {spare_rounds = 2}
privacy = {epsilon = 4.0}
"""
_MAIN = """
import sys
import typer
from client.commands import node
from common.errors import DiscreetError
app = typer.Typer(pretty_exceptions_enable=False)
node.mount(app)
if __name__ == "__main__":
    try:
        app()
    except DiscreetError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
"""


@dataclass
class Organisation:
    """A folder with everything that `discreet join` needs; `number` is its place among the owners."""

    folder: Path
    number: int

    @property
    def policy(self) -> Path:
        return self.folder / "policy.toml"

    @property
    def ledger(self) -> Path:
        return self.folder.parent / f"owner-{self.number}.db"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def digest(self) -> str:
        """SHA-256 of its policy."""
        return policies.load(self.policy).digest

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one of the person's verbs."""
        return subprocess.run(
            [sys.executable, "-c", _MAIN, *arguments, "--policy", str(self.policy)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )


def make(
    consortium: SampleConsortium, link: str, *, number: int = 0, records: int = RECORDS, **policy: object
) -> Organisation:
    """Put policy, settings and data beside an owner's identity."""
    folder = consortium.owners[number].folder
    write_policy(folder / "policy.toml", **policy)
    generator = np.random.default_rng(number)
    features = generator.random((records, 1, 8, 8), dtype=np.float32)
    np.savez(folder / "data.npz", features=features, labels=generator.integers(0, 10, records))
    (folder / "node.toml").write_text(
        f'identity = "."\nlink = "{link}"\nledger = "../owner-{number}.db"\ntrain_timeout_s = 60.0\n'
        f'[data]\nkind = "npz"\npath = "data.npz"\n'
    )
    return Organisation(folder=folder, number=number)


class Node:
    """A node that runs."""

    def __init__(self, organisation: Organisation, **environment: str) -> None:
        self.begun = time.monotonic()
        self.ready_s: float | None = None
        self.log: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-c", _MAIN, "join", "--policy", str(organisation.policy)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )
        self._ready = threading.Event()
        for stream, take in ((self.process.stdout, self._take_output), (self.process.stderr, self.log.append)):
            threading.Thread(target=_follow, args=(stream, take), daemon=True).start()

    def wait_ready(self, within_s: float = 60.0) -> "Node":
        """Wait for the line that says so."""
        deadline = time.monotonic() + within_s
        while not self._ready.wait(0.05):
            assert self.process.poll() is None, "".join(self.log)
            assert time.monotonic() < deadline, "".join(self.log)
        return self

    def wait_line(self, text: str, within_s: float = 30.0) -> str:
        """Wait for a line of its log that has this text."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            found = [line for line in list(self.log) if text in line]
            if found:
                return found[0]
            time.sleep(0.05)
        raise AssertionError(f"no line with {text!r} in:\n" + "".join(self.log))

    def children(self) -> list[int]:
        """Its training process: the child that is not the one of Python's book-keeping."""
        path = Path(f"/proc/{self.process.pid}/task")
        found = {int(child) for task in path.iterdir() for child in (task / "children").read_text().split()}
        return [child for child in found if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]

    def stop(self) -> tuple[int, float]:
        """Ask it to stop; return its exit status and how long that took."""
        begun = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(timeout=20)
        return status, time.monotonic() - begun

    def kill(self) -> None:
        """Let it end like a power cut."""
        self.process.kill()
        self.process.wait()

    def _take_output(self, line: str) -> None:
        if line.startswith("ready: "):
            self.ready_s = time.monotonic() - self.begun
            self._ready.set()


def _follow(stream: IO[str], take: Callable[[str], object]) -> None:
    """Pass on each line until the process is gone."""
    with stream:
        for line in stream:
            take(line)


@contextmanager
def running(organisation: Organisation, **environment: str) -> Iterator[Node]:
    """A node that is ready, and gone afterwards."""
    node = Node(organisation, **environment)
    try:
        yield node.wait_ready()
    finally:
        if node.process.poll() is None:
            node.kill()


def resident_mib(process: int) -> float:
    """How much memory a process holds now."""
    status = Path(f"/proc/{process}/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS"))
