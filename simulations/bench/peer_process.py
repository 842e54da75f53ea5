"""A peer's process: another framework in an environment of its own, which takes turns when it is told to.

    peer = Peer("pfl", [python, "pfl_torchrun.py"])
    peer.wait()              until it has started
    peer.turn(rounds=3)      clients a second
    peer.close()

The other side of the conversation is `peers/turns.py`.
"""

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from common.errors import BadInputError, DiscreetError
from simulations.bench.memory import family

VARIABLE = "DISCREET_PEERS"
TIMEOUT_S = 600.0
CLOSING_S = 30.0
POLL_S = 0.5
LAST_LINES = 5
_ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # by which Ray listens on loopback alone
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0",  # torchrun's processes meet on loopback
}
_TRY_IMPORTS = """
import importlib, json, sys
missing = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError as error:
        missing[name] = str(error)
print(json.dumps(missing))
"""


def interpreter() -> Path:
    """Return the Python of the peers' environment; BadInputError when there is none."""
    folder = Path(os.environ.get(VARIABLE) or Path(__file__).parents[2] / ".venv-peers")
    python = folder.absolute() / "bin" / "python"  # not resolved: a link into an environment says which it is
    if not python.exists():
        raise BadInputError(
            f"bench peers: expected the peers' environment in {folder}, got no {python}. Make it with `make peers`, or "
            f"name another in {VARIABLE}."
        )
    return python


def missing_modules(python: Path, names: Sequence[str]) -> dict[str, str]:
    """Return which of these modules that Python cannot import, and why."""
    command = [str(python), "-c", _TRY_IMPORTS, *names]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)  # noqa: S603 - the user's own environment
    if done.returncode != 0:
        raise DiscreetError(f"{python}: expected to import modules, got: {_end(done.stderr)}. Run `make peers` again.")
    missing: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return missing


class Peer:
    """One peer. It starts at once, and waits between its turns.

    Guarantees:
        A peer that ends, or says nothing for `timeout_s`, raises DiscreetError with what it said last.
        After `close` each of its processes has ended or was killed.
    """

    def __init__(self, name: str, command: Sequence[str | Path], *, timeout_s: float = TIMEOUT_S) -> None:
        self._name, self._timeout_s = name, timeout_s
        self._folder = Path(tempfile.mkdtemp(prefix="peer-", dir="/tmp"))  # Ray's sockets need a short path
        with (self._folder / "stderr").open("w") as log:
            self._process = subprocess.Popen(  # noqa: S603 - the user's own environment
                command, cwd=self._folder, env=_environment(), text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True,
            )  # fmt: skip
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("both are pipes")
        self._questions, self._answers = self._process.stdin, self._process.stdout

    @property
    def pids(self) -> list[int]:
        """Its processes."""
        return family(self._process.pid)

    def wait(self) -> None:
        """Wait until it is ready for its first turn."""
        line = self._line()
        if line != "ready":
            raise DiscreetError(f"{self._name}: expected 'ready', got '{line}'.")

    def turn(self, *, rounds: int) -> float:
        """Let it run one round that does not count and then `rounds`; return its clients a second."""
        with contextlib.suppress(BrokenPipeError):  # it ended: the answer that does not come says so
            self._questions.write(f"{rounds}\n")
            self._questions.flush()
        line = self._line()
        try:
            return float(json.loads(line)["clients_per_second"])
        except (ValueError, KeyError, TypeError) as error:
            raise DiscreetError(f"{self._name}: expected its clients per second, got '{line}'.") from error

    def close(self) -> None:
        """End it: by the end of its input, and what is still there after a while by force."""
        pids = self.pids
        with contextlib.suppress(BrokenPipeError):
            self._questions.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(CLOSING_S)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._answers.close()
        shutil.rmtree(self._folder, ignore_errors=True)  # Ray's last lines may still come

    def _line(self) -> str:
        """The next line of its answers."""
        deadline = time.monotonic() + self._timeout_s
        while time.monotonic() < deadline:
            if select.select([self._answers], [], [], POLL_S)[0]:
                line = self._answers.readline()
                if line:
                    return line.strip()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(POLL_S)
                break
            if self._process.poll() is not None:
                break
        code = self._process.poll()
        got = f"nothing for {self._timeout_s:g} s" if code is None else f"its end with exit code {code}"
        said = _end((self._folder / "stderr").read_text(errors="replace"))
        raise DiscreetError(f"{self._name}: expected an answer, got {got}. It said last: {said}")


def _environment() -> dict[str, str]:
    """Ours, without what would lead another Python astray."""
    kept = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}
    return kept | _ENVIRONMENT


def _end(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " / ".join(lines[-LAST_LINES:]) or "nothing"
