"""`discreet bench`: the hot path against the bare training loop, in turns within one call.

Machines are noisy, so contestants alternate and only ratios count. Random records: speed does not depend on them.
"""

import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from common import flat
from common.config import Scenario, dump, parse
from common.errors import BadInputError
from common.messages import Mechanism, Order
from common.privacy.plan import Plan
from common.shards import Shard, write_shards
from simulations import ledger_bench

CLIENTS = 40
RECORDS = 56  # a client's, as in the field's simulation benchmarks: one epoch is 4 steps of 14
TEXT = """
run = {name = "bench", rounds = 1}
data = {dataset = "mnist", clients = 40}
model = {name = "cnn", activation = "relu"}
training = {batch_size = 14, local_steps = 4}
"""


def run(name: str, *, repeats: int) -> dict[str, Any]:
    """Run a benchmark by name and return its ratios: median, min, max, target, and whether it is met."""
    if name not in BENCHES:
        raise BadInputError(f"bench: expected one of {', '.join(BENCHES)}, got '{name}'.")
    return {"bench": name, "repeats": repeats, "ratio": BENCHES[name](repeats)}


def show(result: Mapping[str, Any]) -> None:
    """Print the ratios for people."""
    table = Table(title=f"bench {result['bench']}, {result['repeats']} turns", title_justify="left")
    for heading in ("figure", "median", "min", "max", "target", "met"):
        table.add_column(heading, justify="left" if heading == "figure" else "right")
    for name, row in result["ratio"].items():
        figures = (f"{row[column]:.2f}" for column in ("median", "min", "max", "target"))
        table.add_row(name, *figures, "yes" if row["met"] else "no")
    Console().print(table)


