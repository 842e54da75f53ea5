"""The C library's allocator, told to keep what is freed.

A training step allocates and frees some megabytes of activations. As it comes, glibc may hand them back to the system
after every step and fetch them anew, page by page: up to 1,150 page faults and twice the time a step, in about one
process of three, by the luck of the heap's layout.
"""

import ctypes
from functools import cache

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # mallopt(3)
_MEBIBYTE = 1 << 20


@cache
def keep_freed_memory() -> None:
    """Let this process keep up to 512 MiB of freed memory for its next step; nothing happens where glibc is not."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 * _MEBIBYTE)  # the largest that glibc takes
        mallopt(_M_TRIM_THRESHOLD, 512 * _MEBIBYTE)
        mallopt(_M_TOP_PAD, 64 * _MEBIBYTE)
