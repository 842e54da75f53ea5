"""A message's records in one: each object of a message is an HTTP call of its own, and Flower makes five of an array.

    >>> fields = packed({"order": {"round": 3}, "seal": {"policy": "aa"}}, {"weights": b"....", })
    >>> sorted(fields)
    ['=weights', 'order.round', 'seal.policy']
    >>> unpacked(fields) == ({"order": {"round": 3}, "seal": {"policy": "aa"}}, {"weights": b"...."})
    True

Arrays (little-endian float32) of up to `INLINE_BYTES` are packed too; a longer one stays an array of Flower's, which a
round's messages share.
"""

from collections.abc import Mapping

from common.errors import WireError
from common.wire import Scalar

LETTER = "letter"  # name of the record
INLINE_BYTES = 1 << 20

Records = dict[str, dict[str, Scalar]]


def packed(records: Mapping[str, Mapping[str, Scalar]], arrays: Mapping[str, bytes]) -> dict[str, Scalar]:
    """Return records and arrays as one record; `unpacked` brings them back equal, but for records without a field."""
    fields: dict[str, Scalar] = {f"={name}": numbers for name, numbers in arrays.items()}
    for name, record in records.items():
        fields |= {f"{name}.{key}": value for key, value in record.items()}
    return fields


def unpacked(fields: Mapping[str, object]) -> tuple[Records, dict[str, bytes]]:
    """Return the records and arrays that were packed, or raise WireError."""
    records: Records = {}
    arrays: dict[str, bytes] = {}
    for name, value in fields.items():
        record, dot, key = name.partition(".")
        if not isinstance(value, int | float | str | bool | bytes):
            raise WireError(f"letter: expected scalars, got {type(value).__name__}.")
        if name.startswith("=") and len(name) > 1 and isinstance(value, bytes):
            arrays[name.removeprefix("=")] = value
        elif dot and record and key and not name.startswith("="):
            records.setdefault(record, {})[key] = value
        else:
            raise WireError("letter: expected fields of records, and arrays as bytes, got another field.")
    return records, arrays
