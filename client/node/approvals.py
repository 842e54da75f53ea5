"""Runs that wait for a person: who asked, what for, and what was decided.

    approvals = Approvals(state / APPROVALS)
    approvals.note(proposed)
    approvals.refusal(run, digest)    None once a person has approved exactly this scenario
    approvals.decide(run, ...)        by a command, in another process

The decision itself is an entry of the ledger; this file is what the node looks at, and holds what nobody decided yet.
"""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import cast

from common.errors import BadInputError, SettingsError
from common.messages import Refusal
from common.transparency.entries import Decision

APPROVALS = "approvals.db"  # in the state folder
MOST_WAITING = 200  # runs nobody has decided on: a flood of proposals fills no disk

_SCHEMA = """
CREATE TABLE IF NOT EXISTS proposals (
    run TEXT PRIMARY KEY, purpose TEXT NOT NULL, scenario TEXT NOT NULL, coordinator TEXT NOT NULL, asked REAL NOT NULL,
    decision TEXT NOT NULL DEFAULT '', by TEXT NOT NULL DEFAULT '', decided REAL
) STRICT;
"""


@dataclass(frozen=True, kw_only=True)
class Proposed:
    """A run that a coordinator proposed.

    Args:
        run: its identifier.
        purpose: what it is for, in the coordinator's words.
        scenario: the scenario's text.
        coordinator: who asks.
        asked: when, unix time.
        decision: what a person decided, or nothing yet.
        by: who decided.
    """

    run: str
    purpose: str
    scenario: str = field(repr=False)
    coordinator: str
    asked: float
    decision: Decision | None = None
    by: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 of the scenario's text, hexadecimal: what a decision is about."""
        return sha256(self.scenario.encode()).hexdigest()


class Approvals:
    """The proposals of one node; SettingsError when the file cannot be read or written."""

    def __init__(self, path: Path) -> None:
        """Open the file, or begin one."""
        self._path = path
        with self._guard():
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30.0)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(_SCHEMA)

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def refusal(self, run: str, digest: str) -> Refusal | None:
        """Return what stands against a run: nothing, once a person has approved exactly the scenario of this digest."""
        known = self._found(run)
        if known is None:
            return Refusal.AWAITS_APPROVAL
        if known.digest != digest:
            return Refusal.NOT_IN_PLAN
        if known.decision is None:
            return Refusal.AWAITS_APPROVAL
        return None if known.decision == "approved" else Refusal.REFUSED_BY_OWNER

    def note(self, proposed: Proposed) -> None:
        """Keep a run that was never heard of, so that it can be decided on."""
        with self._guard():
            (waiting,) = self._db.execute("SELECT count(*) FROM proposals WHERE decision = ''").fetchone()
            if waiting < MOST_WAITING:
                self._db.execute(
                    "INSERT OR IGNORE INTO proposals (run, purpose, scenario, coordinator, asked) VALUES (?,?,?,?,?)",
                    (proposed.run, proposed.purpose, proposed.scenario, proposed.coordinator, proposed.asked),
                )

    def all(self) -> list[Proposed]:
        """Return all proposals, the newest first."""
        with self._guard():
            rows = self._db.execute(f"SELECT {_COLUMNS} FROM proposals ORDER BY asked DESC").fetchall()  # noqa: S608 - a constant
        return [_proposed(row) for row in rows]

    def beginning_with(self, run: str) -> Proposed:
        """Return the one proposal whose run begins so; BadInputError unless there is exactly one."""
        found = [one for one in self.all() if run and one.run.startswith(run)]
        if len(found) != 1:
            raise BadInputError(
                f"expected one proposed run that begins with {run!r}, got {len(found)}. See them with `discreet runs`."
            )
        return found[0]

    def decide(self, run: str, *, decision: Decision, by: str) -> None:
        """Keep what a person decided."""
        with self._guard():
            self._db.execute(
                "UPDATE proposals SET decision = ?, by = ?, decided = ? WHERE run = ?",
                (decision, by, time.time(), run),
            )

    def _found(self, run: str) -> Proposed | None:
        with self._guard():
            row = self._db.execute(f"SELECT {_COLUMNS} FROM proposals WHERE run = ?", (run,)).fetchone()  # noqa: S608 - a constant
        return None if row is None else _proposed(row)

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Turn what SQLite and the disk say into SettingsError."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise SettingsError(
                f"{self._path}: expected the node's approvals, got a file that cannot be read or written ({error}). Is "
                f"there room, may you write? Nothing was approved."
            ) from error


_COLUMNS = "run, purpose, scenario, coordinator, asked, decision, by"


def _proposed(row: tuple[str, str, str, str, float, str, str]) -> Proposed:
    run, purpose, scenario, coordinator, asked, decision, by = row
    return Proposed(
        run=run,
        purpose=purpose,
        scenario=scenario,
        coordinator=coordinator,
        asked=asked,
        decision=cast(Decision, decision) if decision else None,
        by=by,
    )
