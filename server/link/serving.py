"""A link from its start to its end: one process, one lock, two ports.

    serve(Path("hospitals"), host="0.0.0.0", port=9443, control_port=0)     # until SIGTERM or SIGINT

Order: lock, certificate, roster, ports, and only then Flower, which takes a second to load.
"""

import asyncio
import contextlib
import fcntl
import gc
import logging
import os
import resource
import secrets
import signal
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common.consortium import certificates, keys
from common.errors import ConsortiumError, LinkError
from common.files import write_whole
from server import consortium_folder
from server.consortium_folder import ConsortiumFolder
from server.link import flower_app, listeners, log_lines, registration
from server.link.flower_app import FlowerApp
from server.link.gate import ControlGate, PublicGate
from server.link.listeners import LinkServer
from server.link.peers import Admission
from server.link.registration import RosterWatch
from server.link.settings import Limits, LinkAddress, LinkFolder

_log = logging.getLogger("discreet.link")
LOOPBACK = "127.0.0.1"
_LOOK_AGAIN_S = 0.5
_LOCK_TRIES, _LOCK_TRY_S = 5, 0.1  # `read_link` holds the lock for an instant
_SOON_S = 30 * 86_400


@dataclass(kw_only=True)
class Link:
    """What is up: Flower's app, who is let in, the two servers, and what the roster said last."""

    flower: FlowerApp
    admission: Admission
    watch: RosterWatch
    public: LinkServer
    control: LinkServer


def serve(
    consortium: Path,
    *,
    host: str,
    port: int,
    control_port: int = 0,
    limits: Limits | None = None,
) -> None:
    """Run a link until SIGTERM or SIGINT; print one line when it is ready.

    Raises:
        ConsortiumError: the roster, the certificate or a key is not as it must be.
        LinkError: another link holds the folder, a port is taken, or Flower does not start.
    """
    limits = limits or Limits()
    folder = LinkFolder(consortium)
    opened = consortium_folder.opened(consortium)
    log_lines.prepare()
    with _held(folder):
        context = _context(opened)
        watch = RosterWatch.open(consortium, seen=folder.seen, now=time.time())
        public = listeners.bind(host, port, option="--port")
        control = _control(folder, control_port)
        with public, control:
            secret, token = _secret(folder.secret), _secret(folder.token)
            flower = flower_app.load(folder, secret=secret)
            log_lines.quieten_flower()
            admission = Admission()
            link = Link(
                flower=flower,
                admission=admission,
                watch=watch,
                public=listeners.public_server(
                    PublicGate(flower.app, admission, limits), context=context, limits=limits
                ),
                control=listeners.control_server(ControlGate(flower.app, token)),
            )
            _settle(link)
            gc.freeze()  # what is loaded by now stays: looking for garbage takes 1 ms instead of 100
            asyncio.run(_main(link, folder, public=public, control=control))


async def _main(link: Link, folder: LinkFolder, *, public: socket.socket, control: socket.socket) -> None:
    """Start both servers, say so, and follow the roster until a signal or a failure ends it."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    tasks = []
    try:
        for server, held in ((link.control, control), (link.public, public)):
            tasks.append(asyncio.create_task(server.serve(sockets=[held])))
            await _up(server, tasks[-1])
        _announce(folder, public=_named(public), control=_named(control))
        following = asyncio.create_task(_follow(link))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([*tasks, following, stopping], return_when=asyncio.FIRST_COMPLETED)
        following.cancel()
        stopping.cancel()
        if not stop.is_set():
            raise LinkError("expected the link to stay up, got one of its servers stopped. Start it again.")
    finally:
        folder.address.unlink(missing_ok=True)
        link.public.should_exit = link.control.should_exit = True
        await asyncio.gather(*tasks)


async def _up(server: LinkServer, task: asyncio.Task[None]) -> None:
    """Wait until a server listens; raise what kept it from it."""
    while not server.started:
        if task.done():
            await task
            raise LinkError("expected the link to start, got a server that stopped at once. See the lines above.")
        await asyncio.sleep(0.01)


async def _follow(link: Link) -> None:
    """Look at the roster again and again; let in, and register, whom it names."""
    is_settled = True
    while True:
        await asyncio.sleep(_LOOK_AGAIN_S)
        try:
            watch = await asyncio.to_thread(link.watch.looked_again, now=time.time())
            if watch is not link.watch or not is_settled:
                is_settled, link.watch = False, watch
                await asyncio.to_thread(_settle, link)
                is_settled = True
        except Exception as error:  # noqa: BLE001 - a full disk or a busy database: the next look may do it
            _log.error("the roster could not be followed: %s", type(error).__name__)


def _settle(link: Link) -> None:
    """Refuse at once whom the roster no longer names, tell Flower, and then let in the new."""
    wanted = link.watch.peers
    former = link.admission.peers.values()
    link.admission.admit({peer.name: peer for peer in former if wanted.get(peer.name) == peer})
    for line in registration.settle(link.flower, wanted):
        _log.info("%s", line)
    link.admission.admit(wanted)


def _announce(folder: LinkFolder, *, public: str, control: str) -> None:
    """Write where the link listens, and say that it is ready."""
    address = LinkAddress(
        pid=os.getpid(),
        control=control,
        public=public,
        secret=folder.secret.resolve(),
        token=folder.token.resolve(),
    )
    write_whole(folder.control_port, control.rpartition(":")[2])
    write_whole(folder.address, address.to_json())
    print(f"ready: public {public}, control {control}", flush=True)  # noqa: T201 - the line that scripts wait for


@contextmanager
def _held(folder: LinkFolder) -> Iterator[None]:
    """Make the folder, and hold its lock: two links on one database would both start."""
    os.umask(0o077)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)), hard))
    folder.root.mkdir(mode=0o700, exist_ok=True)
    folder.root.chmod(0o700)
    descriptor = os.open(folder.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _lock(descriptor, folder)
        folder.address.unlink(missing_ok=True)  # of a link that was killed
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: LinkFolder) -> None:
    """Take the lock, or raise LinkError when another link has it."""
    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            time.sleep(_LOCK_TRY_S)
        else:
            return
    raise LinkError(f"{folder.root}: expected no other link on it, got one that is up. Stop that one first.")


def _context(folder: ConsortiumFolder) -> ssl.SSLContext:
    """Return the public port's TLS; ConsortiumError for an expired certificate."""
    certificate = folder.server_certificate
    context = certificates.server_context(certificate, folder.server_key)
    left_s = certificates.expires(certificate.read_bytes()) - time.time()
    remedy = f"Renew it: discreet consortium renew --consortium {folder.path}"
    if left_s <= 0:
        raise ConsortiumError(f"{certificate}: expected a certificate that is valid now, got an expired one. {remedy}")
    if left_s < _SOON_S:
        _log.warning("%s: expires in %d days. %s", certificate.name, left_s // 86_400, remedy)
    return context


def _control(folder: LinkFolder, port: int) -> socket.socket:
    """Listen on the port that was asked for, or else on the last one, where a run that goes on looks for the link."""
    if not port:
        with contextlib.suppress(LinkError, OSError, ValueError):
            return listeners.bind(LOOPBACK, int(folder.control_port.read_text()), option="--control-port")
    return listeners.bind(LOOPBACK, port, option="--control-port")


def _secret(path: Path) -> bytes:
    """Read a secret of the link's; it is drawn at the first start and stays the same, for runners that wait."""
    if not path.exists():
        keys.write_private(path, secrets.token_hex(32).encode())
    return keys.read_private(path)


def _named(held: socket.socket) -> str:
    """Return the address that a socket listens on."""
    host, port = held.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
