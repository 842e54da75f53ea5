"""The event log: what was spent, durable before any record is read.

One JSON object a line: run, round, attempt, account, event. Lines are only ever added; `append` returns when the disk
has them. A crash in mid-append leaves a last line without its end: nothing was trained after it, so it is dropped.
Anything else that does not read is refused.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import RunFailedError
from common.privacy.events import SampledGaussian, from_json


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One charge: `account` did `event` in this attempt at this round."""

    run: str
    round: int
    attempt: int
    account: str
    event: SampledGaussian


class EventLog:
    """An append-only file of entries, held by one process at a time.

    Guarantees:
        When `append` returns, the entries survive a crash of the machine.
        All entries of one `append` were written before any of them is acted on.
        A second process that opens the same file is refused.
    """

    def __init__(self, path: Path) -> None:
        """Open the log, or raise RunFailedError."""
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise RunFailedError(f"{path}: the event log cannot be opened ({error}). Nothing was trained.") from error
        self._path = path
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._descriptor)
            raise RunFailedError(f"{path}: another process is running this run. Wait for it, or stop it.") from error
        self._broken = False
        try:
            self._cut()
            self.entries = tuple(read_entries(path))
        except BaseException:
            os.close(self._descriptor)
            raise

    def append(self, entries: Sequence[Entry]) -> None:
        """Add entries durably, or raise RunFailedError."""
        if not entries:
            return
        lines = "".join(json.dumps(_plain(entry), separators=(",", ":")) + "\n" for entry in entries).encode()
        try:
            if self._broken:
                raise OSError("an earlier event was written in part")  # noqa: TRY301 - as a failed write below
            while lines:
                lines = lines[os.write(self._descriptor, lines) :]
            os.fsync(self._descriptor)
        except OSError as error:
            self._broken = True  # until the half line is gone; whole ones stay charged
            with contextlib.suppress(OSError):
                self._cut()
                self._broken = False
            raise RunFailedError(
                f"{self._path}: the event cannot be written ({error}). Nothing was trained."
            ) from error

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)

    def _cut(self) -> None:
        """Cut off a last line that has no end."""
        data = self._path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole != len(data):
            os.ftruncate(self._descriptor, whole)


def read_entries(path: Path) -> list[Entry]:
    """Read all whole lines of a log, or raise RunFailedError for one that does not read."""
    entries = []
    data = path.read_bytes()
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), 1):
        try:
            entries.append(_entry(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise RunFailedError(
                f"{path}: line {number} does not read ({error}). What was spent is not known, so nothing is trained; "
                f"restore the file from a backup."
            ) from error
    return entries


def _plain(entry: Entry) -> dict[str, object]:
    return {
        "run": entry.run,
        "round": entry.round,
        "attempt": entry.attempt,
        "account": entry.account,
        "event": entry.event.to_json(),
    }


def _entry(value: dict[str, object]) -> Entry:
    match value:
        case {
            "run": str(run),
            "round": int(number),
            "attempt": int(attempt),
            "account": str(account),
            "event": dict(event),
        }:
            return Entry(run=run, round=number, attempt=attempt, account=account, event=from_json(event))
    raise ValueError("expected run, round, attempt, account and event")
