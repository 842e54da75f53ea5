"""A TCP proxy on loopback that can stop forwarding without closing anything: a cable that is pulled, and put back."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

CHUNK = 65536


class Proxy:
    """Forwards every connection to one address, as long as the cable is in.

    While it is out nothing is read, forwarded or closed, and nobody who connects gets further than the handshake of
    TCP; what was under way goes on when it is put back.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._target: tuple[str, int] = ("127.0.0.1", 0)
        self._is_in = threading.Event()
        self._is_in.set()
        self._is_over = False
        self._sockets: list[socket.socket] = [self._listener]
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        """Return host:port, to be used in the target's place."""
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def lead_to(self, address: str) -> None:
        """Name the target, host:port."""
        host, _, port = address.rpartition(":")
        self._target = (host, int(port))

    def cut(self) -> None:
        """Pull the cable."""
        self._is_in.clear()

    def mend(self) -> None:
        """Put it back."""
        self._is_in.set()

    def close(self) -> None:
        """End it, and every connection."""
        self._is_over = True
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._is_in.set()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while not self._is_over:
                near, _ = self._listener.accept()
                self._sockets.append(near)
                self.connections += 1
                threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        self._is_in.wait()
        try:
            far = socket.create_connection(self._target, timeout=10)
        except OSError:
            near.close()  # the target is down, as the client will see
            return
        far.settimeout(None)
        self._sockets.append(far)
        for source, sink in ((near, far), (far, near)):
            threading.Thread(target=self._forward, args=(source, sink), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK):
                self._is_in.wait()
                sink.sendall(data)
        self._is_in.wait()
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


@contextmanager
def proxied() -> Iterator[Proxy]:
    """Give a proxy; at the end it and its connections are gone."""
    proxy = Proxy()
    try:
        yield proxy
    finally:
        proxy.close()
