"""`discreet bench`: the hot path against the bare training loop, in turns within one call.

Machines are noisy, so contestants alternate and only ratios count. Random records: speed does not depend on them.
"""

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from common import flat
from common.config import Scenario, dump, parse
from common.errors import BadInputError
from common.messages import Mechanism
from simulations import bench_work as work
from simulations import ledger_bench


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

    scenario, cores = parse(work.TEXT + 'privacy = {unit = "none"}'), os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as name:
        work.write_clients(Path(name))
        workers = Workers("client.app:app", {"scenario": dump(scenario)}, count=cores)
        try:
            grid = InProcessGrid(
                clients=work.CLIENTS,
                executor=workers,
                node_config=work.node(name),
            )
            workers.wait()
            loops = get_context("spawn").Pool(cores)
            contestants: Sequence[Callable[[], float]] = (
                lambda: _engine_turn(grid, scenario),
                lambda: work.CLIENTS / max(loops.map(_bare_loop, [work.CLIENTS // cores] * cores, chunksize=1)),
            )
            pairs = work.alternate(contestants, repeats)
            loops.close()
        finally:
            workers.close()
    return {"engine_to_bare_loops": work.ratio(pairs, target=0.9, at_least=True)}


def dp_step(repeats: int) -> dict[str, Any]:
    """Compare a noisy step of the trainer with its plain step, on one thread."""
    torch.set_num_threads(1)
    plain, private = (
        parse(work.TEXT + 'privacy = {unit = "none"}'),
        parse(work.TEXT + "privacy = {noise_multiplier = 1.0}"),
    )
    mechanism = Mechanism(sampling_rate=Fraction(14, work.RECORDS), noise_multiplier=1.0, max_grad_norm=1.0, steps=40)
    pairs = work.alternate((_steps(private, mechanism), _steps(plain, None)), repeats)
    return {"private_to_plain_step": work.ratio(pairs, target=1.6, at_least=False)}


def ledger(repeats: int) -> dict[str, Any]:
    """Time a private round with the ledger against one without, an order's two writes, and a verification."""
    return {
        "round_with_ledger_to_without": ledger_bench.round_ratio(repeats),
        "reserve_and_commit_ms": ledger_bench.order_ms(repeats),
        "verify_100000_entries_s": ledger_bench.verify_s(repeats),
    }


BENCHES: Mapping[str, Callable[[int], dict[str, Any]]] = {"engine": engine, "dp-step": dp_step, "ledger": ledger}


def _steps(scenario: Scenario, mechanism: Mechanism | None) -> Callable[[], float]:
    """A turn of 40 steps of one client; its seconds."""
    from client.trainer import Trainer

    scenario = scenario.model_copy(update={"training": scenario.training.model_copy(update={"local_steps": 40})})
    trainer, shard = Trainer(scenario), work.records(work.RECORDS)
    order = work.order(scenario, 0, mechanism)

    def turn() -> float:
        started = time.perf_counter()
        trainer.train(order, shard)
        return time.perf_counter() - started

    return turn


def _engine_turn(grid: Any, scenario: Scenario) -> float:
    """Clients a second of one round through the grid."""
    from server.exchange import order_message, weights_record

    started = time.perf_counter()
    arrays = weights_record(work.order(scenario, 0, None).weights_P)
    messages = [
        order_message(work.order(scenario, client, None), arrays=arrays, node=client + 1, ttl_s=600.0)
        for client in range(work.CLIENTS)
    ]
    replies = list(grid.send_and_receive(messages))
    if any(reply.has_error() for reply in replies) or len(replies) != work.CLIENTS:
        raise RuntimeError("a client failed: the figure would mean nothing")
    return work.CLIENTS / (time.perf_counter() - started)


def _bare_loop(clients: int) -> float:
    """Seconds of the same work in a plain PyTorch loop on one thread, channels_last."""
    from torch.nn import functional

    from common.models.registry import build
    from common.tasks import TASKS

    torch.set_num_threads(1)
    scenario, shard = parse(work.TEXT + 'privacy = {unit = "none"}'), work.records(work.RECORDS)
    model = build(scenario.model, TASKS["mnist"], seed=7)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # PyTorch's stubs leave it out
    start_P = flat.flatten(model)
    features, labels = torch.from_numpy(shard.features_ND), torch.from_numpy(shard.labels_N)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    total_P = torch.zeros(len(start_P), dtype=torch.float64)
    started = time.perf_counter()
    for _ in range(clients):
        flat.load(model, start_P)
        for rows in torch.split(torch.randperm(work.RECORDS), 14):
            optimizer.zero_grad(set_to_none=True)
            functional.cross_entropy(model(features[rows]), labels[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        total_P += flat.flatten(model)
    return time.perf_counter() - started
