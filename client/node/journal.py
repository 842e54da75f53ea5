"""What a node must still know after a crash: messages that wait for an answer, and reports that were signed.

    inbox    a message, from when it was pulled until its answer was taken
    outbox   (run, round, attempt) -> the order's digest and the signed report: the same order never trains twice

SQLite; every write is on the disk before it returns.
"""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from client.node.letters import Envelope, Fields
from client.node.orders import SealedReport
from common.errors import JournalError, RefusedError
from common.messages import Order, Refusal

KEPT = 16  # reports of a run that can be sent again; of older ones the digest stays, so that none trains twice

_SCHEMA = """
CREATE TABLE IF NOT EXISTS inbox (
    place INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, flower_run TEXT NOT NULL, expires REAL NOT NULL,
    head BLOB NOT NULL, tree BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS outbox (
    place INTEGER PRIMARY KEY, run TEXT NOT NULL, round INTEGER NOT NULL, attempt INTEGER NOT NULL,
    digest TEXT NOT NULL, scalars TEXT, body BLOB, policy TEXT, code TEXT, signature BLOB,
    UNIQUE (run, round, attempt)
) STRICT;
"""


class Journal:
    """The node's memory; JournalError when the file cannot be read or written."""

    def __init__(self, path: Path) -> None:
        """Open it, or begin one."""
        self._path = path
        with self._guard():
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(_SCHEMA)

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def receive(self, envelope: Envelope) -> None:
        """Keep a message until it is done with."""
        row = (envelope.id, str(envelope.flower_run), envelope.expires, envelope.head, envelope.tree)
        with self._guard():
            self._db.execute(
                "INSERT OR IGNORE INTO inbox (id, flower_run, expires, head, tree) VALUES (?,?,?,?,?)", row
            )

    def waiting(self) -> list[Envelope]:
        """Return the messages that are not done with, in the order in which they came."""
        with self._guard():
            rows = self._db.execute("SELECT id, flower_run, expires, head, tree FROM inbox ORDER BY place").fetchall()
        return [
            Envelope(id=name, flower_run=int(run), expires=expires, head=head, tree=tree)
            for name, run, expires, head, tree in rows
        ]

    def finish(self, envelope: Envelope) -> None:
        """Be done with a message."""
        with self._guard():
            self._db.execute("DELETE FROM inbox WHERE id = ?", (envelope.id,))

    def answered(self, order: Order, digest: str) -> SealedReport | None:
        """Return the report that this very order was answered with, or None if it was not.

        RefusedError (`already-trained`) for another order with the same run, round and attempt, and for one so old that
        its report is no longer kept.
        """
        with self._guard():
            row = self._db.execute(
                "SELECT digest, scalars, body, policy, code, signature FROM outbox "
                "WHERE run = ? AND round = ? AND attempt = ?",
                (order.run, order.round, order.attempt),
            ).fetchone()
        if row is None:
            return None
        known, scalars, update, policy, code, signature = row
        if known != digest or update is None:
            what = "another order with these numbers" if known != digest else "the order"
            raise RefusedError(Refusal.ALREADY_TRAINED, f"{what} was answered before")
        return SealedReport(scalars=_fields(scalars), update=update, policy=policy, code=code, signature=signature)

    def keep(self, order: Order, digest: str, report: SealedReport) -> None:
        """Keep the signed report to an order, durably; RefusedError when there is one already."""
        place = (order.run, order.round, order.attempt)
        content = (json.dumps(dict(report.scalars)), report.update, report.policy, report.code, report.signature)
        with self._guard():
            try:
                self._db.execute(
                    "INSERT INTO outbox (run, round, attempt, digest, scalars, body, policy, code, signature) "
                    "VALUES (?,?,?,?,?,?,?,?,?)",
                    (*place, digest, *content),
                )
            except sqlite3.IntegrityError as error:
                raise RefusedError(Refusal.ALREADY_TRAINED, "the order was answered before") from error
            self._db.execute(
                "UPDATE outbox SET body = NULL WHERE run = ? AND body IS NOT NULL AND place NOT IN "
                "(SELECT place FROM outbox WHERE run = ? ORDER BY place DESC LIMIT ?)",
                (order.run, order.run, KEPT),
            )

    def forget(self, run: str) -> None:
        """Let go of the reports of a run that is over; that its orders were answered stays known."""
        with self._guard():
            self._db.execute("UPDATE outbox SET body = NULL WHERE run = ?", (run,))

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Turn what SQLite and the disk say into JournalError."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise JournalError(
                f"{self._path}: expected the node's journal, got a file that cannot be read or written ({error}). Is "
                f"there room, may you write? Nothing was trained."
            ) from error


def _fields(text: str) -> Fields:
    fields: Fields = json.loads(text)
    return fields
