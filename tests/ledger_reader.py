"""What a ledger holds, as those who check it read it: hashes, signatures and rules included."""

from pathlib import Path

from common.transparency.entries import PLAN_ROUND, Entry, Refuse, Reserve, Settle, type_of
from common.transparency.export import read


def entries(path: Path) -> tuple[Entry, ...]:
    """Return all entries of a ledger that is whole."""
    return read(path).entries


def charges(path: Path, run: str | None = None) -> list[Reserve]:
    """Return the orders that were charged, of one run or of all; those of whole runs are left out."""
    return [
        entry
        for entry in entries(path)
        if isinstance(entry, Reserve) and entry.round != PLAN_ROUND and run in {None, entry.run}
    ]


def charged(path: Path, run: str | None = None) -> list[tuple[int, int, str]]:
    """Return round, attempt and account of the orders that were charged."""
    return [(entry.round, entry.attempt, entry.account) for entry in charges(path, run)]


def settled(path: Path, run: str | None = None) -> list[tuple[str, int, int, str]]:
    """Return type, round, attempt and account of what became of orders, or in round 0 of whole runs."""
    return [
        (entry.type, entry.round, entry.attempt, entry.account)
        for entry in entries(path)
        if isinstance(entry, Settle) and run in {None, entry.run}
    ]


def refused(path: Path) -> list[tuple[str, str]]:
    """Return run and word of what was turned down."""
    return [(entry.run, entry.word) for entry in entries(path) if isinstance(entry, Refuse)]


def kinds(path: Path) -> list[str]:
    """Return the type of every entry."""
    return [type_of(entry) for entry in entries(path)]
