"""A link that may go away at any time: everything is tried again until it works, and people read one line a change.

    connection = Connection(fleet, "hub:9443", folder=state, stop=stop)
    connection.join()
    message = connection.patiently(fleet.pull)

A node that was killed is still online for the link, which refuses a second one; so the link's number of it is kept in
a file, by which it is taken off first.
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol, TypeVar

from client.node.link_errors import (
    CertificateRefusedError,
    ClockRefusedError,
    KeyRefusedError,
    RejectedError,
    RunOverError,
    VersionRefusedError,
)
from common.errors import DiscreetError, LinkError
from common.files import write_whole

log = logging.getLogger("discreet.node")

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0
HEARTBEAT_S = 20.0  # the link takes a node for dead after 60
LARGEST_NUMBER = 2**64

Answer = TypeVar("Answer")

_REMEDIES: dict[type[LinkError], str] = {
    ClockRefusedError: "Set this machine's clock right (timedatectl set-ntp true); 5 minutes late is too much.",
    KeyRefusedError: "Does the coordinator's roster have this node's key, is it neither expired nor revoked, and does "
    "no other node run with it?",
    CertificateRefusedError: "Is this the consortium's link, and is ca.crt the newest?",
    VersionRefusedError: "Install the same version of Discreet on both sides.",
}


class StoppedError(DiscreetError):
    """The node is to stop."""


class Activating(Protocol):
    """What a connection needs of the link."""

    def activate(self) -> int:
        """Say that the node is there."""

    def deactivate(self, number: int) -> None:
        """Say that it is gone."""

    def heartbeat(self) -> None:
        """Say that it is still there."""


class Connection:
    """A link, patiently.

    Guarantees:
        Nothing but a request to stop ends the waiting.
        A line is written when the state changes, and never for an attempt.
    """

    def __init__(self, fleet: Activating, address: str, *, folder: Path, stop: threading.Event) -> None:
        """Prepare; `folder` keeps the link's number of this node."""
        self._fleet, self._address, self._stop = fleet, address, stop
        self._file = folder / "node.number"
        self._state: tuple[type[LinkError], str] | None = None
        self._since = time.monotonic()
        self._number: int | None = None

    def join(self) -> None:
        """Come online, however long it takes; StoppedError when the node is to stop."""
        self.patiently(self._activate)
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def leave(self) -> None:
        """Go offline, if the link can be told."""
        if self._number is not None:
            with suppress(LinkError):
                self._fleet.deactivate(self._number)

    def patiently(self, act: Callable[[], Answer]) -> Answer:
        """Do something with the link again and again until it works.

        Raises:
            RunOverError, RejectedError: it will never work.
            StoppedError: the node is to stop.
        """
        pause = FIRST_PAUSE_S
        was_away = False
        while not self._stop.is_set():
            try:
                if was_away and self._number is not None:
                    self._return()
                    was_away = False
                answer = act()
            except (RunOverError, RejectedError):
                self._note(None)
                raise
            except LinkError as error:
                self._note(error)
                was_away = True
                self._stop.wait(pause * random.uniform(0.75, 1.25))  # noqa: S311 - spreads attempts, hides nothing
                pause = min(2 * pause, LONGEST_PAUSE_S)
            else:
                self._note(None)
                return answer
        raise StoppedError("the node is to stop")

    def _activate(self) -> None:
        """Take off the node that this one was, and come online."""
        former = self._number if self._number is not None else self._kept()
        if former is not None:
            with suppress(KeyRefusedError, RejectedError):  # it was not online
                self._fleet.deactivate(former)
        self._number = self._fleet.activate()
        write_whole(self._file, str(self._number))

    def _return(self) -> None:
        """Be online again after an outage: the link may have taken this node for dead, or be a new one."""
        try:
            self._fleet.heartbeat()
        except (KeyRefusedError, RejectedError):
            self._activate()

    def _beat(self) -> None:
        """Send heartbeats; an outage is noted by whoever waits for an answer."""
        while not self._stop.wait(HEARTBEAT_S * random.uniform(0.9, 1.1)):  # noqa: S311 - spreads them
            with suppress(LinkError):
                self._fleet.heartbeat()

    def _kept(self) -> int | None:
        with suppress(OSError, ValueError):
            number = int(self._file.read_text())
            return number if 0 < number < LARGEST_NUMBER else None
        return None

    def _note(self, error: LinkError | None) -> None:
        """Write one line when the state is another."""
        state = None if error is None else (type(error), str(error))
        if self._state is None and error is not None:
            self._since = time.monotonic()
        if error is not None and (self._state is None or self._state[0] is not type(error)):
            remedy = _REMEDIES.get(type(error), "Is it up, and is the network?")
            log.warning("link %s: %s. %s Trying again until it works.", self._address, error, remedy)
        elif error is None and self._state is not None:
            log.info("link %s: answers again after %.0f s", self._address, time.monotonic() - self._since)
        self._state = state
