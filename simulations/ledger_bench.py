"""`discreet bench ledger`: what keeping the budget costs, and how long a stranger needs to check it."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

from common.ledger import Ledger, Share
from common.messages import Order, Refusal
from common.privacy.events import History, SampledGaussian
from common.transparency import export
from common.transparency.drafts import Charge
from common.transparency.entries import Terms
from common.transparency.verification import verify

ACCOUNTS, HISTORIES, ROUNDS = 10_000, 20, 4  # 10,000 x (GENESIS, plan, 4 x (RESERVE, COMMIT)) = 100,000 entries
ORDERS = 200
VERIFY_TARGET_S, ORDER_TARGET_MS = 60.0, 3.0


class Free:
    """A budget that costs nothing and keeps nothing: what a ledger is compared with."""

    def reserve(self, orders: Sequence[Order]) -> list[Refusal | None]:
        """Admit everything."""
        return [None for _ in orders]

    def settle(self, trained: Sequence[Order], failed: Sequence[Order] = ()) -> None:
        """Forget it."""


def order_ms(repeats: int) -> dict[str, Any]:
    """Time RESERVE and COMMIT of one order, both durable, in milliseconds."""
    figures = []
    for _ in range(repeats):
        with _ledger(accounts=1, rounds=ORDERS) as (ledger, charges):
            for number in range(1, ORDERS + 1):
                (charge,) = charges(number)
                started = time.perf_counter()
                ledger.reserve([charge])
                ledger.settle([charge])
                figures.append(1000 * (time.perf_counter() - started))
    return _figure(figures, target=ORDER_TARGET_MS)


def verify_s(repeats: int) -> dict[str, Any]:
    """Time the verification of an export with 100,000 entries, 10,000 accounts and 20 histories, in seconds."""
    figures = []
    with _ledger(accounts=ACCOUNTS, rounds=ROUNDS) as (ledger, charges):
        for number in range(1, ROUNDS + 1):
            ledger.reserve(charges(number))
            ledger.settle(charges(number))
        path = ledger.path.with_suffix(".jsonl")
        export.write(ledger.path, path)
        for _ in range(repeats):
            _forget_epsilons()
            started = time.perf_counter()
            verify(export.read(path), key=ledger.key)
            figures.append(time.perf_counter() - started)
    return _figure(figures, target=VERIFY_TARGET_S)


@contextmanager
def _ledger(*, accounts: int, rounds: int) -> Iterator[tuple[Ledger, Callable[[int], list[Charge]]]]:
    """A new ledger on which one run has reserved `rounds` participations of every account."""
    histories = [_history(position) for position in range(HISTORIES)]
    events = {f"bench/client-{number:06d}": histories[number % HISTORIES] for number in range(accounts)}
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger.create(Path(folder) / "ledger.db")
        ledger.open_accounts({name: _terms(name) for name in events})
        ledger.begin_run("bench", {name: Share(events=history, wanted=rounds) for name, history in events.items()})
        yield (
            ledger,
            lambda number: [
                Charge(account=name, run="bench", round=number, attempt=1, events=history)
                for name, history in events.items()
            ],
        )
        ledger.close()


def _history(position: int) -> History:
    return (SampledGaussian(noise_multiplier=2.0 + position / 10, sampling_rate=Fraction(1, 100), steps=4),)


def _terms(owner: str) -> Terms:
    return Terms(
        owner=owner, lineage="bench", version="1", records=5600, unit="record", adjacency="zero-out", delta=1e-5,
        budget=8.0, policy="0" * 64,
    )  # fmt: skip


def _forget_epsilons() -> None:
    """Let every repetition ask the accountants anew."""
    from common.privacy import accounting

    accounting.epsilon.cache_clear()


def _figure(figures: Sequence[float], *, target: float) -> dict[str, Any]:
    median = statistics.median(figures)
    return {
        "median": median,
        "min": min(figures),
        "max": max(figures),
        "target": target,
        "met": median <= target,
    }
