"""The node's handle of its training process: what dies in there costs one order.

    worker = Worker(place, train_timeout_s=600, stop=stop)
    worker.start()
    worker.ready()                              # loaded; DiscreetError when it never will be
    worker.train(request, keep=write_to_disk)   # or RefusedError: worker-died, timed-out, ...

A process that died or took too long is replaced at once, so that the next order finds one.
"""

import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import TypeVar

from client.node import training_process
from client.node.connection import StoppedError
from client.node.work import (
    Began,
    Broken,
    Done,
    End,
    Offered,
    Propose,
    Ready,
    Refused,
    Request,
    Response,
    Stored,
    Train,
    Trained,
    Workplace,
)
from common.errors import DiscreetError, RefusedError
from common.messages import Refusal

log = logging.getLogger("discreet.node")

LOADED_WITHIN_S = 120.0
ANSWERED_WITHIN_S = 120.0  # a proposal, the end of a run
CHARGED_WITHIN_S = 1500.0  # the ledger's lock, and a witness that is waited for, twice
GRACE_S = 3.0  # for an order that is being trained when the node is told to stop
_LOOK_S = 0.2

Wanted = TypeVar("Wanted")


class BrokenError(DiscreetError):
    """The training process cannot begin, as things are."""

    def __init__(self, broken: Broken) -> None:
        super().__init__(broken.why)
        self.word, self.exit_code = broken.word, broken.exit_code


class Worker:
    """One training process after the other.

    Guarantees:
        Whatever happens in there is RefusedError with one word here, and never the end of the node.
    """

    def __init__(self, place: Workplace, *, train_timeout_s: float, stop: threading.Event) -> None:
        """Prepare; `start` begins the first process."""
        self._place, self._train_timeout_s, self._stop = place, train_timeout_s, stop
        self._context = multiprocessing.get_context("spawn")
        self._process: BaseProcess | None = None
        self._pipe: connection.Connection
        self._ready: Ready | None = None
        self._stop_seen: float | None = None

    @property
    def process_id(self) -> int | None:
        """The number of the present process, for those who watch it."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Begin a process; it loads while other things are done."""
        here, there = self._context.Pipe()
        self._pipe, self._ready = here, None
        self._process = self._context.Process(
            target=training_process.main,
            args=(there, self._place, os.getpid(), logging.getLogger().getEffectiveLevel()),
            name="discreet-training",
            daemon=True,
        )
        self._process.start()
        there.close()

    def ready(self) -> Ready:
        """Wait until the process has loaded; BrokenError when it cannot, RefusedError when it died of it."""
        if self._ready is None:
            answer = self._wait(time.monotonic() + LOADED_WITHIN_S)
            if isinstance(answer, Broken):
                self._kill()  # the next order tries again
                raise BrokenError(answer)
            self._ready = self._expect(answer, Ready)
        return self._ready

    def propose(self, request: Propose) -> Offered:
        """Ask what stands against a run."""
        return self._expect(self._asked(request, within_s=ANSWERED_WITHIN_S), Offered)

    def end(self, request: End) -> None:
        """Close a run."""
        self._expect(self._asked(request, within_s=ANSWERED_WITHIN_S), Done)

    def train(self, request: Train, *, keep: Callable[[Trained], None]) -> None:
        """Have an order carried out; `keep` puts the report on the disk before the ledger says that it was.

        What happens after `keep` returned is only logged: the report is there, and the charge stands.
        """
        self._expect(self._asked(request, within_s=CHARGED_WITHIN_S), Began)
        report = self._expect(self._wait(time.monotonic() + self._train_timeout_s), Trained)
        try:
            keep(report)
        except DiscreetError:
            self._settle(is_kept=False)
            raise
        self._settle(is_kept=True)

    def tend(self) -> None:
        """Replace a process that died while nobody asked it anything."""
        process = self._process
        if process is not None and self._ready is not None and not process.is_alive():
            self._replace(f"is gone (exit {process.exitcode})")

    def close(self) -> None:
        """End the process, now."""
        if self._process is not None:
            self._kill()

    def _settle(self, *, is_kept: bool) -> None:
        """Tell the process whether the report is stored, and wait for what it makes of it."""
        try:
            answer = self._asked(Stored(is_kept=is_kept), within_s=ANSWERED_WITHIN_S)
            if is_kept:
                self._expect(answer, Done)
        except RefusedError as error:
            log.warning("the ledger was not told that an order was carried out (%s); it stays charged", error)

    def _asked(self, request: Request, *, within_s: float) -> Response:
        self.tend()
        if self._process is None:
            self.start()
        try:
            self.ready()
        except BrokenError as error:
            raise RefusedError(error.word, f"the training process cannot begin: {error}") from error
        try:
            self._pipe.send(request)
        except OSError:
            raise self._lost() from None
        return self._wait(time.monotonic() + within_s)

    def _wait(self, deadline: float) -> Response:
        """The next answer; RefusedError when there is none, and then there is a new process."""
        process = self._process
        assert process is not None  # noqa: S101 - it was started
        while True:
            came = connection.wait([self._pipe, process.sentinel], timeout=_LOOK_S)
            if self._pipe in came:
                try:
                    answer: Response = self._pipe.recv()
                except (EOFError, OSError):
                    raise self._lost() from None
                return answer
            if process.sentinel in came:
                raise self._lost()
            if time.monotonic() > deadline:
                self._replace("took too long and was killed")
                raise RefusedError(Refusal.TIMED_OUT, "the training process took too long")
            self._refuse_stopping()

    def _refuse_stopping(self) -> None:
        """Raise StoppedError some time after the node was told to stop."""
        if self._stop.is_set():
            self._stop_seen = self._stop_seen or time.monotonic()
            if time.monotonic() > self._stop_seen + GRACE_S:
                raise StoppedError("the node is to stop, and the order is not finished")

    def _expect(self, answer: Response, kind: type[Wanted]) -> Wanted:
        if isinstance(answer, Refused):
            raise RefusedError(answer.word, answer.why)
        if not isinstance(answer, kind):
            self._replace(f"answered {type(answer).__name__} out of turn")
            raise RefusedError(Refusal.FAILED, "the training process answered out of turn")
        return answer

    def _lost(self) -> RefusedError:
        process = self._process
        assert process is not None  # noqa: S101 - it was started
        process.join(1.0)
        code = process.exitcode
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with {code}"
        self._replace(how)
        return RefusedError(Refusal.WORKER_DIED, f"the training process {how}")

    def _replace(self, why: str) -> None:
        log.warning("the training process %s; another one is started", why)
        self._kill()
        self.start()

    def _kill(self) -> None:
        process = self._process
        assert process is not None  # noqa: S101 - it was started
        process.kill()
        process.join(5.0)
        self._pipe.close()
        self._process = None
