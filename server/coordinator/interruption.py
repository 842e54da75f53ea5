"""Lets SIGTERM and Ctrl-C end a run in order: the link is told, and one line says how to go on."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from common.errors import RunFailedError


@contextmanager
def interruptible(folder: Path) -> Iterator[None]:
    """Turn a signal to end, whatever is going on within, into RunFailedError; the folder can be resumed."""
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _interrupt) if is_main else None
    try:
        yield
    except KeyboardInterrupt as error:
        raise RunFailedError(f"The run was interrupted. Continue with: discreet run --resume {folder}") from error
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise KeyboardInterrupt
