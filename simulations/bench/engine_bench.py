"""`discreet bench engine`: a simulation against bare training loops on as many cores."""

import os
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from common import flat
from common.config import Scenario, dump, parse
from simulations.bench import workload as work
from simulations.bench.contest import Figure, alternate, ratio


def figures(repeats: int) -> list[Figure]:
    """Compare clients a second of the parallel engine with as many bare one-thread loops run at the same time."""
    from client.app import app as client_app  # noqa: F401 - imported before the clock starts
    from simulations.engine.grid import InProcessGrid
    from simulations.engine.workers import Workers

    scenario, cores = parse(work.TEXT + 'privacy = {unit = "none"}'), os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as name, get_context("spawn").Pool(cores) as loops:
        work.write_clients(Path(name))
        workers = Workers("client.app:app", {"scenario": dump(scenario)}, count=cores)
        try:
            grid = InProcessGrid(clients=work.CLIENTS, executor=workers, node_config=work.node(name))
            workers.wait()
            shares = [work.CLIENTS // cores] * cores
            came = alternate(
                {
                    "engine": lambda: _engine_turn(grid, scenario),
                    "loops": lambda: work.CLIENTS / max(loops.map(_bare_loop, shares, chunksize=1)),
                },
                repeats,
            )
        finally:
            workers.close()
    return [ratio("engine_to_bare_loops", came["engine"], came["loops"], target=0.9, at_least=True)]


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
