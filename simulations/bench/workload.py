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
from common.model_tables import Transformer
from common.shards import Shard, write_shards

CLIENTS = 40
RECORDS = 56  # a client's, as in the field's simulation benchmarks: one epoch is 4 steps of 14
TEXT = """
run = {name = "bench", rounds = 1}
data = {dataset = "mnist", clients = 40}
model = {name = "cnn", activation = "relu"}
training = {batch_size = 14, local_steps = 4}
"""
TRANSFORMER = """
run = {name = "bench", rounds = 1}
data = {dataset = "sms-spam", clients = 40}
model = {name = "transformer", vocabulary = 1039}
training = {batch_size = 14, local_steps = 4}
"""


def order(scenario: Scenario, client: int, mechanism: Mechanism | None) -> Order:
    """Return a client's order for the work, with fresh weights."""
    from common.models.registry import build
    from common.tasks import task_of

    weights_P = flat.flatten(build(scenario.model, task_of(scenario.data), seed=7)).numpy()
    return Order(run="bench", round=1, attempt=1, client=client, weights_P=weights_P, mechanism=mechanism)


def records(count: int, *, of: Scenario | None = None) -> Shard:
    """Return random records of the work's shape, images unless a scenario of texts is given."""
    generator = np.random.default_rng(0)
    if of is not None and isinstance(of.model, Transformer):
        tokens = generator.integers(1, of.model.vocabulary, (count, of.model.tokens))
        return Shard(features_ND=tokens, labels_N=generator.integers(0, 2, count))
    features = generator.standard_normal((count, 1, 28, 28)).astype(np.float32)
    return Shard(features_ND=features, labels_N=generator.integers(0, 10, count))


def write_clients(folder: Path) -> None:
    """Write every client's records."""
    rows = np.split(np.arange(CLIENTS * RECORDS), CLIENTS)
    write_shards(folder, train=records(CLIENTS * RECORDS), test=records(10), indices=rows)


def node(folder: str) -> Callable[[int], dict[str, Any]]:
    """Return the node configuration of each client."""
    return lambda client: {"partition-id": client, "shards": folder}
