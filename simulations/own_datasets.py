"""A consortium's data set in a simulation: all its files on this machine, of which a fifth becomes the public test set.

Shapes: N records.

In a deployment nobody has all files: each organisation reads its own, and the scenario's `path` is a public test set.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from common.config import Scenario
from common.errors import DataMissingError
from common.readers.records import joined, public_sources, read
from common.shards import Shard
from common.tasks import TEST_SHARE, set_aside, task_of
from simulations.datasets import SPLIT_SEED, Dataset
from simulations.holdout import Rows, stratified


def load_own(scenario: Scenario) -> Dataset:
    """Read the files that a scenario names, and set a fifth aside.

    Guarantees:
        Each file and each class has its share of the public test set, give or take one; where persons are the unit, a
        fifth of them is set aside, with all their records: nobody is in both.
        The test set is the same in every run.

    Raises:
        DataMissingError: a file that is not there, or records or persons of another number than is declared.
    """
    column, files = scenario.privacy.unit_column, public_sources(scenario.data)
    shards = [read(file, data=scenario.data, unit_column=column) for file in files]
    whole = joined(shards)
    file_N = np.repeat(np.arange(len(shards)), [len(shard) for shard in shards])
    if column is None:
        _refuse_other("records", scenario.data.records, len(whole), scenario)
        kind_N = file_N * task_of(scenario.data).classes + whole.labels_N
        train, test = stratified(kind_N, share=TEST_SHARE, seed=SPLIT_SEED)
    else:
        whole = replace(whole, units_N=(units_N := _told_apart(shards)))
        train, test = _persons_aside(units_N, scenario)
    return Dataset(
        train=_rows(whole, train),
        test=replace(_rows(whole, test), units_N=None),
        owner_N=file_N[train] if len(shards) > 1 else None,
    )


def _told_apart(shards: Sequence[Shard]) -> npt.NDArray[np.int64]:
    """Everybody's number; somebody of one file is nobody of another."""
    numbers: list[npt.NDArray[np.int64]] = []
    first = 0
    for shard in shards:
        units_N = np.empty(0, np.int64) if shard.units_N is None else shard.units_N
        numbers.append(units_N + first)
        first = int(numbers[-1].max()) + 1
    return np.concatenate(numbers)


def _persons_aside(units_N: npt.NDArray[np.int64], scenario: Scenario) -> tuple[Rows, Rows]:
    """The rows of those who are trained on, and of the fifth that is set aside."""
    persons, person_N = np.unique(units_N, return_inverse=True)
    _refuse_other("persons", scenario.data.persons, len(persons), scenario)
    drawn = np.random.default_rng(SPLIT_SEED).permutation(len(persons))[: set_aside(len(persons))]
    is_test_N = np.isin(person_N, drawn)
    return np.flatnonzero(~is_test_N), np.flatnonzero(is_test_N)


def _rows(whole: Shard, rows: Rows) -> Shard:
    return Shard(
        features_ND=whole.features_ND[rows],
        labels_N=whole.labels_N[rows],
        units_N=None if whole.units_N is None else whole.units_N[rows],
    )


def _refuse_other(key: str, declared: int | None, found: int, scenario: Scenario) -> None:
    if declared is not None and declared != found:
        raise DataMissingError(
            f"{scenario.data.dataset}: expected {declared} {key}, the declared number that the plan counts on, got "
            f"{found}. Correct data.{key}, or the files."
        )
