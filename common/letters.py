"""A message's content between coordinator and organisation, as Flower's records.

All scalars are in one record, and arrays of up to `INLINE_BYTES` with them; a longer array comes beside it as Flower's
own, which the messages of a round can share. No header of a sender's is ever parsed.
"""

from collections.abc import Mapping
from typing import Any, cast

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.common.constant import SType

from common.errors import WireError
from common.packing import INLINE_BYTES, LETTER, Records, packed, unpacked
from common.raw_arrays import FLOAT_BYTES, raw_floats
from common.raw_arrays import packed as as_numpy_writes
from common.wire import Scalar

ARRAYS = "arrays"


def letter(
    records: Mapping[str, Mapping[str, Scalar]], arrays: Mapping[str, bytes], *, beside: ArrayRecord | None = None
) -> RecordDict:
    """Return a message's content; `opened` brings records and arrays back.

    Args:
        records: scalars, by the names of records and fields.
        arrays: little-endian float32, by name.
        beside: a record of the arrays that are long, where it is there already.
    """
    inline = {name: numbers for name, numbers in arrays.items() if len(numbers) <= INLINE_BYTES}
    content = RecordDict({LETTER: config(packed(records, inline))})
    long = {name: flower_array(numbers) for name, numbers in arrays.items() if name not in inline}
    if long:
        content[ARRAYS] = ArrayRecord(long) if beside is None else beside
    return content


def opened(content: RecordDict) -> tuple[Records, dict[str, bytes]]:
    """Return the records and the arrays of a message, or raise WireError."""
    if LETTER not in content or set(content) - {LETTER, ARRAYS}:
        raise WireError(f"message: expected a record '{LETTER}', got others.")
    records, arrays = unpacked(cast(ConfigRecord, content[LETTER]))
    if ARRAYS in content:
        for name, array in cast(ArrayRecord, content[ARRAYS]).items():
            arrays[name] = _numbers(name, array)
    return records, arrays


def config(fields: Mapping[str, Scalar]) -> ConfigRecord:
    """Return scalars as a record of Flower's."""
    return ConfigRecord(cast(dict[str, Any], dict(fields)))


def flower_array(numbers: bytes) -> Array:
    """Return little-endian float32 as an array of Flower's."""
    size = len(numbers) // FLOAT_BYTES
    return Array(dtype="float32", shape=(size,), stype=SType.NUMPY, data=as_numpy_writes(numbers))


def _numbers(name: str, array: Array) -> bytes:
    """The numbers of an array that came beside a letter."""
    if array.dtype != "float32" or array.stype != SType.NUMPY or len(array.shape) != 1 or array.shape[0] < 0:
        raise WireError(f"{name}: expected one flat float32 array, got another.")
    return raw_floats(array.data, size=array.shape[0]).tobytes()
