"""The training process: it holds the libraries, the records and the ledger, and dies with the node.

A crash of it, or a kill for want of memory, costs one order. Its heavy imports are made once it runs, so that the node
itself never has them.
"""

import ctypes
import logging
import os
import signal
import sys
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from client.node.work import Broken, End, Propose, Ready, Request, Response, Train, Workplace
from common.errors import DataMissingError, DiscreetError, SettingsError
from common.messages import Refusal

if TYPE_CHECKING:
    from client.node.training_desk import Desk

log = logging.getLogger("discreet.node")

_PR_SET_PDEATHSIG = 1  # prctl(2)


def main(pipe: Connection, place: Workplace, parent: int, level: int) -> None:
    """Answer requests until the node closes the pipe, or dies."""
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the node decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        from client.node.training_desk import Desk  # torch: seconds

        desk = Desk(place)
        desk.warm()
    except (DiscreetError, OSError) as error:
        unfit = isinstance(error, SettingsError | DataMissingError)
        word = Refusal.DATA_UNFIT if unfit else Refusal.NOT_RECORDED
        pipe.send(Broken(why=str(error), word=word, exit_code=getattr(error, "exit_code", 1)))
        return
    pipe.send(Ready(code=desk.code))
    try:
        while True:
            _answer(desk, pipe.recv(), pipe)
    except (EOFError, OSError):
        return  # the node is gone


def _answer(desk: "Desk", request: Request, pipe: Connection) -> None:
    """Answer one request, whatever happens."""

    def send(response: Response) -> None:
        pipe.send(response)

    match request:
        case Propose():
            send(desk.offered(request))
        case Train():
            desk.train(request, send=send, receive=pipe.recv)
        case End():
            send(desk.ended(request))
        case _:
            log.error("expected a request, got %s", type(request).__name__)


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when the node is gone, however it went."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)
