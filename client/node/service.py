"""The node's loop: pull a message, answer it, confirm it; whatever happens, one word leaves.

    service = Service(...)
    service.serve()        until it is told to stop

A message is in the journal before anything is done about it, and leaves it when its answer was taken. What a killed
node had begun is done again at the start, and the journal and the ledger see to it that no order trains twice.
"""

import logging
import threading
import time
from dataclasses import dataclass
from typing import Protocol

from client.node import orders
from client.node.answers import Answers, malformed
from client.node.connection import Connection
from client.node.journal import Journal
from client.node.letters import Envelope, FlowerRun, Letter, Reply
from client.node.link_errors import RejectedError, RunOverError
from client.node.membership import Membership
from client.node.orders import RunFacts
from client.node.training import Worker
from common import bundle
from common.errors import WireError

log = logging.getLogger("discreet.node")

BUSY_POLL_S, IDLE_POLL_S = 0.15, 0.3
BUSY_S = 30.0  # after a message, the next one is expected
MOST_RUNS = 16  # that are remembered


class Calls(Protocol):
    """What the loop needs of the link: `client.node.fleet.Fleet`."""

    def pull(self) -> Envelope | None:
        """Return the next message."""

    def run(self, flower_run: int) -> FlowerRun:
        """Return what the link says of a run."""

    def bundle(self, flower_run: int, name: str) -> bytes:
        """Return the bytes of a run's bundle."""

    def letter(self, envelope: Envelope, *, stop: threading.Event) -> Letter:
        """Return a message's content."""

    def push(self, envelope: Envelope, reply: Reply) -> None:
        """Send the answer to a message."""

    def confirm(self, envelope: Envelope) -> None:
        """Say that a message is done with."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a node is made of."""

    fleet: Calls
    connection: Connection
    membership: Membership
    journal: Journal
    worker: Worker
    answers: Answers
    stop: threading.Event


class Service:
    """Answers messages, one after the other, for as long as there is a link."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._runs: dict[int, RunFacts] = {}

    def serve(self) -> None:
        """Do what was left undone, then wait for messages; StoppedError when the node is to stop."""
        parts = self._parts
        for envelope in parts.journal.waiting():
            log.info("a message of run %d was left unanswered: it is taken up again", envelope.flower_run)
            self._serve(envelope)
        busy_until = 0.0
        while True:
            pulled = parts.connection.patiently(parts.fleet.pull)
            if pulled is None:
                parts.stop.wait(BUSY_POLL_S if time.monotonic() < busy_until else IDLE_POLL_S)
                parts.worker.tend()
                continue
            parts.journal.receive(pulled)
            self._serve(pulled)
            busy_until = time.monotonic() + BUSY_S

    def _serve(self, envelope: Envelope) -> None:
        """Answer one message and be done with it."""
        parts = self._parts
        try:
            if time.time() < envelope.expires:
                reply = self._reply(envelope)
                parts.connection.patiently(lambda: parts.fleet.push(envelope, reply))
                parts.connection.patiently(lambda: parts.fleet.confirm(envelope))
        except RunOverError:
            log.info("run %d is over: nobody waits for the answer", envelope.flower_run)
        except RejectedError as error:
            log.warning("run %d: the link will not take the answer: %s", envelope.flower_run, error)
        parts.journal.finish(envelope)

    def _reply(self, envelope: Envelope) -> Reply:
        """Work out the answer to a message, whatever it is."""
        parts = self._parts
        run = self._run(envelope.flower_run)
        standing = parts.membership.standing()
        try:
            letter = parts.connection.patiently(lambda: parts.fleet.letter(envelope, stop=parts.stop))
        except WireError as error:
            return malformed(error, standing)
        return parts.answers.reply(letter, run, standing)

    def _run(self, flower_run: int) -> RunFacts:
        """What a run is, and whether its bundle is fit; asked for once."""
        if flower_run not in self._runs:
            parts = self._parts
            found = parts.connection.patiently(lambda: parts.fleet.run(flower_run))
            content = parts.connection.patiently(lambda: parts.fleet.bundle(flower_run, found.bundle))
            while len(self._runs) >= MOST_RUNS:
                del self._runs[next(iter(self._runs))]
            self._runs[flower_run] = _facts(flower_run, found, content)
        return self._runs[flower_run]


def _facts(flower_run: int, found: FlowerRun, content: bytes) -> RunFacts:
    try:
        scenario = orders.scenario_in(found.scenario)
    except WireError as error:
        log.warning("run %d: %s", flower_run, error)
        scenario = ""  # whatever was signed, it was not this
    return RunFacts(flower_run=flower_run, scenario=scenario, bundle=content[: bundle.MAX_BYTES + 1])
