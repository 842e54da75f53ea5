"""Files that are whole or not there.

A file is written beside its place, flushed to the disk, and renamed: a crash or a full disk leaves the old one whole.
"""

import os
from collections.abc import Callable
from pathlib import Path


def write_whole(path: Path, content: bytes | str) -> None:
    """Replace `path` by `content`, or leave it as it was and raise OSError."""
    data = content.encode() if isinstance(content, str) else content
    write_whole_with(path, lambda temporary: temporary.write_bytes(data))


def write_whole_with(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then put it in the place of `path` durably."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Wait until the disk has the file, or the folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
