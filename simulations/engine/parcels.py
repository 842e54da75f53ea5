"""Messages whose arrays lie in shared memory, so that no tensor goes through a pipe."""

from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """A message's records, their arrays lying in shared memory.

    Args:
        arrays: for each record its arrays: name, dtype, shape, kind, start and length in the block.
        records: the other records by name.
    """

    block: str
    arrays: dict[str, list[tuple[str, str, tuple[int, ...], str, int, int]]]
    records: dict[str, tuple[str, dict[str, Any]]]


def pack(records: dict[str, ArrayRecord], block: SharedMemory) -> Parcel:
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
    return Parcel(block=block.name, arrays=arrays, records={})


def unpack(parcel: Parcel, block: SharedMemory) -> RecordDict:
    """Copy arrays out of a block, and make records of the rest."""
    content = records(parcel.records)
    for name, arrays in parcel.arrays.items():
        content[name] = ArrayRecord(
            {
                key: Array(dtype, shape, stype, bytes(_view(block)[start : start + length]))
                for key, dtype, shape, stype, start, length in arrays
            }
        )
    return content


def plain(content: RecordDict) -> dict[str, tuple[str, dict[str, Any]]]:
    """The records that hold no arrays, as plain values."""
    return {
        name: ("config" if isinstance(record, ConfigRecord) else "metric", dict(record))
        for name, record in content.items()
        if not isinstance(record, ArrayRecord)
    }


def records(plain: dict[str, tuple[str, dict[str, Any]]]) -> RecordDict:
    """Make records of plain values."""
    return RecordDict(
        {
            name: ConfigRecord(values) if kind == "config" else MetricRecord(values)
            for name, (kind, values) in plain.items()
        }
    )


def same_arrays(left: dict[str, ArrayRecord], right: dict[str, ArrayRecord]) -> bool:
    """Return whether two messages hold the very same arrays."""
    return left.keys() == right.keys() and all(
        left[name].keys() == right[name].keys() and all(left[name][key] is right[name][key] for key in left[name])
        for name in left
    )


def _view(block: SharedMemory) -> memoryview:
    """The memory of a block that is open."""
    if block.buf is None:
        raise ValueError(f"{block.name} is closed")
    return block.buf
