"""Messages whose arrays lie in shared memory, so that no tensor goes through a pipe."""

from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """Records of arrays that lie in shared memory.

    Args:
        block: the memory's name.
        number: of these contents; others in the same block have another.
        arrays: for each record its arrays: name, dtype, shape, kind, start and length in the block.
    """

    block: str
    number: int
    arrays: dict[str, list[tuple[str, str, tuple[int, ...], str, int, int]]]


def size_bytes(records: Mapping[str, ArrayRecord]) -> int:
    """Return how much room arrays need."""
    return sum(len(array.data) for record in records.values() for array in record.values())


def pack(records: Mapping[str, ArrayRecord], block: SharedMemory, *, number: int) -> Parcel:
    """Copy arrays into a block."""
    arrays: dict[str, list[tuple[str, str, tuple[int, ...], str, int, int]]] = {}
    start = 0
    for name, record in records.items():
        arrays[name] = []
        for key, array in record.items():
            length = len(array.data)
            _view(block)[start : start + length] = array.data
            arrays[name].append((key, array.dtype, array.shape, array.stype, start, length))
            start += length
    return Parcel(block=block.name, number=number, arrays=arrays)


def unpack(parcel: Parcel, block: SharedMemory) -> dict[str, ArrayRecord]:
    """Copy arrays out of a block."""
    return {
        name: _record(
            {
                key: Array(dtype, shape, stype, bytes(_view(block)[start : start + length]))
                for key, dtype, shape, stype, start, length in arrays
            }
        )
        for name, arrays in parcel.arrays.items()
    }


Plain = dict[str, tuple[str, dict[str, Any]]]


def plain(content: RecordDict) -> Plain:
    """The records that hold no arrays, as plain values."""
    return {
        name: ("config" if isinstance(record, ConfigRecord) else "metric", dict(record))
        for name, record in content.items()
        if not isinstance(record, ArrayRecord)
    }


def records(plain: Plain, arrays: Mapping[str, ArrayRecord] | None = None) -> RecordDict:
    """Make records of plain values, beside records of arrays of their own; the arrays are immutable and shared."""
    content: dict[str, ArrayRecord | ConfigRecord | MetricRecord] = {
        name: ConfigRecord(values) if kind == "config" else MetricRecord(values)
        for name, (kind, values) in plain.items()
    }
    for name, record in (arrays or {}).items():
        content[name] = _record(record)
    return RecordDict(content)


def same_arrays(left: dict[str, ArrayRecord], right: dict[str, ArrayRecord]) -> bool:
    """Return whether two messages hold the very same bytes, also where Flower has put them into objects anew."""
    return left.keys() == right.keys() and all(
        left[name].keys() == right[name].keys()
        and all(_is_same(left[name][key], right[name][key]) for key in left[name])
        for name in left
    )


def _record(arrays: Mapping[str, Array]) -> ArrayRecord:
    """A record of these very arrays; its own constructor makes each of them anew."""
    record = ArrayRecord()
    for key, array in arrays.items():
        record[key] = array
    return record


def _is_same(left: Array, right: Array) -> bool:
    alike = (left.dtype, left.shape, left.stype) == (right.dtype, right.shape, right.stype)
    return left.data is right.data and alike


def _view(block: SharedMemory) -> memoryview:
    """The memory of a block that is open."""
    if block.buf is None:
        raise ValueError(f"{block.name} is closed")
    return block.buf
