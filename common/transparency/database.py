"""The ledger's file: SQLite, append-only, with the owner's keys beside it.

Beside NAME lie NAME.key, the owner's private key, which only its owner reads, and NAME.pub, for those who verify.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from common.errors import LedgerError
from common.files import write_whole
from common.transparency.notes import Signer, VerifierKey

FORMAT = 1
APPLICATION_ID = 0x44534354  # "DSCT": SQLite's place to say whose file this is
BUSY_S = 60.0

_SCHEMA = f"""
PRAGMA synchronous = FULL;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {FORMAT};
CREATE TABLE identity (origin TEXT NOT NULL, key TEXT NOT NULL) STRICT;
CREATE TABLE entries (
    sequence INTEGER PRIMARY KEY,
    type TEXT NOT NULL, account TEXT NOT NULL, run TEXT, round INTEGER, attempt INTEGER,
    body BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX one_reservation ON entries (account, run, round, attempt) WHERE type = 'RESERVE';
CREATE TABLE checkpoints (size INTEGER PRIMARY KEY, note TEXT NOT NULL) STRICT;
""" + "".join(
    f"CREATE TRIGGER {table}_{verb} BEFORE {verb} ON {table} "
    f"BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;\n"
    for table in ("identity", "entries", "checkpoints")
    for verb in ("update", "delete")
)


def key_files(path: Path) -> tuple[Path, Path]:
    """Return where a ledger's private and public keys lie; a link is followed."""
    real = path.resolve()
    return real.with_name(real.name + ".key"), real.with_name(real.name + ".pub")


def make(path: Path) -> None:
    """Make an empty ledger and its keys; LedgerError when there is one, or was one."""
    private, public = key_files(path)
    if path.exists():
        raise LedgerError(f"{path}: expected no file, got one. A ledger is made once; open it, or name another.")
    refuse_lost(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    written: list[Path] = []
    signer = Signer.new(f"discreet/ledger/{os.urandom(8).hex()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(temporary)) as db:
            db.executescript(_SCHEMA)
            db.execute("INSERT INTO identity VALUES (?, ?)", (signer.key.name, str(signer.key)))
            db.commit()
        written.append(private)
        _write_private(private, signer.pem())
        write_whole(public, f"{signer.key}\n")
        temporary.replace(path)
    except (OSError, sqlite3.Error) as error:
        for file in written:
            file.unlink(missing_ok=True)
        raise LedgerError(f"{path}: the ledger cannot be made ({error}). Nothing was trained.") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def refuse_lost(path: Path) -> None:
    """Raise LedgerError for a ledger that is gone while its private key is there: a new one would be a fresh budget."""
    private, _ = key_files(path)
    if private.exists() and not path.exists():
        raise LedgerError(f"{path}: the ledger of {private} was lost. Nothing was trained; bring it back.")


def connect(path: Path) -> sqlite3.Connection:
    """Open a ledger's file for writing, or raise LedgerError."""
    if not path.is_file():
        raise LedgerError(
            f"{path}: expected a ledger, got no file. Nothing was trained; bring it back, or begin one with "
            f"`discreet ledger new`."
        )
    with guard(path):
        db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", uri=True, timeout=BUSY_S, isolation_level=None)
        try:
            _refuse_foreign(path, db)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
        except BaseException:
            db.close()
            raise
    return db


def connect_to_read(path: Path) -> sqlite3.Connection:
    """Open a ledger's file for reading alone, also where nothing can be written, or raise LedgerError."""
    with guard(path):
        is_idle = not path.resolve().with_name(path.resolve().name + "-wal").exists()
        can_write = os.access(path, os.W_OK) and os.access(path.resolve().parent, os.W_OK)
        mode = "mode=rw" if can_write else "immutable=1" if is_idle else "mode=ro"  # rw: it tidies up behind itself
        db = sqlite3.connect(f"{path.resolve().as_uri()}?{mode}", uri=True, isolation_level=None)
        try:
            _refuse_foreign(path, db)
        except BaseException:
            db.close()
            raise
    return db


def identity(path: Path, db: sqlite3.Connection) -> tuple[VerifierKey, Signer]:
    """Return a ledger's keys, or raise LedgerError: none that reads, or another one's."""
    with guard(path):
        rows = db.execute("SELECT key FROM identity").fetchall()
    private, _ = key_files(path)
    try:
        ((text,),) = rows
        key = VerifierKey.parse(text)
        signer = Signer.from_pem(key.name, private.read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise LedgerError(
            f"{private}: expected the ledger's private key, got none that reads ({error}). Nothing was trained; "
            f"restore it from where it was put away."
        ) from error
    if signer.key != key:
        raise LedgerError(f"{private}: expected the private key of {path}, got another one. Nothing was trained.")
    return key, signer


@contextmanager
def guard(path: Path) -> Iterator[None]:
    """Turn what SQLite and the disk say into LedgerError."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise LedgerError(
            f"{path}: the ledger cannot be read or written ({error}). Nothing was trained; is it a ledger, is there "
            f"room, may you write?"
        ) from error


def _refuse_foreign(path: Path, db: sqlite3.Connection) -> None:
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        raise LedgerError(f"{path}: expected a ledger of Discreet, got another file. Nothing was trained.")
    if version != FORMAT:
        raise LedgerError(
            f"{path}: expected a ledger of version {FORMAT}, got {version}. Nothing was trained; install the Discreet "
            f"that wrote it."
        )


def _write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner reads, and wait for the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
