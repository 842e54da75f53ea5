"""Poisson batches, in parts that fit into memory.

Shapes: N records, U units in a part, B records in a part.

A unit is what is sampled and clipped: a record, or a person with all its records. A part holds whole units.

    >>> people = Persons(np.array([7, 5, 7, 9]))
    >>> [(part.rows_B.tolist(), part.owner_B.tolist()) for part in people.parts(np.array([0, 1]), size=3)]
    [([1, 0, 2], [0, 1, 1])]
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some whole units of a batch.

    Args:
        rows_B: their records.
        is_last: whether the batch ends with it.
        units: how many units.
        owner_B: for each record the position of its unit, from 0; None where each record is a unit of its own.
    """

    rows_B: Rows
    is_last: bool
    units: int
    owner_B: Rows | None = None


class Records:
    """Each record is a unit."""

    def __init__(self, count: int) -> None:
        self.units = count

    def parts(self, chosen: Rows, *, size: int) -> Iterator[Part]:
        """Yield the chosen records in parts of at most `size`, at least one part."""
        starts = range(0, max(len(chosen), 1), size)
        for start in starts:
            rows_B = chosen[start : start + size]
            yield Part(rows_B=rows_B, is_last=start == starts[-1], units=len(rows_B))


class Persons:
    """Each person is a unit, with all its records, in the order of the numbers that name them.

    Guarantees:
        Each record of a chosen person is in one part, once, and all of them are in the same part.
        A part has at most `size` records, or it is one person who has more.
    """

    def __init__(self, units_N: npt.NDArray[np.int64]) -> None:
        """Find each person's records."""
        order = np.argsort(units_N, kind="stable")
        _, starts = np.unique(units_N[order], return_index=True)
        self._rows = np.split(order, starts[1:])
        self.units = len(starts)

    def parts(self, chosen: Rows, *, size: int) -> Iterator[Part]:
        """Yield the chosen persons in parts, at least one part."""
        packed = _packed([self._rows[person] for person in chosen], size)
        for number, persons in enumerate(packed, 1):
            yield Part(
                rows_B=np.concatenate([np.zeros(0, np.intp), *persons]),
                is_last=number == len(packed),
                units=len(persons),
                owner_B=np.repeat(np.arange(len(persons)), [len(rows) for rows in persons]),
            )


def _packed(persons: Sequence[Rows], size: int) -> list[list[Rows]]:
    """Neighbours together, as long as there is room for all records of the next."""
    packed: list[list[Rows]] = [[]]
    free = size
    for rows in persons:
        if packed[-1] and len(rows) > free:
            packed.append([])
            free = size
        packed[-1].append(rows)
        free -= len(rows)
    return packed
