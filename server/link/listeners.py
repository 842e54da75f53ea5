"""Two servers in one event loop over one app: the public one and the control one.

uvicorn parses HTTP; what it leaves open is bounded here: how long a peer may take over a handshake, over headers and
between requests, and how many connections one address may hold.
"""

import asyncio
import socket
import ssl
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from common.errors import LinkError
from server.link.settings import Limits

_STOP_S = 3  # how long a stop waits for answers under way


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 on one connection, whose peer must get on.

    Args:
        server: whose connection it is.
        limits: how long the peer may take.
        held: connections by address, counted for the whole server.
    """

    def __init__(self, server: uvicorn.Server, *, limits: Limits, held: Counter[str]) -> None:
        super().__init__(config=server.config, server_state=server.server_state, app_state=server.lifespan.state)
        self._limits, self._held = limits, held
        self._address = ""
        self._cut: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin a connection, unless its address holds too many."""
        super().connection_made(transport)
        self._address = self.client[0] if self.client else ""
        self._held[self._address] += 1
        if self._held[self._address] > self._limits.connections_each:
            transport.abort()
        else:
            self._expect_request(self._limits.header_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """End a connection."""
        if self._cut is not None:
            self._cut.cancel()
        self._held[self._address] -= 1
        if not self._held[self._address]:
            del self._held[self._address]
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Give the peer some time for its next request, if the connection stays."""
        super().on_response_complete()
        if not self.transport.is_closing():
            self._expect_request(self._limits.keep_alive_s)

    def _expect_request(self, seconds: float) -> None:
        if self._cut is not None:
            self._cut.cancel()
        self._cut = self.loop.call_later(seconds, self._cut_off)

    def _cut_off(self) -> None:
        """Drop a peer that has not sent whole headers by now; one that waits for its answer stays."""
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()


class LinkServer(uvicorn.Server):
    """A server that leaves signals to the link, and bounds the handshake of TLS."""

    def __init__(self, config: uvicorn.Config, *, limits: Limits) -> None:
        super().__init__(config)
        self._limits, self._held = limits, Counter[str]()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Capture none: two servers share the process."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on the given sockets."""
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            raise LinkError("Flower: expected it to start, got a failure that it logged above this line.")
        loop, config = asyncio.get_running_loop(), self.config
        bounds: dict[str, Any] = {}
        if config.ssl is not None:
            bounds = {"ssl_handshake_timeout": self._limits.header_timeout_s, "ssl_shutdown_timeout": _STOP_S}
        self.servers = [
            await loop.create_server(self._protocol, sock=held, ssl=config.ssl, backlog=config.backlog, **bounds)
            for held in sockets or []
        ]
        self.started = True

    def _protocol(self) -> asyncio.Protocol:
        """Make what speaks on one connection."""
        return BoundedProtocol(self, limits=self._limits, held=self._held)


def bind(host: str, port: int, *, option: str) -> socket.socket:
    """Take a port; LinkError says which option to change when it is not to be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        held = socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        raise LinkError(
            f"{host}:{port}: expected a free port, got {error.strerror or error}. Name another: {option}"
        ) from error
    # Connections inherit it. asyncio sets it only where the listener names its protocol, and without it an answer of
    # two writes waits 40 ms for the peer's delayed acknowledgement.
    held.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return held


def public_server(gate: ASGIApp, *, context: ssl.SSLContext, limits: Limits) -> LinkServer:
    """Return the server of the public port: TLS as the context says."""
    return _server(gate, limits=limits, lifespan="off", ssl_context_factory=lambda *_: context)


def control_server(gate: ASGIApp) -> LinkServer:
    """Return the server of the control port; it starts and stops Flower's app."""
    return _server(gate, limits=Limits(connections_each=Limits().connections), lifespan="on")


def _server(gate: ASGIApp, *, limits: Limits, **options: Any) -> LinkServer:
    config = uvicorn.Config(
        gate,
        http=H11Protocol,
        ws="none",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,  # nobody stands between: an X-Forwarded-For would be a lie
        server_header=False,
        limit_concurrency=limits.connections,
        h11_max_incomplete_event_size=limits.max_header,
        timeout_keep_alive=int(limits.keep_alive_s) or 1,
        timeout_graceful_shutdown=_STOP_S,
        **options,
    )
    config.load()
    return LinkServer(config, limits=limits)
