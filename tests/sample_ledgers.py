"""Small ledgers for tests: terms, events, charges, and a ledger with one of each entry.

The mechanism is a plain Gaussian of noise 4 once: (epsilon, delta) by hand, and quick to count. At delta 1e-5 PLD says
0.92 for 1, 1.36 for 2, 1.70 for 3, 1.99 for 4 and 2.26 for 5 times.
"""

import json
from fractions import Fraction
from pathlib import Path

from common.ledger import Ledger, Share
from common.messages import Refusal
from common.privacy.events import History, SampledGaussian
from common.transparency import canonical
from common.transparency.drafts import Charge
from common.transparency.entries import Terms
from common.transparency.merkle import leaf_hash, root_of
from common.transparency.notes import Checkpoint, Signer

EVENTS = (SampledGaussian(noise_multiplier=4.0, sampling_rate=Fraction(1), steps=1),)
QUIETER = (SampledGaussian(noise_multiplier=8.0, sampling_rate=Fraction(1), steps=1),)
METRICS = SampledGaussian(noise_multiplier=20.0, sampling_rate=Fraction(1), steps=1)
POLICY, OTHER_POLICY = "ab" * 32, "cd" * 32


def terms(**changes: object) -> Terms:
    """One owner's terms: epsilon 2 at delta 1e-5, and what a test changes."""
    values: dict[str, object] = {
        "owner": "St Mary's",
        "lineage": "cardiology",
        "version": "1",
        "records": 1000,
        "unit": "record",
        "adjacency": "zero-out",
        "delta": 1e-5,
        "budget": 2.0,
        "policy": POLICY,
    }
    return Terms(**(values | changes))  # type: ignore[arg-type]


def charge(
    number: int = 1, *, attempt: int = 1, account: str = "a", run: str = "r", events: History = EVENTS
) -> Charge:
    """One order."""
    return Charge(account=account, run=run, round=number, attempt=attempt, events=events)


def share(wanted: int, events: History = EVENTS) -> Share:
    """What a run asks of an account."""
    return Share(events=events, wanted=wanted)


def filled(path: Path) -> Ledger:
    """A ledger with every type of entry, and one run that is over and one that is open; it stays open.

    0 GENESIS a, 1 GENESIS b | 2 RESERVE run | 3, 4 RESERVE orders, 5 REFUSE | 6 COMMIT, 7 EXPIRE | 8 COMMIT run |
    9 POLICY_CHANGE | 10 AUDIT | 11 RESERVE run, 12 RESERVE run | 13 RESERVE order
    """
    ledger = Ledger.create(path)
    ledger.open_accounts({"a": terms(), "b": terms(lineage="oncology")})
    ledger.begin_run("r", {"a": share(2)})
    ledger.reserve([charge(1), charge(2), charge(3)])
    ledger.settle([charge(1)], [charge(2)])
    ledger.end_run("r")
    ledger.open_accounts({"a": terms(version="2", budget=3.0, policy=OTHER_POLICY)})
    ledger.audited("a", "r", {"verdict": "not refuted", "canaries": "1000 – ü"})
    ledger.begin_run("s", {"a": share(2), "b": share(3, (*EVENTS, METRICS))})
    ledger.reserve([charge(1, run="s")])
    assert ledger.books.size == 14
    assert [refusal.word for refusal in ledger.books.accounts["a"].refusals] == [Refusal.BUDGET_SPENT.value]
    return ledger


def lines_of(export: Path) -> list[dict[str, object]]:
    """The lines of an export as values."""
    return [json.loads(line) for line in export.read_bytes().splitlines()]


def forged(entries: list[dict[str, object]], signer: Signer, *, header: dict[str, object] | None = None) -> bytes:
    """An export of any entries, hashed and signed as a ledger would: what is wrong is in the entries alone."""
    leaves = [leaf_hash(canonical.dumps(entry)) for entry in entries]
    note = signer.sign(Checkpoint(origin=signer.key.name, size=len(leaves), root=root_of(leaves)))
    lines: list[object] = [{"checkpoint": note, "format": 1, "key": str(signer.key)} | (header or {})]
    lines += [{"entry": entry, "leaf": leaf.hex()} for entry, leaf in zip(entries, leaves, strict=True)]
    return b"".join(canonical.dumps(line) + b"\n" for line in [*lines, {"checkpoint": note}])


def remembered(note: str, folder: Path) -> Path:
    """A memory of a ledger, as `Ledger` keeps one elsewhere."""
    path = folder / f"seen-{len(list(folder.iterdir()))}.note"
    path.write_text(note)
    return path
