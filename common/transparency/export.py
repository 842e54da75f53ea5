"""A ledger as lines of JSON, for those who are to check it.

    {"checkpoint":NOTE,"format":1,"key":KEY}       the newest checkpoint: what follows must reach it
    {"entry":{...},"leaf":HASH}                    one a line, in order
    {"checkpoint":NOTE}                            wherever the ledger was signed

The same lines come from a ledger's file and from an export of it. Every line is in canonical form, and is checked; only
a checkpoint in between may be missing, since the next one covers what it covered.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from common.errors import LedgerError
from common.files import write_whole
from common.transparency import canonical, database
from common.transparency.books import Books
from common.transparency.entries import Entry, from_plain
from common.transparency.merkle import Frontier, Hash, leaf_hash
from common.transparency.notes import Checkpoint, VerifierKey, verify

FORMAT = 1
SQLITE = b"SQLite format 3\x00"
BEGINNING = b'{"checkpoint":'
LINE_LIMIT = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Statement:
    """What a whole ledger says, after its hashes, signatures and rules were checked.

    Args:
        key: with which its checkpoints are signed; whose it is, the ledger cannot say.
        checkpoint: the newest.
        note: the same, signed.
        entries: all of them.
        leaves: their hashes.
        books: what they add up to.
    """

    key: VerifierKey
    checkpoint: Checkpoint
    note: str
    entries: tuple[Entry, ...]
    leaves: tuple[Hash, ...]
    books: Books


def write(ledger: Path, out: Path) -> None:
    """Write a ledger's lines to a file, new or an earlier export, or raise LedgerError."""
    _refuse_to_replace(ledger, out)
    try:
        write_whole(out, b"".join(lines_of(ledger)))
    except OSError as error:
        raise LedgerError(f"{out}: the export cannot be written ({error}).") from error


def read(path: Path) -> Statement:
    """Read a ledger or an export and check that it is whole; LedgerError names the entry that is wrong.

    Guarantees:
        A file in which one byte differs from what `write` wrote is refused.
        Each entry keeps the rules of `common.transparency.books`.
        Each checkpoint is signed with one key, and its root is that of the entries before it.
    """
    lines = lines_of(path)
    place = "header"
    try:
        key, note = _header(next(lines, b""))
        newest = _verified(note, key)
        books, frontier = Books(), Frontier()
        entries: list[Entry] = []
        leaves: list[Hash] = []
        signed = 0
        for line in lines:
            place = f"entry {books.size}"
            value = _line(line)
            if value.keys() == {"entry", "leaf"}:
                entry, leaf = _entry(value)
                books.apply(entry)
                frontier.append(leaf)
                entries.append(entry)
                leaves.append(leaf)
            elif value.keys() == {"checkpoint"}:
                place = f"checkpoint after entry {books.size - 1}"
                _refuse_checkpoint(value["checkpoint"], key, frontier, signed=signed)
                signed = frontier.size
            else:
                _refuse_line()
        place = f"entry {books.size}"
        _refuse_unfinished(newest, frontier, signed=signed)
    except ValueError as error:
        raise LedgerError(
            f"{path}: not whole: {place}: {error}. Trust nothing of it; ask for a new export and compare size and root."
        ) from error
    return Statement(key=key, checkpoint=newest, note=note, entries=tuple(entries), leaves=tuple(leaves), books=books)


def _refuse_to_replace(ledger: Path, out: Path) -> None:
    """An export takes the place of nothing but an export: neither of a ledger, nor of its keys."""
    beside = {ledger.resolve().name + end for end in ("", ".key", ".pub", "-wal", "-shm", "-journal")}
    try:
        is_export = not out.exists() or out.open("rb").read(len(BEGINNING)) == BEGINNING
    except OSError:
        is_export = False
    if not is_export or (out.resolve().parent == ledger.resolve().parent and out.name in beside):
        raise LedgerError(
            f"{out}: expected a new file or an earlier export, got something else. Name another with --out."
        )


