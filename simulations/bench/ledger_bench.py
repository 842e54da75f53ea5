"""`discreet bench ledger`: what keeping the budget costs, and how long a stranger needs to check it."""

import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from common.config import dump, parse
from common.ledger import Ledger, Share
from common.messages import Order, Refusal
from common.privacy.accounts import account_names, terms_of
from common.privacy.events import History, SampledGaussian
from common.privacy.plan import Plan
from common.transparency import export
from common.transparency.drafts import Charge
from common.transparency.entries import Terms
from common.transparency.verification import verify
from simulations.bench import workload as work
from simulations.bench.contest import Figure, alternate, ratio
from simulations.single_plan import plan_of

REPEATS = 3

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


def figures(repeats: int) -> list[Figure]:
    """Time a private round with the ledger against one without, an order's two writes, and a verification."""
    return [_round_ratio(repeats), _order_ms(repeats), _verify_s(repeats)]


def _order_ms(repeats: int) -> Figure:
    """Time RESERVE and COMMIT of one order, both durable, in milliseconds."""
    took = []
    for _ in range(repeats):
        with _ledger(accounts=1, rounds=ORDERS) as (ledger, charges):
            for number in range(1, ORDERS + 1):
                (charge,) = charges(number)
                started = time.perf_counter()
                ledger.reserve([charge])
                ledger.settle([charge])
                took.append(1000 * (time.perf_counter() - started))
    return Figure(name="reserve_and_commit_ms", turns=tuple(took), target=ORDER_TARGET_MS, at_least=False)


def _verify_s(repeats: int) -> Figure:
    """Time the verification of an export with 100,000 entries, 10,000 accounts and 20 histories, in seconds."""
    took = []
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
            took.append(time.perf_counter() - started)
    return Figure(name="verify_100000_entries_s", turns=tuple(took), target=VERIFY_TARGET_S, at_least=False)


def _round_ratio(repeats: int) -> Figure:
    """Seconds of a private round of all clients, with a ledger and without, in turns on the same workers."""
    from client.budget import Budget, agreements
    from simulations.engine.grid import InProcessGrid
    from simulations.engine.workers import Workers

    scenario = parse(work.TEXT + "privacy = {noise_multiplier = 1.0, budget = 1000.0}", overrides=["run.rounds=100"])
    plan = plan_of(scenario, records=[work.RECORDS] * work.CLIENTS)
    with tempfile.TemporaryDirectory() as folder, closing(Ledger.create(Path(folder) / "ledger.db")) as book:
        work.write_clients(Path(folder))
        budget = Budget(book, run=plan.run, agreements=agreements(plan, account_names(scenario, plan)))
        budget.begin(terms_of(scenario, plan))
        workers = Workers("client.app:app", {"scenario": dump(scenario)}, count=os.cpu_count() or 1)
        try:
            workers.wait()
            numbers = itertools.count(1)
            turns = {
                name: _private_round(
                    InProcessGrid(clients=work.CLIENTS, executor=workers, node_config=work.node(folder), budget=kept),
                    plan,
                    numbers,
                )
                for name, kept in (("with", budget), ("without", Free()))
            }
            came = alternate(turns, repeats)
        finally:
            workers.close()
    return ratio("round_with_ledger_to_without", came["with"], came["without"], target=1.05, at_least=False)


def _private_round(grid: Any, plan: Plan, numbers: Iterator[int]) -> Callable[[], float]:
    """A turn of one private round of all clients; its seconds."""
    from server.exchange import order_message, weights_record

    arrays = weights_record(work.order(parse(work.TEXT + 'privacy = {unit = "none"}'), 0, None).weights_P)

    def turn() -> float:
        number = next(numbers)
        orders = [
            Order(
                run=plan.run,
                round=number,
                attempt=1,
                client=client,
                weights_P=np.zeros(0, np.float32),
                mechanism=plan.mechanism(client),
            )
            for client in range(work.CLIENTS)
        ]
        messages = [order_message(o, arrays=arrays, node=o.client + 1, ttl_s=600.0) for o in orders]
        started = time.perf_counter()
        replies = list(grid.send_and_receive(messages))
        seconds = time.perf_counter() - started
        if any(reply.has_error() for reply in replies):
            raise RuntimeError("a client failed: the figure would mean nothing")
        return seconds

    return turn


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
    accounting.check.cache_clear()
