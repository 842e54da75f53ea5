"""The node as a process: put together, told to stop, taken down.

    run(policy=Path("policy.toml"), node=Path("node.toml"))     until SIGTERM

The main thread does nothing but wait for a signal, so that a call which hangs cannot keep the process from ending. Of
the heavy libraries none is imported here: they are in the training process.
"""

import fcntl
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from client import policy as policies
from client.node import settings as node_settings
from client.node.answers import Answers, Desk
from client.node.approvals import APPROVALS, Approvals
from client.node.connection import Connection, StoppedError
from client.node.fleet import Fleet
from client.node.journal import Journal
from client.node.membership import Membership
from client.node.service import Parts, Service
from client.node.settings import Settings
from client.node.training import Worker
from client.node.work import Workplace
from common.consortium import certificates
from common.consortium import identity as identities
from common.errors import SettingsError

log = logging.getLogger("discreet.node")

END_WITHIN_S = 3.6  # from the signal on: systemd and people expect 5


def run(*, policy: Path, node: Path) -> None:
    """Run a node until it is told to stop; DiscreetError when it cannot begin."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each call
    settings = node_settings.read(node)
    policies.load(policy)
    node_settings.make_private(settings.state)
    stop = threading.Event()
    _stop_on_signals(stop)
    with _alone(settings.state / "lock"):
        problem = _run(settings, policy.resolve(), stop)
    if problem is not None:
        raise problem


def _run(settings: Settings, policy: Path, stop: threading.Event) -> BaseException | None:
    """Serve in a thread until told to stop; return what ended it otherwise."""
    identity = identities.load(settings.identity)
    membership = Membership(identity, seen=settings.state / "roster.seen")
    address = settings.link or membership.standing().coordinator_address
    if not address:
        raise SettingsError("link: expected the link's host:port, got none there and none in the roster. Name it.")
    fleet = Fleet(address, key=identity.node_key, context=certificates.client_context(identity.authority))
    connection = Connection(fleet, address, folder=settings.state, stop=stop)
    place = Workplace(
        policy=policy,
        ledger=settings.ledger,
        memory=settings.ledger_seen,
        identity=settings.identity,
        data=settings.data,
    )
    worker = Worker(place, train_timeout_s=settings.train_timeout_s, stop=stop)
    journal, approvals = Journal(settings.state / "journal.db"), Approvals(settings.state / APPROVALS)
    parts = Parts(
        fleet=fleet,
        connection=connection,
        membership=membership,
        journal=journal,
        worker=worker,
        answers=Answers(Desk(policy=policy, journal=journal, approvals=approvals, worker=worker)),
        stop=stop,
    )
    problems: list[BaseException] = []
    thread = threading.Thread(target=_serve, args=(parts, problems), name="node", daemon=True)
    thread.start()
    stop.wait()
    thread.join(END_WITHIN_S)
    worker.close()
    parting = threading.Thread(target=connection.leave, daemon=True)
    parting.start()
    parting.join(1.0 if not thread.is_alive() else 0.5)
    return problems[0] if problems else None


def _serve(parts: Parts, problems: list[BaseException]) -> None:
    """Be a node: connect, load, say so, answer; whatever ends it is put down."""
    try:
        parts.worker.start()
        parts.connection.join()
        parts.worker.ready()
        standing = parts.membership.standing()
        sys.stdout.write(f"ready: {standing.name} waits for runs of {standing.consortium}\n")
        sys.stdout.flush()
        Service(parts).serve()
    except StoppedError:
        log.info("the node stops")
    except BaseException as error:  # noqa: BLE001 - handed to the main thread
        problems.append(error)
    finally:
        parts.stop.set()


def _stop_on_signals(stop: threading.Event) -> None:
    """Let SIGTERM and Ctrl-C end the node in order."""

    def tell(number: int, frame: FrameType | None) -> None:
        del number, frame
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, tell)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Hold the state folder, or raise SettingsError: two nodes would share a journal."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SettingsError(
                f"{lock.parent}: expected no other node with this state, got one that runs. Stop it, or name another "
                f"state folder."
            ) from error
        file.write(str(os.getpid()))
        file.flush()
        yield
