"""A witness as a process: it says when it is ready, and stops cleanly on SIGTERM."""

import logging
import signal
import threading
from pathlib import Path

from common.consortium.identity import load
from common.errors import ConsortiumError
from server.witness.service import start
from server.witness.store import Store

_LAST_PORT = 65_535


def run(folder: Path, *, listen: str, path: Path) -> None:
    """Answer until SIGTERM or SIGINT; one line on stdout says that the witness is ready."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    host, port = _listen(listen)
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    own, store = load(folder), Store(path)
    try:
        running = start(own, store=store, host=host, port=port)
    except BaseException:
        store.close()
        raise
    print(f"ready: witness {own.name} on {running.address}", flush=True)  # noqa: T201 - what a script waits for
    stopped.wait()
    running.stop()


def _listen(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not (host and colon and port.isascii() and port.isdigit() and int(port) <= _LAST_PORT):
        raise ConsortiumError(f"--listen: expected host:port, got {text!r}. Give 0.0.0.0:9445, say.")
    return host.strip("[]"), int(port)
