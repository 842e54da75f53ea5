"""A data set on disk, split among clients.

Shapes: N is the number of records, D a record's own shape, K the number of clients.

A folder of `features.npy` (N, *D) and `labels.npy` (N,), ordered so that each client's records are neighbours,
`offsets.npy` (K + 1,), `units.npy` (N,) where records name their persons, and the public
test set as `test_features.npy` and `test_labels.npy`. No worker process holds more than its present client's rows: they
are a memory map of just these rows, or up to 1 MiB of them, which is read faster than its pages are faulted in, a copy.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
COPIED_BYTES = 1 << 20


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
    write_test(folder, test)


def write_test(folder: Path, test: Shard) -> None:
    """Write the public test set alone to an existing folder."""
    np.save(folder / "test_features.npy", test.features_ND)
    np.save(folder / "test_labels.npy", test.labels_N)


def open_shard(folder: Path, client: int) -> Shard:
    """Return the records of one client; IndexError for a client that is not there, OSError for a folder that is not."""
    offsets = _whole(folder / "offsets.npy", _version(folder / "offsets.npy"))
    if not 0 <= client < len(offsets) - 1:
        raise IndexError(f"client: expected 0 to {len(offsets) - 2}, got {client}")
    begin, end = int(offsets[client]), int(offsets[client + 1])
    named = folder / "units.npy"
    return Shard(
        features_ND=_rows(folder / "features.npy", begin, end),
        labels_N=_rows(folder / "labels.npy", begin, end),
        units_N=_rows(named, begin, end) if named.exists() else None,
    )


def open_test(folder: Path) -> Shard:
    """Return the public test set."""
    features = np.load(folder / "test_features.npy", mmap_mode="r")
    return Shard(features_ND=features, labels_N=np.load(folder / "test_labels.npy"))


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """How the records lie in an open file: their type, how many, the shape of each, and where the first begins."""

    descriptor: int
    dtype: np.dtype[Any]
    records: int
    shape: tuple[int, ...]
    start_bytes: int

    def __del__(self) -> None:
        """Close the file."""
        os.close(self.descriptor)


def _rows(path: Path, begin: int, end: int) -> Array:
    """Some rows of an array's file, to be read only; ValueError when the file has no such rows."""
    layout = _layout(path, _version(path))
    if not 0 <= begin <= end <= layout.records:
        raise ValueError(f"{path}: expected {end} records or more, got {layout.records}")
    if begin == end:
        return np.empty((0, *layout.shape), layout.dtype)
    row_bytes = layout.dtype.itemsize * int(np.prod(layout.shape))
    start, shape = layout.start_bytes + begin * row_bytes, (end - begin, *layout.shape)
    if (end - begin) * row_bytes > COPIED_BYTES:
        return np.memmap(path, layout.dtype, mode="r", offset=start, shape=shape)
    data = os.pread(layout.descriptor, (end - begin) * row_bytes, start)
    return np.frombuffer(data, layout.dtype).reshape(shape)


Version = tuple[int, int, int]


def _version(path: Path) -> Version:
    """What differs when another file is put in a file's place."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


@lru_cache(maxsize=16)
def _layout(path: Path, version: Version) -> _Layout:
    """Open a file and read its header, once in a process."""
    del version
    whole = np.load(path, mmap_mode="r")
    if not isinstance(whole, np.memmap) or not whole.flags.c_contiguous:
        raise ValueError(f"{path}: expected an array, row after row")
    return _Layout(
        descriptor=os.open(path, os.O_RDONLY),
        dtype=whole.dtype,
        records=len(whole),
        shape=whole.shape[1:],
        start_bytes=whole.offset,
    )


@lru_cache(maxsize=4)
def _whole(path: Path, version: Version) -> Array:
    """Read a small file once in a process."""
    del version
    array: Array = np.load(path)
    return array
