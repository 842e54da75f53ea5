"""Canaries: rows whose gradient is known beforehand, so that an attack can look for them.

Shapes: M canaries, B rows, D a record's own shape.

A canary is an ordinary row of a shard, of the shape and type of the records beside it, and passes through the loader,
the sampler, clipping and noise as they do. Its first number is a mark that no record has, its second says which weight
of the pad (`common.models.pad`) it pulls at. A canary that lost the toss of its coin is an idle row in its place: its
gradient is zero. That is the zero-out adjacency of the accounting, and the number of rows stays the declared one.

    >>> rows = canary_rows(np.array([0, 1]), np.array([True, False]), shape=(1, 2, 2), dtype=np.dtype(np.float32))
    >>> rows.reshape(2, 4)[:, 1].tolist()
    [0.0, -1.0]
"""

from typing import Any

import numpy as np
import numpy.typing as npt

MARK = -(
    2**40
)  # a power of two, exact as float32 and as int64; scaled images, standardised columns and tokens have none
IDLE = -1
SMALLEST_ROW = 2  # numbers: the mark, and which canary


def canary_rows(
    weight_B: npt.NDArray[np.int64], is_in_B: npt.NDArray[np.bool_], *, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    """Return rows that pull at the pad, (B, *shape), and idle ones where a coin fell the other way.

    Args:
        weight_B: which weight of the pad each row pulls at, from 0.
        is_in_B: whether it does.
        shape: of a record, with two numbers or more.
        dtype: of the records: float32, or int64 for tokens.
    """
    if int(np.prod(shape)) < SMALLEST_ROW:
        raise ValueError(f"shape: expected {SMALLEST_ROW} numbers or more, got {shape}")
    rows = np.zeros((len(weight_B), int(np.prod(shape))), dtype)
    rows[:, 0] = MARK
    rows[:, 1] = np.where(is_in_B, weight_B, IDLE)
    return rows.reshape(len(weight_B), *shape)


def has_mark(features_ND: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return which rows look like canaries, (N,); among an organisation's own records there must be none."""
    marked: npt.NDArray[np.bool_] = features_ND.reshape(len(features_ND), -1)[:, 0] == MARK
    return marked
