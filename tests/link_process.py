"""A link as a process of its own, and peers that speak to it over real sockets: for tests."""

import contextlib
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from asgi_peer import Headers, signed
from cryptography.hazmat.primitives.asymmetric import ec

from common.consortium import certificates
from server.link.settings import LinkAddress, LinkFolder, read_link

ROOT = Path(__file__).parents[1]
_RUN = """
import sys
from pathlib import Path
from common.errors import DiscreetError
from server.link.serving import serve
from server.link.settings import Limits

try:
    serve(Path(sys.argv[1]), host="127.0.0.1", port=0, control_port=0, limits=Limits(**eval(sys.argv[2])))
except DiscreetError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
"""
QUICK = {"header_timeout_s": 1.0, "body_timeout_s": 1.0, "keep_alive_s": 2.0}


@dataclass
class LinkProcess:
    """A link that is up."""

    process: subprocess.Popen[str]
    consortium: Path
    log: Path
    ready_s: float
    ready: str

    @property
    def folder(self) -> LinkFolder:
        return LinkFolder(self.consortium)

    @property
    def address(self) -> LinkAddress:
        return read_link(self.folder)

    @property
    def authority(self) -> Path:
        return self.consortium / "ca.crt"

    def lines(self) -> list[str]:
        """Return its log so far."""
        return self.log.read_text().splitlines()

    def resident_mib(self) -> float:
        """Return how much memory it holds now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS"))

    def kill(self) -> None:
        """Let it end like a power cut."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Ask it to stop; return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=20)


def start(consortium: Path, log: Path, **limits: float) -> LinkProcess:
    """Start a link on the consortium's folder and wait until it is ready."""
    begun = time.monotonic()
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", _RUN, str(consortium), repr(QUICK | limits)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    assert process.stdout is not None
    with process.stdout as output:
        ready = output.readline()
    if not ready:
        process.wait(timeout=20)
        raise AssertionError(f"the link did not start: {log.read_text()}")
    return LinkProcess(process, consortium, log, time.monotonic() - begun, ready)


@contextmanager
def running(consortium: Path, log: Path, **limits: float) -> Iterator[LinkProcess]:
    """Give a link that is ready; at the end it is gone."""
    link = start(consortium, log, **limits)
    try:
        yield link
    finally:
        if link.process.poll() is None:
            link.kill()


def refused(consortium: Path) -> subprocess.CompletedProcess[str]:
    """Start a link that is not to come up, and return how it ended."""
    command = [sys.executable, "-c", _RUN, str(consortium), repr(QUICK)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)


@contextmanager
def connected(address: str, authority: Path | None) -> Iterator[socket.socket]:
    """Connect, with TLS where an authority is given."""
    host, _, port = address.rpartition(":")
    with contextlib.ExitStack() as stack:
        plain = stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
        if authority is None:
            yield plain
        else:
            context = certificates.client_context(authority)
            yield stack.enter_context(context.wrap_socket(plain, server_hostname="localhost"))


def answered(peer: socket.socket, *, has_body: bool = True) -> tuple[int, bytes]:
    """Read exactly one answer: its status and its body; status 0 when the connection ended without one."""
    head, body = b"", b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while not head.endswith(b"\r\n\r\n") and (byte := peer.recv(1)):
            head += byte
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)\r\n", head)
        while has_body and (length is None or len(body) < int(length[1])) and (chunk := peer.recv(65536)):
            body += chunk
    return (int(head.split()[1]), body) if head.startswith(b"HTTP/1.1 ") else (0, head)


def spoken(address: str, authority: Path | None, data: bytes) -> tuple[int, bytes]:
    """Say these bytes on a connection of their own and return what is answered."""
    with connected(address, authority) as peer:
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            peer.sendall(data)
        return answered(peer, has_body=not data.startswith(b"HEAD"))


def request(target: str, headers: Headers = (), body: bytes = b"", *, method: str = "POST", **extra: str) -> bytes:
    """Return the bytes of a request; `extra` may set `version`, or `length` ("" for none)."""
    version, length = extra.get("version", "HTTP/1.1"), extra.get("length", str(len(body)))
    lines = [f"{method} {target} {version}".encode(), b"host: localhost", b"content-type: application/protobuf"]
    lines += [b"content-length: " + length.encode()] if length else []
    lines += [name + b": " + value for name, value in headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def proof(key: ec.EllipticCurvePrivateKey, *, behind_s: float = 0) -> Headers:
    """Return the headers of a node whose clock is that much behind."""
    return signed(key, at=time.time() - behind_s)


def until(holds: Callable[[], object], *, within_s: float) -> float:
    """Wait until something holds; return after how many seconds, or fail."""
    begun = time.monotonic()
    while not holds():
        assert time.monotonic() - begun < within_s, "it did not come true in time"
        time.sleep(0.05)
    return time.monotonic() - begun


def script(name: str) -> str:
    """Return the path of an installed command."""
    import sysconfig

    return str(Path(sysconfig.get_path("scripts")) / name)


def quiet_environment(home: Path) -> dict[str, str]:
    """Return an environment in which Flower's commands write nothing outside `home` and call nobody."""
    return os.environ | {
        "HOME": str(home),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }


def free_port() -> int:
    """Return a port that was free just now, for commands that cannot be given 0."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        return int(held.getsockname()[1])
