"""The log: entries in a file, under one lock, with one tree and one clock.

What the entries mean is decided elsewhere (`common.ledger`); here they are read, checked, added and signed.
"""

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from common.errors import LedgerError, RolledBackError
from common.transparency import database
from common.transparency.books import Books
from common.transparency.drafts import Draft
from common.transparency.entries import Entry, Refuse, Reserve, Settle, from_bytes, to_bytes, type_of
from common.transparency.merkle import EMPTY, Frontier, Hash, Proof, consistency_proof, is_consistent, leaf_hash
from common.transparency.notes import Checkpoint, verify

SLEW_MS = 2_000  # a clock that was set back by no more than this is taken to stand still

Write = Callable[[Draft], None]


@dataclass(frozen=True, kw_only=True)
class Extension:
    """What a log has become, for those who have seen its beginning.

    Args:
        note: its newest signed checkpoint.
        proof: that it begins with what was seen (RFC 6962).
    """

    note: str
    proof: Proof


class Log:
    """An append-only file of entries.

    Guarantees:
        A transaction is in the file as a whole, signed and on the disk when `writing` ends, or not at all.
        What other processes have written is taken up, and checked, before anything is read or added.
        A file that is not whole, was replaced, or whose clock runs backwards, raises LedgerError.
    """

    def __init__(self, path: Path, *, memory: Path | None) -> None:
        """Open an existing ledger's file and check all of it."""
        self.path, self._memory = path, memory
        self._db = database.connect(path)
        try:
            self._inode = path.stat().st_ino
            self.key, self._signer = database.identity(path, self._db)
            self._seen = Checkpoint(origin=self.key.name, size=0, root=EMPTY)
            self._forget()
            with self.reading():
                if memory is not None and memory.exists():
                    self._refuse_unless_extends(memory.read_text(errors="replace"))
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def newest(self) -> str | None:
        """Return the newest signed checkpoint, or None before the first entry."""
        row = self._db.execute("SELECT note FROM checkpoints ORDER BY size DESC LIMIT 1").fetchone()
        return None if row is None else str(row[0])

    def extension(self, old_size: int) -> Extension:
        """Return the newest checkpoint and the proof that it extends one of `old_size` entries, within `reading`."""
        note, leaves = self.newest(), self._leaves()
        if old_size > len(leaves):
            raise RolledBackError(
                f"{self.path}: it has {len(leaves)} entries and was seen with {old_size}: this is an older copy. "
                f"Nothing was trained; bring the newest one back."
            )
        if note is None:
            raise LedgerError(f"{self.path}: the ledger is empty: there is nothing to sign yet.")
        return Extension(note=note, proof=consistency_proof(leaves, old_size))

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Look at one state of the file, all of it taken up."""
        with database.guard(self.path):
            self._db.execute("BEGIN")
            try:
                self._catch_up()
                yield
            except BaseException:
                self._forget()
                raise
            finally:
                self._db.execute("ROLLBACK")

    @contextmanager
    def writing(self) -> Iterator[Write]:
        """Add entries in one durable transaction with a checkpoint at its end, or leave the file as it was."""
        with database.guard(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._catch_up()
                before, now_ms = self.books.size, self._now_ms()
                yield lambda draft: self._add(draft(self.books.size, now_ms))
                if self.books.size > before:
                    self._sign()
                self._db.execute("COMMIT")
                self._remember()
            except BaseException:
                self._forget()
                with suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise

    def _add(self, entry: Entry) -> None:
        try:
            body = to_bytes(entry)
            if from_bytes(body) != entry:
                raise ValueError("it would not read back as what it is")  # noqa: TRY301 - refused as all below
            self.books.apply(entry)
        except ValueError as error:
            raise LedgerError(f"{self.path}: entry {entry.sequence} cannot be written: {error}.") from error
        self._frontier.append(leaf_hash(body))
        order = (entry.run, entry.round, entry.attempt) if isinstance(entry, Reserve | Settle | Refuse) else (None,) * 3
        row = (entry.sequence, type_of(entry), entry.account, *order, body)
        self._db.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def _sign(self) -> None:
        checkpoint = Checkpoint(origin=self.key.name, size=self._frontier.size, root=self._frontier.root())
        self._db.execute("INSERT INTO checkpoints VALUES (?, ?)", (checkpoint.size, self._signer.sign(checkpoint)))

    def _remember(self) -> None:
        """Keep the newest checkpoint outside the file; no need to wait for the disk, as an older note is true too."""
        note = self.newest()
        if self._memory is not None and note is not None:
            temporary = self._memory.with_name(f".{self._memory.name}.{os.getpid()}")
            temporary.write_text(note)
            temporary.replace(self._memory)

    def _catch_up(self) -> None:
        """Take up entries that were written since, by whomever, and check them against the newest checkpoint."""
        if not self.path.exists() or self.path.stat().st_ino != self._inode:
            raise LedgerError(f"{self.path}: the file was replaced or removed while it was open. Nothing was trained.")
        rows = self._db.execute("SELECT body FROM entries WHERE sequence >= ? ORDER BY sequence", (self.books.size,))
        before = self.books.size
        try:
            for (body,) in rows:
                self.books.apply(from_bytes(body))
                self._frontier.append(leaf_hash(body))
                self._refuse_another_past()
        except ValueError as error:
            raise self._broken(f"entry {self.books.size}: {error}") from error
        (signed_size,) = self._db.execute("SELECT coalesce(max(size), 0) FROM checkpoints").fetchone()
        if not self._seen.size <= self.books.size == signed_size:
            raise self._broken(
                f"it has {self.books.size} entries, of which {signed_size} are signed, and had {self._seen.size} before"
            )
        if self.books.size == before:
            return  # nothing new, as most of the time
        note = self.newest()
        try:
            signed = None if note is None else verify(note, self.key)
        except ValueError as error:
            raise self._broken(str(error)) from error
        here = Checkpoint(origin=self.key.name, size=self._frontier.size, root=self._frontier.root())
        if signed != here:
            raise self._broken(f"the root over its {here.size} entries is not the one that was signed")
        self._seen = here

    def _refuse_another_past(self) -> None:
        """What this process has seen once stays, also when the file is read anew."""
        if self._frontier.size == self._seen.size and self._frontier.root() != self._seen.root:
            raise ValueError("it is not what it was before: the ledger was forked")

    def _refuse_unless_extends(self, note: str) -> None:
        """Refuse a ledger that does not begin with what was seen before."""
        try:
            seen = verify(note, self.key)
        except ValueError as error:
            raise LedgerError(f"{self.path}: the checkpoint seen before is not of this ledger ({error}).") from error
        leaves = self._leaves()
        if seen.size > len(leaves):
            raise LedgerError(
                f"{self.path}: it has {len(leaves)} entries and was seen with {seen.size}: this is an older copy. "
                f"Nothing was trained; bring the newest one back."
            )
        proof, root = consistency_proof(leaves, seen.size), self._frontier.root()
        if not is_consistent(old_size=seen.size, old_root=seen.root, size=len(leaves), root=root, proof=proof):
            raise LedgerError(
                f"{self.path}: its first {seen.size} entries are not those seen before: the ledger was forked. Nothing "
                f"was trained; find out which copy is the owner's."
            )

    def _leaves(self) -> list[Hash]:
        return [leaf_hash(body) for (body,) in self._db.execute("SELECT body FROM entries ORDER BY sequence")]

    def _now_ms(self) -> int:
        now_ms, last_ms = time.time_ns() // 1_000_000, self.books.time_ms
        if now_ms < last_ms - SLEW_MS:
            raise LedgerError(
                f"{self.path}: the clock is {(last_ms - now_ms) / 1000:.0f} s before the last entry. Nothing was "
                f"trained; set the clock right."
            )
        return max(now_ms, last_ms)

    def _forget(self) -> None:
        """Begin anew from the file at the next use."""
        self.books, self._frontier = Books(), Frontier()

    def _broken(self, what: str) -> LedgerError:
        return LedgerError(
            f"{self.path}: the ledger is not whole: {what}. Nothing was trained; bring the newest whole copy back."
        )
