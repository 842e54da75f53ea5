r"""One flat array of float32 as the very bytes that numpy writes for it, and back without parsing a header.

>>> raw_floats(packed(b"\0\0\x80?"), size=1)
array([1.], dtype=float32)

A header from outside is never parsed, so that none can name another shape, type or file format.
"""

from functools import lru_cache
from io import BytesIO

import numpy as np

from common.errors import WireError
from common.messages import FloatArray

FLOAT_BYTES = 4


def raw_floats(data: bytes, *, size: int) -> FloatArray:
    """Return the numbers in a serialised array, or raise WireError.

    Guarantees:
        Only the very bytes that numpy writes for `size` float32 numbers in a row are read.
    """
    header, expected = _header(size), raw_size(size)
    if len(data) != expected:
        raise WireError(f"array: expected {expected} bytes for {size} numbers, got {len(data)}.")
    if not data.startswith(header):
        raise WireError(f"array: expected the header of {size} float32 numbers in a row, got another.")
    return np.frombuffer(data, np.dtype("<f4"), offset=len(header))


def raw_size(size: int) -> int:
    """Return how many bytes numpy writes for so many numbers."""
    return len(_header(size)) + FLOAT_BYTES * size


def packed(numbers: bytes) -> bytes:
    """Return what numpy writes for an array of these little-endian float32 numbers."""
    return _header(len(numbers) // FLOAT_BYTES) + numbers


@lru_cache(maxsize=8)
def _header(size: int) -> bytes:
    """What numpy writes before the numbers (NEP 1, version 1.0)."""
    buffer = BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (size,)})
    return buffer.getvalue()
