"""A peer of an ASGI app without a socket, and what stands behind a gate: for tests."""

import asyncio
import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from common.consortium import keys

Headers = list[tuple[bytes, bytes]]
NOW = 1_800_000_000.0


@dataclass
class Behind:
    """Stands for Flower: notes what reaches it, and answers, or raises `error`."""

    bodies: list[bytes] = field(default_factory=list)
    scopes: list[str] = field(default_factory=list)
    error: Exception | None = None
    after_start: bool = False

    async def __call__(self, scope, receive, send) -> None:
        self.scopes.append(scope["type"])
        if scope["type"] == "lifespan":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        self.bodies.append(body)
        if self.error and not self.after_start:
            raise self.error
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if self.error:
            raise self.error
        await send({"type": "http.response.body", "body": b"flower"})


@dataclass
class Reply:
    """What came back, and how often the body was asked for."""

    status: int = 0
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""
    reads: int = 0


def signed(key: ec.EllipticCurvePrivateKey, *, at: float = NOW) -> Headers:
    """Return the headers by which a node of Flower's shows who it is."""
    timestamp = datetime.fromtimestamp(at, UTC).isoformat().encode()
    return [
        (b"flwr-public-key", base64.b64encode(keys.node_public_pem(key).encode())),
        (b"flwr-timestamp", timestamp),
        (b"flwr-signature", base64.b64encode(key.sign(timestamp, ec.ECDSA(hashes.SHA256())))),
    ]


async def ask(app, path: str, headers: Headers = (), *, chunks: Sequence[bytes] = (b"",), **scope: object) -> Reply:
    """Send one request in these chunks; after the last the connection stays silent."""
    reply, pending = Reply(), list(chunks)

    async def receive():
        reply.reads += 1
        if not pending:
            await asyncio.Event().wait()
        chunk = pending.pop(0)
        return {"type": "http.request", "body": chunk, "more_body": bool(pending) or len(chunks) == 0}

    async def send(message):
        if message["type"] == "http.response.start":
            reply.status, reply.headers = message["status"], dict(message["headers"])
        elif message["type"] == "http.response.body":
            reply.body += message["body"]
        else:
            reply.status = message["code"]

    plain = {
        "type": "http",
        "method": "POST",
        "http_version": "1.1",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": list(headers),
    }
    await app(plain | scope, receive, send)
    return reply
