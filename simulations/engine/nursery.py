"""One process that has imported what workers need, and of which they are forks.

Imports take seconds and a worker's first client milliseconds: the nursery imports once for all workers, while the
coordinator does its own. It has done nothing but import when they are forked: it has one thread, no connection, no open
file of a run, and no secret; a worker that is forked draws a seed of its own first (`worker_process`). Python calls it
a fork server.

It is started once in a process and serves every run in it. It ends with the process that started it.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext

from common.config import Scenario

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def is_wanted(scenario: Scenario) -> bool:
    """Whether the scenario may have workers on this machine."""
    return scenario.engine.kind in {"auto", "parallel"} and scenario.server.cohort > 1 and (os.cpu_count() or 1) > 1


def prepare(scenario: Scenario) -> None:
    """Start importing what the scenario's workers need, where it may have workers; return at once."""
    if is_wanted(scenario):
        private = ["client.private"] if scenario.privacy.unit == "record" else []
        context("client.app", *private)


def context(*modules: str) -> ForkServerContext:
    """Return the context that forks workers; its process imports `modules` if it is started by this call."""
    made = get_context("forkserver")
    made.set_forkserver_preload(["torch", *modules])
    with _single_threaded(), _undisturbed():
        forkserver.ensure_running()
    return made


@contextlib.contextmanager
def _single_threaded() -> Iterator[None]:
    """Let a child's mathematical libraries start with one thread."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Let a child start deaf to Ctrl-C, which is the parent's business: it would die of it with a traceback."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
