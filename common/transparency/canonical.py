"""One value, one sequence of bytes: JSON that can be hashed.

    >>> dumps({"b": 1, "a": ["x"]})
    b'{"a":["x"],"b":1}'

Keys are sorted, nothing is spaced, text is UTF-8. There are no floats: a number that is not whole travels as a decimal
string. Source: RFC 8785 (JCS), restricted to strings, whole numbers, lists and objects.
"""

import json
from typing import Any

LARGEST = 2**53 - 1  # beyond which readers in other languages round


def dumps(value: object) -> bytes:
    """Return the canonical bytes of a value; ValueError for what has none."""
    _check(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def loads(data: bytes) -> Any:
    """Read a value back; ValueError unless `data` is exactly what `dumps` writes for it.

    Guarantees:
        dumps(loads(data)) == data.
    """
    try:
        value = json.loads(data)
        exact = dumps(value) == data
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not exact:
        raise ValueError("not in canonical form")
    return value


def _check(value: object) -> None:
    match value:
        case bool() | None | float():
            raise ValueError(f"expected text, whole numbers, lists and objects, got {value!r}")
        case int():
            if abs(value) > LARGEST:
                raise ValueError(f"expected a whole number of at most 2^53 - 1, got {value}")
        case str():
            pass
        case list() | tuple():
            for item in value:
                _check(item)
        case dict():
            for key, item in value.items():
                if not isinstance(key, str) or not key.isascii():
                    raise ValueError(f"expected keys of ASCII text, got {key!r}")
                _check(item)
        case _:
            raise ValueError(f"expected text, whole numbers, lists and objects, got {type(value).__name__}")
