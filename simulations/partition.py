"""How records are split among clients.

Shapes: N records.

All of it follows from the run's seed and public facts. Every client's number of records is thereby a declared constant.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from common.config import Scenario
from common.errors import ScenarioError
from common.seeds import derive
from common.tasks import task_of
from simulations.datasets import Dataset, load

Rows = npt.NDArray[np.intp]


def declared_records(scenario: Scenario) -> tuple[int, ...]:
    """Return each client's number of records, or of persons where they are the unit.

    IID shares follow from the declared size, without reading any data.
    """
    if scenario.data.partition == "iid":
        task, column = task_of(scenario.data), scenario.privacy.unit_column
        units = task.train_records if column is None else task.unit_columns[column]
        if units is None:
            key, of = ("records", "records") if column is None else ("persons", f"persons in column '{column}'")
            raise ScenarioError(
                f"data.{key}: expected the number of {of} in '{scenario.data.path}', which the plan counts on, got "
                f"none; add it"
            )
        share = units // scenario.data.clients
        _enough(scenario, [share])
        return (share,) * scenario.data.clients
    return tuple(len(rows) for rows in split(scenario, load(scenario)))


def split(scenario: Scenario, dataset: Dataset) -> list[Rows]:
    """Return each client's rows.

    Guarantees:
        No row belongs to two clients.
        `iid`: all shares are equal, so that all clients spend alike; up to clients - 1 records are left out.
        `iid` with `unit_column`: the same of persons, each with all its records: no person is with two clients.
        `dirichlet`: every record is used; each class is shared out in proportions drawn from Dirichlet(alpha).
        `natural`: a client is a person with all its records; `clients` persons are drawn at random.

    Raises:
        ScenarioError: more clients than records or persons, or a split that leaves a client without any.
    """
    generator = np.random.default_rng(derive(scenario.run.seed, "split"))
    clients = scenario.data.clients
    if scenario.privacy.unit_column is not None:
        rows = _persons(scenario, dataset, generator)
    elif scenario.data.partition == "iid":
        share = len(dataset.train) // clients
        rows = list(generator.permutation(len(dataset.train))[: share * clients].reshape(clients, share))
    elif scenario.data.partition == "dirichlet":
        rows = _dirichlet(dataset.train.labels_N, clients, scenario.data.alpha, generator)
    else:
        rows = _natural(scenario, dataset, generator)
    _enough(scenario, [len(part) for part in rows])
    return [np.sort(part) for part in rows]


def _persons(scenario: Scenario, dataset: Dataset, generator: np.random.Generator) -> list[Rows]:
    """Deal persons, as many to each client, with all their records."""
    if dataset.train.units_N is None:
        raise ScenarioError(f"privacy.unit_column: '{scenario.data.dataset}' was read without its persons.")
    names, person_N = np.unique(dataset.train.units_N, return_inverse=True)
    share = len(names) // scenario.data.clients
    dealt = generator.permutation(len(names))[: share * scenario.data.clients]
    return [np.flatnonzero(np.isin(person_N, persons)) for persons in dealt.reshape(scenario.data.clients, share)]


def _dirichlet(
    labels_N: npt.NDArray[np.int64], clients: int, alpha: float, generator: np.random.Generator
) -> list[Rows]:
    """Share out each class in random proportions (Hsu et al. 2019, https://arxiv.org/abs/1909.06335)."""
    shares: list[list[Rows]] = [[] for _ in range(clients)]
    for label in np.unique(labels_N):
        rows = generator.permutation(np.flatnonzero(labels_N == label))
        cuts = np.cumsum(generator.dirichlet(np.full(clients, alpha)))[:-1]
        for share, part in zip(shares, np.split(rows, (cuts * len(rows)).astype(int)), strict=True):
            share.append(part)
    return [np.concatenate(share) for share in shares]


def _natural(scenario: Scenario, dataset: Dataset, generator: np.random.Generator) -> list[Rows]:
    if dataset.owner_N is None:
        raise ScenarioError(
            f"data.partition: '{scenario.data.dataset}' names no persons; expected 'iid' or 'dirichlet', got 'natural'."
        )
    owners = np.unique(dataset.owner_N)
    if scenario.data.clients > len(owners):
        raise ScenarioError(f"data.clients: expected at most {len(owners)} persons, got {scenario.data.clients}.")
    by_owner = np.argsort(dataset.owner_N, kind="stable")
    starts = np.searchsorted(dataset.owner_N[by_owner], owners)
    parts = np.split(by_owner, starts[1:])
    return [parts[person] for person in generator.permutation(len(owners))[: scenario.data.clients]]


def _enough(scenario: Scenario, sizes: Sequence[int]) -> None:
    if min(sizes) == 0:
        raise ScenarioError(
            f"data.clients: {scenario.data.clients} clients are too many for '{scenario.data.dataset}' split by "
            f"'{scenario.data.partition}': one has no record. Lower data.clients, or raise data.alpha."
        )
