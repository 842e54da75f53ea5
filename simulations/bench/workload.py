"""The work that benchmarks do.

Random records: speed does not depend on them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from common import flat
from common.config import Scenario
from common.messages import Mechanism, Order
from common.shards import Shard, write_shards

CLIENTS = 40
RECORDS = 56  # a client's, as in the field's simulation benchmarks: one epoch is 4 steps of 14
TEXT = """
run = {name = "bench", rounds = 1}
data = {dataset = "mnist", clients = 40}
model = {name = "cnn", activation = "relu"}
training = {batch_size = 14, local_steps = 4}
"""


def order(scenario: Scenario, client: int, mechanism: Mechanism | None) -> Order:
    """Return a client's order for the work, with fresh weights."""
    from common.models.registry import build
    from common.tasks import TASKS

    weights_P = flat.flatten(build(scenario.model, TASKS["mnist"], seed=7)).numpy()
    return Order(run="bench", round=1, attempt=1, client=client, weights_P=weights_P, mechanism=mechanism)


def records(count: int) -> Shard:
    """Return random records of the work's shape."""
    generator = np.random.default_rng(0)
    features = generator.standard_normal((count, 1, 28, 28)).astype(np.float32)
    return Shard(features_ND=features, labels_N=generator.integers(0, 10, count))


def write_clients(folder: Path) -> None:
    """Write every client's records."""
    rows = np.split(np.arange(CLIENTS * RECORDS), CLIENTS)
    write_shards(folder, train=records(CLIENTS * RECORDS), test=records(10), indices=rows)


def node(folder: str) -> Callable[[int], dict[str, Any]]:
    """Return the node configuration of each client."""
    return lambda client: {"partition-id": client, "shards": folder}
