"""Batches in parts: whole units, each record once, and no more in memory than there is room for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.batches import Persons, Records


@settings(deadline=None)
@given(chosen=st.sets(st.integers(0, 50)).map(sorted), size=st.integers(1, 20))
def test_parts_of_records_are_the_batch_in_its_order(chosen, size):
    """However large a part may be, the parts together are the batch, and the last one is marked."""
    parts = list(Records(51).parts(np.array(chosen, np.intp), size=size))
    assert np.concatenate([part.rows_B for part in parts]).tolist() == chosen
    assert all(part.units == len(part.rows_B) <= size and part.owner_B is None for part in parts)
    assert [part.is_last for part in parts] == [False] * (len(parts) - 1) + [True]


@settings(deadline=None)
@given(
    units=st.lists(st.integers(-3, 9), min_size=1, max_size=60),
    size=st.integers(1, 20),
    data=st.data(),
)
def test_parts_of_persons_hold_every_record_of_the_chosen_once(units, size, data):
    """All records of a chosen person lie in one part under one owner, and nobody else's do."""
    names = sorted(set(units))
    chosen = sorted(data.draw(st.sets(st.integers(0, len(names) - 1))))
    parts = list(Persons(np.array(units)).parts(np.array(chosen, np.intp), size=size))
    assert [part.is_last for part in parts] == [False] * (len(parts) - 1) + [True]
    seen = []
    for part in parts:
        assert len(part.rows_B) <= size or part.units == 1
        assert part.owner_B is not None
        for owner in range(part.units):
            rows = part.rows_B[part.owner_B == owner].tolist()
            assert len({units[row] for row in rows}) == 1
            seen.append((units[rows[0]], rows))
    assert seen == [(names[i], [row for row, unit in enumerate(units) if unit == names[i]]) for i in chosen]


def test_persons_are_counted_not_records():
    """Five records of three persons: three units, whatever numbers name them."""
    assert Persons(np.array([10**12, -4, 10**12, 7, -4])).units == 3
    assert Records(5).units == 5


@pytest.mark.parametrize("population", [Records(4), Persons(np.array([1, 1, 2, 3]))])
def test_an_empty_batch_has_one_empty_part(population):
    """There is a step to be noised all the same."""
    (part,) = population.parts(np.zeros(0, np.intp), size=8)
    assert (len(part.rows_B), part.units, part.is_last) == (0, 0, True)


def test_neighbours_share_a_part_as_long_as_there_is_room():
    """Persons with 2, 3 and 9 records and room for 5: the first two together, the third alone with more than fits."""
    people = Persons(np.repeat([0, 1, 2], [2, 3, 9]))
    assert [len(part.rows_B) for part in people.parts(np.arange(3), size=5)] == [5, 9]
