"""`discreet bench aggregation`: 100 updates of a million parameters, against Flower's own aggregation.

Both get the same replies, as they come from a grid. Ours is what the server does with them: read, check, add up in
double precision, move the model. Flower's takes them all at once and gives the mean.
"""

import time
import tracemalloc
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from common.config import Server
from common.messages import Order, Report
from common.wire import encode_report
from server.aggregation import OrderedSum
from server.exchange import order_message, report_in, weights_record
from server.global_model import GlobalModel
from server.replies import checked_update
from simulations.bench.contest import Figure, Turn, alternate, ratio
from simulations.engine.executors import identify

REPEATS = 9

UPDATES, SIZE = 100, 1_000_000
TIME_TARGET = 4.0
MEMORY_TARGET_MB = 14.0  # the sum in double precision is 8, an update 4
RUN = "bench"


def figures(repeats: int, *, updates: int = UPDATES, size: int = SIZE) -> list[Figure]:
    """Compare the time of both, and measure what ours holds at most, in MB, when updates come one by one."""
    identify()
    came = list(replies(updates, size))
    seconds = alternate({"ours": lambda: _timed(came, size), "flower": _flower(came)}, repeats)
    held = tuple(held_mb(updates, size) for _ in range(repeats))
    return [
        ratio("flower_to_ours_time", seconds["flower"], seconds["ours"], target=TIME_TARGET, at_least=True),
        Figure(name="aggregation_memory_mb", turns=held, target=MEMORY_TARGET_MB * size / SIZE, at_least=False),
    ]


def replies(updates: int, size: int) -> Iterator[Message]:
    """Yield each client's reply with numbers of its own, as a client sends it."""
    for client in range(updates):
        yield _reply(client, Array(np.random.default_rng(client).standard_normal(size, np.float32)))


def _reply(client: int, update: Array) -> Message:
    """What a client sends."""
    order = Order(run=RUN, round=1, attempt=1, client=client, weights_P=np.zeros(0, np.float32))
    report = Report(run=RUN, round=1, attempt=1, client=client, update_P=order.weights_P)
    content = RecordDict(
        {
            "arrays": ArrayRecord({"update": update}),
            "report": ConfigRecord(dict(encode_report(report).scalars)),
            "metrics": MetricRecord({"num-examples": 1}),
        }
    )
    asked = order_message(order, arrays=weights_record(order.weights_P), node=client + 1, ttl_s=3600.0)
    return Message(content, reply_to=asked)


def aggregated(came: Iterable[Message], model: GlobalModel, *, updates: int) -> None:
    """Move a model by the mean of all updates, as the server does."""
    size = len(model.weights_P)
    total = OrderedSum(range(updates), size=size)
    for reply in came:
        report = report_in(reply, size=size)
        client = report.client
        update_P = checked_update(report, run=RUN, round_number=1, attempt=1, client=client, size=size, max_norm=None)
        total.add(client, update_P)
        del reply, report, update_P
    mean_P = total.result()
    mean_P /= total.total_weight
    model.step(mean_P)


def held_mb(updates: int, size: int) -> float:
    """Return what aggregation holds at most beside the model, in MB of 10^6 bytes; updates come one by one."""
    model, written = _model(size), Array(np.ones(size, np.float32))
    tracemalloc.start()
    try:
        aggregated((_reply(client, _copy(written)) for client in range(updates)), model, updates=updates)
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def _copy(array: Array) -> Array:
    """The same numbers in memory of their own."""
    return Array(array.dtype, array.shape, array.stype, b"".join([memoryview(array.data), b""]))


def _timed(came: list[Message], size: int) -> float:
    """Seconds of our aggregation."""
    model = _model(size)
    started = time.perf_counter()
    aggregated(came, model, updates=len(came))
    return time.perf_counter() - started


def _flower(came: list[Message]) -> Turn:
    """A turn of Flower's aggregation; its seconds."""
    contents = [reply.content for reply in came]

    def turn() -> float:
        started = time.perf_counter()
        aggregate_arrayrecords(contents, "num-examples")
        return time.perf_counter() - started

    return turn


def _model(size: int) -> GlobalModel:
    return GlobalModel(torch.zeros(size), Server(cohort=UPDATES, max_participations=1))
