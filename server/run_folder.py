"""The folder of a run: what it is, how far it came, and what it reached.

    scenario.toml  plan.json     written once, before training
    rounds.csv                   a line a round
    checkpoint/attempts.txt      a line a round begun, durable before anybody is asked
    checkpoint/state.safetensors weights, optimiser and round, replaced whole after every round
    model.safetensors            the final weights by name

A full disk or a kill leaves the last checkpoint whole; `rounds.csv` is cut back to it when the run resumes.

PyTorch is imported when a checkpoint is read or written: who asks for a file's name need not wait for it.
"""

import csv
import fcntl
import io
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from common.errors import RunFailedError
from common.files import write_whole, write_whole_with
from server.observer import RoundRecord

if TYPE_CHECKING:
    from torch import Tensor

LEDGER, LEDGER_SEEN = "ledger.db", "ledger.note"  # what was spent, and what that looked like last

COLUMNS = (
    "round", "cohort", "replies", "refused", "accuracy", "loss", "epsilon_max", "seconds", "client_accuracy",
)  # fmt: skip
_HEADER = ",".join(COLUMNS) + "\n"
_HEADER_BEFORE = ",".join(COLUMNS[:-1]) + "\n"  # of runs that were begun before there was a client_accuracy


class RunFolder:
    """One run's folder, held by one process at a time."""

    def __init__(self, path: Path) -> None:
        """Take hold of an existing folder, or raise RunFailedError when another process has it."""
        self.path = path
        self._checkpoint = path / "checkpoint"
        self._checkpoint.mkdir(exist_ok=True)
        self._lock = os.open(self._checkpoint / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise RunFailedError(f"{path}: another process is running this run. Wait for it, or stop it.") from error
        for half_written in self._checkpoint.glob(".*"):  # by a process that was killed
            half_written.unlink()

    def close(self) -> None:
        """Let go of the folder."""
        os.close(self._lock)

    def begin(self, round_number: int) -> int:
        """Note durably that a round begins, and return which attempt at it this is."""
        attempts = self._attempt_lines()
        self.write("checkpoint/attempts.txt", "".join([*attempts, f"{round_number}\n"]))
        return attempts.count(f"{round_number}\n") + 1

    def retract(self) -> None:
        """Forget the last attempt: nobody took part in it."""
        self.write("checkpoint/attempts.txt", "".join(self._attempt_lines()[:-1]))

    def attempts(self) -> Counter[int]:
        """Return how often each round was begun."""
        return Counter(int(line) for line in self._attempt_lines())

    def _attempt_lines(self) -> list[str]:
        path = self._checkpoint / "attempts.txt"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [line for line in lines if line.endswith("\n")]

    def save(self, round_number: int, state: "dict[str, Tensor]") -> None:
        """Replace the checkpoint, or raise RunFailedError with the old one whole."""
        from safetensors.torch import save_file

        with _guard(self.path):
            write_whole_with(
                self._checkpoint / "state.safetensors",
                lambda path: save_file(state, path, metadata={"round": str(round_number)}),
            )

    def load(self) -> "tuple[int, dict[str, Tensor]] | None":
        """Return round and state of the checkpoint, or None before the first."""
        from safetensors.torch import load_file

        path = self._checkpoint / "state.safetensors"
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                round_number = int((file.metadata() or {})["round"])
            return round_number, load_file(path)
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise RunFailedError(f"{path}: the checkpoint does not read ({error}). Start a new run.") from error

    def save_model(self, named: "dict[str, Tensor]", description: dict[str, str]) -> None:
        """Write the final weights by name."""
        from safetensors.torch import save_file

        with _guard(self.path):
            write_whole_with(self.path / "model.safetensors", lambda path: save_file(named, path, metadata=description))

    def write(self, name: str, text: str) -> None:
        """Write a small file whole."""
        with _guard(self.path):
            write_whole(self.path / name, text)

    def append_round(self, record: RoundRecord) -> None:
        """Add a line to rounds.csv."""
        path = self.path / "rounds.csv"
        line = io.StringIO()
        if not path.exists():
            line.write(_HEADER)
        csv.DictWriter(line, COLUMNS, lineterminator="\n").writerow(_row(record))
        with _guard(self.path), path.open("a") as file:
            file.write(line.getvalue())

    def cut_rounds(self, last: int) -> None:
        """Drop lines of rounds.csv after round `last`, and a line that a crash left without its end."""
        path = self.path / "rounds.csv"
        if path.exists():
            header, *lines = [*path.read_text().splitlines(keepends=True), ""]
            if header == _HEADER_BEFORE:
                header, lines = _HEADER, [line.replace("\n", ",\n") for line in lines]
            whole = [line for line in lines if line.endswith("\n")] if header == _HEADER else []
            self.write("rounds.csv", _HEADER + "".join(line for line in whole if int(line.split(",")[0]) <= last))


def _row(record: RoundRecord) -> dict[str, object]:
    return {
        "round": record.round,
        "cohort": record.cohort,
        "replies": record.replies,
        "refused": len(record.refused),
        "accuracy": _number(record.metrics.get("accuracy")),
        "loss": _number(record.metrics.get("loss")),
        "epsilon_max": _number(record.epsilon_max),
        "seconds": f"{record.seconds:.3f}",
        "client_accuracy": _number(record.client_accuracy),
    }


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


class _guard:  # noqa: N801 - reads as a statement
    """Turn an OSError of the disk into RunFailedError."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError | SafetensorError):
            raise RunFailedError(
                f"{self._path}: cannot be written ({error}). The last checkpoint is whole; make room and continue with "
                f"--resume {self._path}."
            ) from error
