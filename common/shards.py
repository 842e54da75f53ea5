"""A data set on disk, split among clients.

Shapes: N is the number of records, D a record's own shape, K the number of clients.

A folder of `features.npy` (N, *D) and `labels.npy` (N,), ordered so that each client's records are neighbours,
`offsets.npy` (K + 1,), `units.npy` (N,) where records name their persons, and the public
test set as `test_features.npy` and `test_labels.npy`. They are opened as memory maps: a shard is a view, no client and
no worker process has a copy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Some records: `features_ND` (float32 images or int64 tokens), `labels_N` (int64), and whose each of them is.

    `units_N` (int64) is the same number for all records of a person, None where a record is a unit of its own.
    """

    features_ND: Array
    labels_N: Array
    units_N: Array | None = None

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.labels_N)


def write_shards(folder: Path, *, train: Shard, test: Shard, indices: Sequence[npt.NDArray[np.intp]]) -> None:
    """Write a data set to an existing folder; `indices` holds each client's rows of `train`."""
    order = np.concatenate(indices)
    np.save(folder / "features.npy", train.features_ND[order])
    np.save(folder / "labels.npy", train.labels_N[order])
    if train.units_N is not None:
        np.save(folder / "units.npy", train.units_N[order])
    np.save(folder / "offsets.npy", np.cumsum([0, *(len(rows) for rows in indices)]))
    np.save(folder / "test_features.npy", test.features_ND)
    np.save(folder / "test_labels.npy", test.labels_N)


def open_shard(folder: Path, client: int) -> Shard:
    """Return the records of one client; IndexError for a client that is not there, OSError for a folder that is not."""
    offsets = np.load(folder / "offsets.npy")
    if not 0 <= client < len(offsets) - 1:
        raise IndexError(f"client: expected 0 to {len(offsets) - 2}, got {client}")
    rows = slice(int(offsets[client]), int(offsets[client + 1]))
    features = np.load(folder / "features.npy", mmap_mode="r")
    labels = np.load(folder / "labels.npy", mmap_mode="r")
    named = folder / "units.npy"
    units = np.load(named, mmap_mode="r")[rows] if named.exists() else None
    return Shard(features_ND=features[rows], labels_N=labels[rows], units_N=units)


def open_test(folder: Path) -> Shard:
    """Return the public test set."""
    features = np.load(folder / "test_features.npy", mmap_mode="r")
    return Shard(features_ND=features, labels_N=np.load(folder / "test_labels.npy"))
