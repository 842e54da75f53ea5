"""What a witness has cosigned, and the forks that it was shown: SQLite, append-only.

    store = Store(path)
    answer = store.add(key, addition, cosign)      a line, after it is on the disk, or a Conflict

Checkpoints and signatures are all that there is to find in it.
"""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

from common.errors import WireError, WitnessError
from common.transparency.cosignatures import with_line
from common.transparency.merkle import EMPTY, is_consistent
from common.transparency.notes import Checkpoint, VerifierKey, read, verify
from common.witness_wire import MOST_FORKS, Addition, Conflict, Newest

Cosign = Callable[[str], str]

FORMAT = 1
APPLICATION_ID = 0x44534357  # "DSCW"
BUSY_S = 2.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS checkpoints (
    ledger TEXT NOT NULL, size INTEGER NOT NULL, note TEXT NOT NULL, PRIMARY KEY (ledger, size)
) STRICT;
CREATE TABLE IF NOT EXISTS forks (
    ledger TEXT NOT NULL, note TEXT NOT NULL, UNIQUE (ledger, note)
) STRICT;
""" + "".join(
    f"CREATE TRIGGER IF NOT EXISTS {table}_{verb} BEFORE {verb} ON {table} "
    f"BEGIN SELECT RAISE(ABORT, 'the witness forgets nothing'); END;\n"
    for table in ("checkpoints", "forks")
    for verb in ("update", "delete")
)


class Store:
    """A witness's memory; any thread may use it.

    Guarantees:
        A cosignature is returned only after what it says is on the disk.
        Of one ledger no two checkpoints are cosigned of which neither begins with the other, by however many processes.
        Whatever was cosigned, and each fork that was shown (the first few of a ledger), stays.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, or make it; WitnessError when it is another's or cannot be used."""
        self._path, self._lock = path, Lock()
        with self._guard():
            self._db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._db.close()

    def newest(self, ledger: str) -> Newest:
        """Return what was cosigned last of a ledger, and the forks it was shown."""
        with self._lock, self._guard():
            forks = self._db.execute("SELECT note FROM forks WHERE ledger = ? ORDER BY rowid", (ledger,)).fetchall()
            return Newest(note=self._last(ledger), forks=tuple(note for (note,) in forks))

    def add(self, key: VerifierKey, addition: Addition, cosign: Cosign) -> str | Conflict:
        """Cosign a checkpoint that extends the last one, or say what is in the way.

        Args:
            key: the ledger's.
            addition: what its owner asks.
            cosign: makes the line for a note.

        Raises:
            WireError: the note is not one of this ledger, or says what no ledger can.
            WitnessError: the memory cannot be written; nothing was cosigned.

        Source: the numbered steps are C2SP tlog-witness, add-checkpoint, https://c2sp.org/tlog-witness.
        """
        # 1. The note is this ledger's own, and the sizes are possible.
        shown = _shown(key, addition)
        with self._lock, self._transaction():
            last = self._last(str(key))
            before = read(last) if last else Checkpoint(origin=key.name, size=0, root=EMPTY)
            # 2. The checkpoint is no other than one that was cosigned: also where the owner has forgotten that.
            if self._is_other(str(key), shown):
                return self._noted_fork(str(key), addition.note, before.size)
            # 3. The owner and the witness mean the same beginning.
            if addition.old_size != before.size:
                return Conflict(word="conflict", size=before.size)
            # 4. The checkpoint extends it.
            if not is_consistent(
                old_size=before.size, old_root=before.root, size=shown.size, root=shown.root, proof=addition.proof
            ):
                return self._noted_fork(str(key), addition.note, before.size)
            # 5. Remembered first, cosigned then.
            line = cosign(addition.note)
            if shown.size > before.size:
                row = (str(key), shown.size, with_line(addition.note, line))
                self._db.execute("INSERT INTO checkpoints VALUES (?, ?, ?)", row)
        return line

    def _last(self, ledger: str) -> str:
        query = "SELECT note FROM checkpoints WHERE ledger = ? ORDER BY size DESC LIMIT 1"
        row = self._db.execute(query, (ledger,)).fetchone()
        return "" if row is None else str(row[0])

    def _is_other(self, ledger: str, shown: Checkpoint) -> bool:
        query = "SELECT note FROM checkpoints WHERE ledger = ? AND size = ?"
        row = self._db.execute(query, (ledger, shown.size)).fetchone()
        return row is not None and read(row[0]).root != shown.root

    def _noted_fork(self, ledger: str, note: str, size: int) -> Conflict:
        (count,) = self._db.execute("SELECT count(*) FROM forks WHERE ledger = ?", (ledger,)).fetchone()
        if count < MOST_FORKS:  # a few prove it as well as many, and fill no disk
            self._db.execute("INSERT OR IGNORE INTO forks VALUES (?, ?)", (ledger, note))
        return Conflict(word="fork", size=size)

    def _prepare(self) -> None:
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        (tables,) = self._db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if (application, version) != (APPLICATION_ID, FORMAT) and (application or version or tables):
            raise WitnessError(
                f"{self._path}: expected a witness's memory of version {FORMAT}, got another file. Name another, but "
                f"never begin anew while the old one is there: a witness that forgets lets ledgers roll back."
            )
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.executescript(
            f"BEGIN; {_SCHEMA} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT}; COMMIT;"
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._guard():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise WitnessError(
                f"{self._path}: the witness's memory cannot be read or written ({error}). Nothing was cosigned; is "
                f"there room, may you write?"
            ) from error


def _shown(key: VerifierKey, addition: Addition) -> Checkpoint:
    """What the note says, if the ledger alone signed it and its size is possible."""
    try:
        shown = verify(addition.note, key)
    except ValueError as error:
        raise WireError(f"note: expected one signed by {key.name} ({error})") from error
    if shown.origin != key.name or addition.note.count("\n") != 5:  # noqa: PLR2004 - three lines, an empty one, a signature
        raise WireError(f"note: expected a checkpoint of {key.name}, signed once")
    if not shown.size > 0 or addition.old_size > shown.size:
        raise WireError(f"note: expected a size of at least 1 and old_size = {addition.old_size}, got {shown.size}")
    return shown
