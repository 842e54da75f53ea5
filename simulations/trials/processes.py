"""Processes of `discreet`, started, watched and taken down.

Each one's output is kept in a file. It is ready when it says so in a line of its own.
"""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from common.errors import RunFailedError

POLL_S = 0.02
STOP_S = 8.0
READY = "ready:"
COMMAND = ("-m", "discreet")


@dataclass(frozen=True, kw_only=True)
class Started:
    """A process: its name, where its output goes, and when it was started."""

    name: str
    process: "subprocess.Popen[bytes]"
    output: Path
    errors: Path
    begun: float

    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None

    def kill(self) -> None:
        """Kill it as a lack of memory would: at once, with no warning."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Ask it to end, and return its exit code; it is killed when it does not end in time."""
        if self.is_alive():
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.process.wait()

    def said(self) -> str:
        """All that it has written so far."""
        return self.output.read_text(errors="replace") + self.errors.read_text(errors="replace")

    def memory_mb(self) -> float:
        """Its resident memory at this moment, in units of 10^6 bytes; 0 when it is gone."""
        return resident_mb(self.process.pid)


def start(name: str, *arguments: str, logs: Path, command: tuple[str, ...] = COMMAND) -> Started:
    """Start `python -m discreet ARGUMENTS`, or another command of Python's, in a process of its own.

    What an earlier process of this name has written stays: the next one's files are NAME-2.log and so on.
    """
    times = 1 + sum(len(list(logs.glob(f"{name}{ending}.out"))) for ending in ("", "-[0-9]*"))
    file = name if times == 1 else f"{name}-{times}"
    output, errors = logs / f"{file}.out", logs / f"{file}.log"
    with output.open("wb") as out, errors.open("wb") as err:
        process = subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, *command, *arguments], stdout=out, stderr=err, stdin=subprocess.DEVNULL, env=_environment()
        )
    return Started(name=name, process=process, output=output, errors=errors, begun=time.monotonic())


def wait_ready(started: Started, *, within_s: float) -> float:
    """Wait until a process says that it is ready, and return after how many seconds; RunFailedError when it is not."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if any(line.startswith(READY) for line in started.output.read_text(errors="replace").splitlines()):
            return time.monotonic() - started.begun
        if not started.is_alive():
            raise RunFailedError(f"{started.name} ended before it was ready: {_last_words(started)}")
        time.sleep(POLL_S)
    raise RunFailedError(f"{started.name} was not ready within {within_s:.0f} s: {_last_words(started)}")


def resident_mb(pid: int) -> float:
    """A process's resident memory in units of 10^6 bytes; 0 when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    lines = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(lines[0].split()[1]) * 1024 / 1e6 if lines else 0.0


def children(pid: int) -> list[int]:
    """The processes that a process has started and that still run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            continue
        if parent == pid:
            found.append(int(folder.name))
    return found


def _environment() -> dict[str, str]:
    """Ours, with one thread for each process: organisations that share a machine would fight for its cores."""
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **quiet, "OMP_NUM_THREADS": "1"}


def _last_words(started: Started) -> str:
    lines = [line for line in started.said().splitlines() if line.strip()]
    return " / ".join(lines[-3:]) if lines else "it said nothing"