def engine(repeats: int) -> dict[str, Any]:
    """Compare clients a second of the parallel engine with as many bare one-thread loops run at the same time."""
    from client.app import app as client_app  # noqa: F401 - imported before the clock starts
    from simulations.engine.grid import InProcessGrid
    from simulations.engine.workers import Workers

    scenario, cores = parse(TEXT + 'privacy = {unit = "none"}'), os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as name:
        _write_clients(Path(name))
        workers = Workers("client.app:app", {"scenario": dump(scenario)}, count=cores)
        try:
            grid = InProcessGrid(
                clients=CLIENTS,
                executor=workers,
                node_config=_node(name),
            )
            workers.wait()
            loops = get_context("spawn").Pool(cores)
            contestants: Sequence[Callable[[], float]] = (
                lambda: _engine_turn(grid, scenario),
                lambda: CLIENTS / max(loops.map(_bare_loop, [CLIENTS // cores] * cores, chunksize=1)),
            )
            pairs = _alternate(contestants, repeats)
            loops.close()
        finally:
            workers.close()
    return {"engine_to_bare_loops": _ratio(pairs, target=0.9, at_least=True)}


def dp_step(repeats: int) -> dict[str, Any]:
    """Compare a noisy step of the trainer with its plain step, on one thread."""
    torch.set_num_threads(1)
    plain, private = parse(TEXT + 'privacy = {unit = "none"}'), parse(TEXT + "privacy = {noise_multiplier = 1.0}")
    mechanism = Mechanism(sampling_rate=Fraction(14, RECORDS), noise_multiplier=1.0, max_grad_norm=1.0, steps=40)
    pairs = _alternate((_steps(private, mechanism), _steps(plain, None)), repeats)
    return {"private_to_plain_step": _ratio(pairs, target=1.6, at_least=False)}


def ledger(repeats: int) -> dict[str, Any]:
    """Time a private round with the ledger against one without, an order's two writes, and a verification."""
    return {
        "round_with_ledger_to_without": _rounds(repeats),
        "reserve_and_commit_ms": ledger_bench.order_ms(repeats),
        "verify_100000_entries_s": ledger_bench.verify_s(repeats),
    }


BENCHES: Mapping[str, Callable[[int], dict[str, Any]]] = {"engine": engine, "dp-step": dp_step, "ledger": ledger}


def _rounds(repeats: int) -> dict[str, Any]:
    """Seconds of a private round of all clients, with a ledger and without, in turns on the same workers."""
    from client.budget import Budget, agreements
    from common.ledger import Ledger
    from common.privacy.accounts import account_names, terms_of
    from simulations.engine.grid import InProcessGrid
    from simulations.engine.workers import Workers
    from simulations.single_plan import plan_of

    scenario = parse(TEXT + "privacy = {noise_multiplier = 1.0, budget = 1000.0}", overrides=["run.rounds=100"])
    plan = plan_of(scenario, records=[RECORDS] * CLIENTS)
    with tempfile.TemporaryDirectory() as name, closing(Ledger.create(Path(name) / "ledger.db")) as book:
        _write_clients(Path(name))
        budget = Budget(book, run=plan.run, agreements=agreements(plan, account_names(scenario, plan)))
        budget.begin(terms_of(scenario, plan))
        workers = Workers("client.app:app", {"scenario": dump(scenario)}, count=os.cpu_count() or 1)
        try:
            workers.wait()
            numbers = itertools.count(1)
            contestants = [
                _private_round(
                    InProcessGrid(clients=CLIENTS, executor=workers, node_config=_node(name), budget=kept),
                    plan,
                    numbers,
                )
                for kept in (budget, ledger_bench.Free())
            ]
            pairs = _alternate(contestants, repeats)
        finally:
            workers.close()
    return _ratio(pairs, target=1.05, at_least=False)


def _private_round(grid: Any, plan: Plan, numbers: Iterator[int]) -> Callable[[], float]:
    """A turn of one private round of all clients; its seconds."""
    from server.exchange import order_message, weights_record

    arrays = weights_record(_order(parse(TEXT + 'privacy = {unit = "none"}'), 0, None).weights_P)

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
            for client in range(CLIENTS)
        ]
        messages = [order_message(o, arrays=arrays, node=o.client + 1, ttl_s=600.0) for o in orders]
        started = time.perf_counter()
        replies = list(grid.send_and_receive(messages))
        seconds = time.perf_counter() - started
        if any(reply.has_error() for reply in replies):
            raise RuntimeError("a client failed: the figure would mean nothing")
        return seconds

    return turn


def _write_clients(folder: Path) -> None:
    rows = np.split(np.arange(CLIENTS * RECORDS), CLIENTS)
    write_shards(folder, train=_records(CLIENTS * RECORDS), test=_records(10), indices=rows)


def _node(folder: str) -> Callable[[int], dict[str, Any]]:
    return lambda client: {"partition-id": client, "shards": folder}


def _steps(scenario: Scenario, mechanism: Mechanism | None) -> Callable[[], float]:
    """A turn of 40 steps of one client; its seconds."""
    from client.trainer import Trainer

    scenario = scenario.model_copy(update={"training": scenario.training.model_copy(update={"local_steps": 40})})
    trainer, shard = Trainer(scenario), _records(RECORDS)
    order = _order(scenario, 0, mechanism)

    def turn() -> float:
        started = time.perf_counter()
        trainer.train(order, shard)
        return time.perf_counter() - started

    return turn


def _engine_turn(grid: Any, scenario: Scenario) -> float:
    """Clients a second of one round through the grid."""
    from server.exchange import order_message, weights_record

    started = time.perf_counter()
    arrays = weights_record(_order(scenario, 0, None).weights_P)
    messages = [
        order_message(_order(scenario, client, None), arrays=arrays, node=client + 1, ttl_s=600.0)
        for client in range(CLIENTS)
    ]
    replies = list(grid.send_and_receive(messages))
    if any(reply.has_error() for reply in replies) or len(replies) != CLIENTS:
        raise RuntimeError("a client failed: the figure would mean nothing")
    return CLIENTS / (time.perf_counter() - started)


def _bare_loop(clients: int) -> float:
    """Seconds of the same work in a plain PyTorch loop on one thread, channels_last."""
    from torch.nn import functional

    from common.models.registry import build
    from common.tasks import TASKS

    torch.set_num_threads(1)
    scenario, shard = parse(TEXT + 'privacy = {unit = "none"}'), _records(RECORDS)
    model = build(scenario.model, TASKS["mnist"], seed=7)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # PyTorch's stubs leave it out
    start_P = flat.flatten(model)
    features, labels = torch.from_numpy(shard.features_ND), torch.from_numpy(shard.labels_N)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    total_P = torch.zeros(len(start_P), dtype=torch.float64)
    started = time.perf_counter()
    for _ in range(clients):
        flat.load(model, start_P)
        for rows in torch.split(torch.randperm(RECORDS), 14):
            optimizer.zero_grad(set_to_none=True)
            functional.cross_entropy(model(features[rows]), labels[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        total_P += flat.flatten(model)
    return time.perf_counter() - started


def _order(scenario: Scenario, client: int, mechanism: Mechanism | None) -> Order:
    from common.models.registry import build
    from common.tasks import TASKS

    weights_P = flat.flatten(build(scenario.model, TASKS["mnist"], seed=7)).numpy()
    return Order(run="bench", round=1, attempt=1, client=client, weights_P=weights_P, mechanism=mechanism)


def _records(count: int) -> Shard:
    generator = np.random.default_rng(0)
    features = generator.standard_normal((count, 1, 28, 28)).astype(np.float32)
    return Shard(features_ND=features, labels_N=generator.integers(0, 10, count))


def _alternate(contestants: Sequence[Callable[[], float]], repeats: int) -> list[tuple[float, float]]:
    """One turn each that does not count, then `repeats` turns in pairs."""
    first, second = contestants
    first(), second()
    return [(first(), second()) for _ in range(repeats)]


def _ratio(pairs: Sequence[tuple[float, float]], *, target: float, at_least: bool) -> dict[str, Any]:
    ratios = [ours / theirs for ours, theirs in pairs]
    median = statistics.median(ratios)
    met = median >= target if at_least else median <= target
    return {"median": median, "min": min(ratios), "max": max(ratios), "target": target, "met": met}
