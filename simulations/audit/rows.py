"""An audit's rows: canaries where their coins say so, and synthetic records.

Shapes: N records, D a record's own shape.
"""

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from client.live.room import record_shape
from common.canaries import IDLE, canary_rows
from common.config import Scenario
from common.model_tables import Transformer
from common.privacy.entropy import Entropy
from common.seeds import derive
from common.shards import Shard
from common.tasks import task_of
from simulations.datasets import Dataset
from simulations.partition import split

TEST_ROWS = 32

Bools = npt.NDArray[np.bool_]


def coins(count: int) -> Bools:
    """Toss fair coins of the operating system."""
    is_in_M = np.zeros(count, bool)
    is_in_M[Entropy().bernoulli(count, probability=Fraction(1, 2))] = True
    return is_in_M


def laid_out(scenario: Scenario, *, units: int, rows: int, fill: Callable[[int, int], int | None]) -> Dataset:
    """Return rows for each client, laid where the split will find them, and a synthetic test set.

    Args:
        scenario: the audited one.
        units: of each client.
        rows: of each unit.
        fill: which weight a client's unit pulls at, IDLE, or None for a record; of client and unit, from 0.
    """
    total = scenario.data.clients * units * rows
    train, is_of_persons = synthetic(scenario, total), scenario.privacy.unit_column is not None
    owner_N = np.repeat(np.arange(total // rows), rows) if is_of_persons else None
    train = Shard(features_ND=train.features_ND, labels_N=train.labels_N, units_N=owner_N)
    dataset = Dataset(train=train, test=synthetic(scenario, TEST_ROWS))
    for client, mine in enumerate(split(scenario, dataset)):
        weights = [fill(client, unit) for unit in range(units)]
        at = np.array([position for position, weight in enumerate(weights) if weight is not None])
        pulled = np.repeat([weight for weight in weights if weight is not None], rows)
        places = mine.reshape(units, rows)[at].reshape(-1)
        shape, dtype = train.features_ND.shape[1:], train.features_ND.dtype
        train.features_ND[places] = canary_rows(pulled, pulled != IDLE, shape=shape, dtype=dtype)
        train.labels_N[places] = 0
    return dataset


def synthetic(scenario: Scenario, count: int) -> Shard:
    """Return random records of the scenario's shape and type, of random classes."""
    generator = np.random.default_rng(derive(scenario.run.seed, "audit"))
    labels_N = generator.integers(task_of(scenario.data).classes, size=count)
    shape = (count, *record_shape(scenario))
    if isinstance(scenario.model, Transformer):
        return Shard(features_ND=generator.integers(1, scenario.model.vocabulary, size=shape), labels_N=labels_N)
    return Shard(features_ND=generator.normal(size=shape).astype(np.float32), labels_N=labels_N)
