"""How records are split: nobody shares a record, and sizes are what was declared."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import Scenario, parse
from common.errors import ScenarioError
from common.shards import Shard
from simulations.datasets import Dataset
from simulations.partition import declared_records, split


def scenario(clients: int, partition: str = "iid", *, seed: int = 7, alpha: float = 0.5) -> Scenario:
    return parse(
        f'run = {{name = "x", rounds = 1, seed = {seed}}}\n'
        f'data = {{dataset = "digits", partition = "{partition}", clients = {clients}, alpha = {alpha}}}\n'
        'training = {batch_size = 1}\nprivacy = {unit = "none"}'
    )


def dataset(labels: list[int], owners: list[int] | None = None) -> Dataset:
    """Return records without features: a split looks at labels and owners only."""
    shard = Shard(features_ND=np.zeros((len(labels), 1)), labels_N=np.array(labels, np.int64))
    return Dataset(train=shard, test=shard, owner_N=None if owners is None else np.array(owners, np.int64))


def ten_classes(records: int) -> Dataset:
    return dataset([number % 10 for number in range(records)])


def all_rows(rows: list[np.ndarray]) -> list[int]:
    return sorted(np.concatenate(rows).tolist())


@settings(deadline=None)
@given(records=st.integers(1, 200), clients=st.integers(1, 20), seed=st.integers(0, 99))
def test_iid_shares_are_disjoint_and_equal(records, clients, seed):
    """Each client gets records // clients rows of its own, so that fewer than `clients` are left out."""
    if records < clients:
        return
    rows = split(scenario(clients, seed=seed), ten_classes(records))
    assert [len(part) for part in rows] == [records // clients] * clients
    taken = all_rows(rows)
    assert len(set(taken)) == len(taken)
    assert set(taken) <= set(range(records))
    assert records - len(taken) < clients


@settings(deadline=None)
@given(alpha=st.floats(0.5, 100), clients=st.integers(1, 5), seed=st.integers(0, 99))
def test_dirichlet_uses_every_record_once(alpha, clients, seed):
    """The shares are disjoint and together the whole data set, or the split is refused."""
    try:
        rows = split(scenario(clients, "dirichlet", seed=seed, alpha=alpha), ten_classes(203))
    except ScenarioError:
        return
    assert len(rows) == clients
    assert min(len(part) for part in rows) > 0
    assert all_rows(rows) == list(range(203))


def test_small_alpha_makes_clients_unlike():
    """At alpha = 0.05 most of a class lies with one client; at alpha = 1000 each has a quarter of it."""
    data = ten_classes(4000)

    def largest_share(alpha: float) -> float:
        rows = split(scenario(4, "dirichlet", alpha=alpha), data)
        counts = np.array([np.bincount(data.train.labels_N[part], minlength=10) for part in rows])
        return float((counts.max(axis=0) / 400).mean())

    assert largest_share(0.05) > 0.8
    assert largest_share(1000) < 0.3


def test_natural_client_is_one_writer_with_all_its_records():
    """Four persons with 3, 1, 2 and 2 records: each client's rows are those of one of them."""
    owners = [7, 5, 7, 9, 8, 9, 7, 8]
    rows = split(scenario(4, "natural"), dataset([0] * 8, owners))
    by_person = {7: [0, 2, 6], 5: [1], 9: [3, 5], 8: [4, 7]}
    assert sorted(part.tolist() for part in rows) == sorted(by_person.values())


def test_natural_clients_are_drawn_at_random_from_all_writers():
    """Two of many persons: different ones for different seeds, each with all its records."""
    owners = [person for person in range(50) for _ in range(3)]
    drawn = {
        tuple(owners[part[0]] for part in split(scenario(2, "natural", seed=seed), dataset([0] * 150, owners)))
        for seed in range(20)
    }
    assert len(drawn) > 10
    for part in split(scenario(2, "natural"), dataset([0] * 150, owners)):
        assert len(part) == 3
        assert len({owners[row] for row in part}) == 1


def of_persons(clients: int, *, seed: int = 7) -> Scenario:
    return parse(
        f'run = {{name = "x", rounds = 1, seed = {seed}}}\ndata = {{dataset = "mnist", clients = {clients}}}\n'
        'training = {batch_size = 1}\nprivacy = {epsilon = 1.0, unit_column = "writer"}'
    )


def written_by(units: list[int]) -> Dataset:
    """Return records that name their persons."""
    shard = Shard(features_ND=np.zeros((len(units), 1)), labels_N=np.zeros(len(units), np.int64))
    return Dataset(train=replace(shard, units_N=np.array(units, np.int64)), test=shard)


@settings(deadline=None)
@given(
    units=st.lists(st.integers(-5, 30), min_size=1, max_size=200), clients=st.integers(1, 8), seed=st.integers(0, 99)
)
def test_persons_are_dealt_with_all_their_records(units, clients, seed):
    """Each client has as many persons as the next, each person is with one client and has all its records there."""
    persons = len(set(units))
    if persons < clients:
        with pytest.raises(ScenarioError, match="too many"):
            split(of_persons(clients, seed=seed), written_by(units))
        return
    rows = split(of_persons(clients, seed=seed), written_by(units))
    owners = [{units[row] for row in part} for part in rows]
    assert [len(people) for people in owners] == [persons // clients] * clients
    assert len(set().union(*owners)) == clients * (persons // clients)
    for part, people in zip(rows, owners, strict=True):
        assert part.tolist() == [row for row, unit in enumerate(units) if unit in people]


def test_dealing_persons_follows_from_the_seed():
    """The same seed deals them alike, another one does not."""
    data = written_by([number // 3 for number in range(120)])
    one, again, other = (split(of_persons(4, seed=seed), data) for seed in (1, 1, 2))
    assert [part.tolist() for part in one] == [part.tolist() for part in again]
    assert [part.tolist() for part in one] != [part.tolist() for part in other]


def test_declared_persons_need_no_data():
    """539 writers among 3 and among 10, from the declared constant alone; more clients than writers are refused."""
    assert declared_records(of_persons(3)) == (179,) * 3
    assert declared_records(of_persons(10)) == (53,) * 10
    with pytest.raises(ScenarioError, match="540 clients are too many"):
        declared_records(of_persons(540))


def test_persons_of_a_data_set_that_was_read_without_them_are_refused():
    """Records are never dealt in place of persons."""
    with pytest.raises(ScenarioError, match=r"privacy\.unit_column: 'mnist' was read without its persons"):
        split(of_persons(3), ten_classes(100))


@pytest.mark.parametrize("partition", ["iid", "dirichlet", "natural"])
def test_same_seed_gives_the_same_split(partition):
    """A split follows from the run's seed, and another seed gives another one."""
    data = dataset([number % 10 for number in range(120)], [number // 3 for number in range(120)])
    one, again, other = (split(scenario(5, partition, seed=seed), data) for seed in (1, 1, 2))
    assert [part.tolist() for part in one] == [part.tolist() for part in again]
    assert [part.tolist() for part in one] != [part.tolist() for part in other]


@pytest.mark.parametrize("partition", ["iid", "dirichlet", "natural"])
def test_rows_of_a_client_are_in_increasing_order(partition):
    """A shard is read as it lies on disk."""
    data = dataset([number % 10 for number in range(120)], [number % 40 for number in range(120)])
    for part in split(scenario(5, partition), data):
        assert (np.diff(part) > 0).all()


@pytest.mark.parametrize("partition", ["iid", "dirichlet"])
def test_more_clients_than_records_are_refused(partition):
    """Somebody would have nothing: the error says what to lower."""
    with pytest.raises(ScenarioError, match=r"data\.clients: 11 clients are too many.*Lower data\.clients"):
        split(scenario(11, partition), ten_classes(10))


def test_dirichlet_that_leaves_a_client_without_records_is_refused():
    """Ten records of one class at alpha = 0.001 all go to one of five clients, or nearly all."""
    with pytest.raises(ScenarioError, match=r"one has no record.*raise data\.alpha"):
        split(scenario(5, "dirichlet", alpha=0.001), dataset([0] * 10))


def test_more_clients_than_persons_are_refused():
    """The error says how many persons there are."""
    with pytest.raises(ScenarioError, match=r"data\.clients: expected at most 2 persons, got 3"):
        split(scenario(3, "natural"), dataset([0] * 4, [1, 1, 2, 2]))


def test_natural_split_of_a_data_set_without_persons_is_refused():
    """Digits name nobody: the error names the partitions that there are."""
    with pytest.raises(ScenarioError, match=r"'digits' names no persons; expected 'iid' or 'dirichlet', got 'natural'"):
        split(scenario(3, "natural"), ten_classes(100))


def test_declared_records_of_iid_shares_need_no_data():
    """1,437 digits among ten: 143 each, from the declared constant alone; MNIST's files need not be there."""
    assert declared_records(scenario(10)) == (143,) * 10
    absent = scenario(7).model_copy(
        update={"data": scenario(7).data.model_copy(update={"dataset": "mnist", "path": "/nowhere"})}
    )
    assert declared_records(absent) == (8571,) * 7  # 60,000 // 7


@pytest.mark.parametrize("partition", ["iid", "dirichlet"])
def test_declared_records_are_those_of_the_split(partition):
    """What the plan counts on is what each client gets."""
    from simulations.datasets import load

    of = scenario(6, partition)
    assert declared_records(of) == tuple(len(part) for part in split(of, load(of)))


def test_declaring_more_clients_than_records_is_refused():
    """The plan refuses before any data is read."""
    with pytest.raises(ScenarioError, match="1438 clients are too many for 'digits'"):
        declared_records(scenario(1438))
