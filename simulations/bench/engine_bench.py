"""`discreet bench engine`: a simulation against bare training loops on as many cores.

Ours are whole rounds of 100 clients, as `discreet simulate` runs them: messages, training, checks, aggregation,
checkpoint (`engine_rounds`). A bare loop is one process on one thread that does nothing but train, in channels_last,
with the allocator set as ours is; one a core runs at the same time.
"""

import os
import time
from multiprocessing import get_context

import torch
from torch.nn import functional

from common import flat
from common.allocator import keep_freed_memory
from common.config import parse
from common.models.registry import build
from common.tasks import TASKS
from simulations.bench import workload as work
from simulations.bench.contest import Figure, alternate, ratio
from simulations.bench.engine_rounds import CLIENTS, engine

REPEATS = 9

ROUNDS = 1
LOOP_CLIENTS = CLIENTS * ROUNDS


def figures(repeats: int) -> list[Figure]:
    """Compare clients a second of the parallel engine with as many bare one-thread loops run at the same time."""
    cores = os.cpu_count() or 1
    shares = [LOOP_CLIENTS // cores] * cores
    with (
        get_context("spawn").Pool(cores) as loops,
        engine('{unit = "none"}', turns=repeats + 1, rounds=ROUNDS) as ours,
    ):
        came = alternate(
            {
                "engine": ours.turn,
                "loops": lambda: sum(shares) / max(loops.map(bare_loop, shares, chunksize=1)),
            },
            repeats,
        )
    return [ratio("engine_to_bare_loops", came["engine"], came["loops"], target=0.9, at_least=True)]


def bare_loop(clients: int) -> float:
    """Seconds of the same work in a plain PyTorch loop on one thread."""
    torch.set_num_threads(1)
    keep_freed_memory()
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