def lines_of(path: Path) -> Iterator[bytes]:
    """Return the lines of a ledger's file, or of an export, or raise LedgerError."""
    try:
        with path.open("rb") as file:
            is_ledger = file.read(len(SQLITE)) == SQLITE
    except OSError as error:
        raise LedgerError(f"{path}: cannot be read ({error}).") from error
    return _lines_of_ledger(path) if is_ledger else _lines_of_export(path)


def _lines_of_export(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while line := file.readline(LINE_LIMIT):
            yield line


def _lines_of_ledger(path: Path) -> Iterator[bytes]:
    """Read one state of the file, without its private key."""
    try:
        with closing(database.connect_to_read(path)) as db:
            db.execute("BEGIN")
            ((_, key),) = db.execute("SELECT origin, key FROM identity").fetchall()
            notes = dict(db.execute("SELECT size, note FROM checkpoints ORDER BY size").fetchall())
            if not notes:
                raise LedgerError(f"{path}: the ledger is empty: nothing was ever charged.")
            yield _bytes({"checkpoint": notes[max(notes)], "format": FORMAT, "key": key})
            rows = db.execute("SELECT body FROM entries ORDER BY sequence")
            for size, (body,) in enumerate(rows, 1):
                yield b'{"entry":' + body + b',"leaf":"' + leaf_hash(body).hex().encode() + b'"}\n'
                if size in notes:
                    yield _bytes({"checkpoint": notes[size]})
    except (sqlite3.Error, ValueError, TypeError) as error:
        raise LedgerError(f"{path}: not whole: the file does not read as a ledger ({error}).") from error


def _bytes(value: object) -> bytes:
    return canonical.dumps(value) + b"\n"


def _line(line: bytes) -> dict[str, object]:
    if not line.endswith(b"\n"):
        raise ValueError("the line has no end")
    value = canonical.loads(line[:-1])
    if not isinstance(value, dict):
        raise ValueError("expected an object")  # noqa: TRY004 - bytes from outside
    return value


def _header(line: bytes) -> tuple[VerifierKey, str]:
    if not line:
        raise ValueError("the file is empty")
    match _line(line):
        case {"format": int(version)} if version > FORMAT:
            raise ValueError(f"expected format {FORMAT}, got {version}; install a newer Discreet")
        case {"checkpoint": str(note), "format": 1, "key": str(key), **rest} if not rest:
            parsed = VerifierKey.parse(key)
            if str(parsed) == key:
                return parsed, note
    raise ValueError("expected checkpoint, format and key")


def _entry(value: dict[str, object]) -> tuple[Entry, Hash]:
    plain = value["entry"]
    if not isinstance(plain, dict):
        raise ValueError("expected an object")  # noqa: TRY004 - bytes from outside
    leaf = leaf_hash(canonical.dumps(plain))
    if leaf.hex() != value["leaf"]:
        raise ValueError("its hash is not the one beside it")
    return from_plain(plain), leaf


def _refuse_unfinished(newest: Checkpoint, frontier: Frontier, *, signed: int) -> None:
    """The header names the newest checkpoint: a file that was cut off does not reach it."""
    if not signed == frontier.size == newest.size or newest.root != frontier.root():
        raise ValueError(f"expected {newest.size} entries that are all signed, got {frontier.size}, {signed} signed")


def _refuse_line() -> None:
    raise ValueError("expected an entry with its leaf, or a checkpoint")


def _refuse_checkpoint(note: object, key: VerifierKey, frontier: Frontier, *, signed: int) -> None:
    if not isinstance(note, str):
        raise ValueError("expected a text")  # noqa: TRY004 - bytes from outside
    checkpoint = _verified(note, key)
    if frontier.size == signed:
        raise ValueError(f"size {signed} is signed a second time")
    if (checkpoint.size, checkpoint.root) != (frontier.size, frontier.root()):
        raise ValueError(f"the signed root of size {checkpoint.size} is not that of the {frontier.size} entries before")


def _verified(note: str, key: VerifierKey) -> Checkpoint:
    """What a note of this ledger's own says; ValueError for another's, or one with further signatures."""
    checkpoint = verify(note, key)
    if checkpoint.origin != key.name or note.count("\n") != 5:  # noqa: PLR2004 - three lines, an empty one, a signature
        raise ValueError("checkpoint: expected the ledger's own, signed once")
    return checkpoint
