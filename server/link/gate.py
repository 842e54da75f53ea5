"""The two gates in front of Flower: what it is never asked.

Public port: exactly ten paths, a declared and bounded body, a member's key, a fresh signature; only then is the body
read, whole, and given to Flower. Control port: our token on every path.

    404  any other path, method, version of HTTP, query, or an upgrade
    411  no Content-Length, more than one, or a body in chunks
    413  a body beyond the bound
    412  a key that no active member has, in Flower's own words, so that a node of Flower's says why
    401  `clock`: signed by the member at another time; `signature`: not signed by it
    503  too much of this member at a time; nodes try again
    408  the body did not come in time
    400  the body was not of the declared length
    500  Flower raised; a line in the log says what kind of error
"""

import gc
import hmac
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.link import bodies, peers
from server.link.peers import Admission, Peer, Verdict
from server.link.settings import TOKEN_HEADER, Limits

_log = logging.getLogger("discreet.link")

PUSH_OBJECT = b"/v1/fleet/push-object"
PATHS = frozenset(
    b"/v1/fleet/" + name
    for name in (
        b"activate-node",
        b"deactivate-node",
        b"send-node-heartbeat",
        b"pull-messages",
        b"push-messages",
        b"get-run",
        b"get-fab",
        b"push-object",
        b"pull-object",
        b"confirm-message-received",
    )
)
PUBLIC_KEY, SIGNATURE, TIMESTAMP = b"flwr-public-key", b"flwr-signature", b"flwr-timestamp"  # Flower's headers
_LENGTH_DIGITS = 12
_DRAINED = 64 * 1024  # a refused body up to this is let come: the peer reads the answer instead of a broken pipe
_UNKNOWN = json.dumps({"code": 2004, "detail": "Failed to activate SuperNode."})  # FLEET_NODE_ACTIVATION_FAILED
_RAISED = json.dumps({"detail": "Internal server error."})


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a gate says itself; `closes` ends the connection, so that no more of the body is read."""

    status: int
    text: str
    closes: bool = True

    async def give(self, send: Send) -> None:
        """Send it."""
        body = self.text.encode()
        kind = b"application/json" if self.text.startswith("{") else b"text/plain; charset=utf-8"
        headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
        if self.closes:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@dataclass
class ControlGate:
    """Let pass what carries the token; the rest never reaches Flower."""

    app: ASGIApp
    token: bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Judge one request on the control port."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            shown = _sole(scope, TOKEN_HEADER.encode()) or b""
            if hmac.compare_digest(shown, self.token):
                await _contained(self.app, scope, receive, send)
            else:
                await Answer(status=401, text="token").give(send)
        else:
            await send({"type": "websocket.close", "code": 1008})


@dataclass
class PublicGate:
    """Let pass what a member's node may ask; the rest never reaches Flower.

    Guarantees:
        A request of a peer without a registered key costs the parsing of its headers.
        Not a byte of a body is read before key and signature are judged.
        A body reaches Flower whole and with exactly the declared length, or not at all.
    """

    app: ASGIApp
    admission: Admission
    limits: Limits = field(default_factory=Limits)
    clock: Callable[[], float] = time.time
    _requests: Counter[str] = field(default_factory=Counter)
    _bytes: Counter[str] = field(default_factory=Counter)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Judge one request on the public port."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return
        judged = self._judged(scope)
        if isinstance(judged, Answer):
            await judged.give(send)
            return
        peer, size = judged
        with self._room(peer, size) as is_room:
            if is_room:
                await self._let_in(peer, size, scope, receive, send)
            else:
                await Answer(status=503, text="busy").give(send)

    def _judged(self, scope: Scope) -> tuple[Peer, int] | Answer:
        """Return who asks and how long its body is, or the answer that refuses it; the order is the contract's."""
        if not _is_known(scope):
            return Answer(status=404, text="not found")
        size = _declared(scope)
        if size is None:
            return Answer(status=411, text="length required")
        if size > self._bound(scope):
            return Answer(status=413, text="too large")
        now = self.clock()
        closes = size > _DRAINED
        peer = self.admission.of(_sole(scope, PUBLIC_KEY) or b"", now=now)
        if peer is None:
            _log.warning("refused a node whose key no active member of the roster has")
            return Answer(status=412, text=_UNKNOWN, closes=closes)
        verdict = self._verdict(peer, scope, now)
        if verdict is not Verdict.FRESH:
            _log.warning("refused %s: %s", peer.name, _REASONS[verdict], extra={"member": peer.name})
            return Answer(status=401, text=verdict.value, closes=closes)
        return peer, size

    def _verdict(self, peer: Peer, scope: Scope, now: float) -> Verdict:
        """Judge the proof in the headers."""
        timestamp, signature = _sole(scope, TIMESTAMP), _sole(scope, SIGNATURE)
        if timestamp is None or signature is None:
            return Verdict.SIGNATURE
        youngest_s, oldest_s = self.limits.youngest_s, self.limits.oldest_s
        return peers.judge(
            peer, timestamp=timestamp, signature=signature, now=now, youngest_s=youngest_s, oldest_s=oldest_s
        )

    def _bound(self, scope: Scope) -> int:
        """Return the most bytes that a body on this path may have."""
        is_object = scope["raw_path"] == PUSH_OBJECT
        return self.limits.max_object + self.limits.envelope if is_object else self.limits.max_body

    @contextmanager
    def _room(self, peer: Peer, size: int) -> Iterator[bool]:
        """Count what a member has under way, and say whether this fits beside it."""
        most_bytes = 2 * (self.limits.max_object + self.limits.envelope)  # Flower pushes two objects at a time
        is_room = self._requests[peer.name] < self.limits.requests_each and self._bytes[peer.name] + size <= most_bytes
        if not is_room:
            _log.warning("refused %s: too many requests at a time", peer.name, extra={"member": peer.name})
            yield False
            return
        self._requests[peer.name] += 1
        self._bytes[peer.name] += size
        try:
            yield True
        finally:
            self._requests[peer.name] -= 1
            self._bytes[peer.name] -= size

    async def _let_in(self, peer: Peer, size: int, scope: Scope, receive: Receive, send: Send) -> None:
        """Collect the body and give the request to Flower."""
        try:
            body = await bodies.collect(receive, size=size, deadline_s=self.limits.body_deadline_s(size))
        except bodies.BodyCutError as cut:
            _log.warning("cut %s off: its body was %s", peer.name, cut, extra={"member": peer.name})
            answer = Answer(status=408, text="late") if cut.is_late else Answer(status=400, text="length")
            await answer.give(send)
            return
        receive = bodies.replayed(body, receive)
        del body  # Flower's copy is the only one from here on
        await _contained(self.app, scope, receive, send)
        if size > self.limits.max_body:
            gc.collect()  # Flower leaves a large body in cycles of references, which would pile up


_REASONS = {
    Verdict.CLOCK: "the time that it signed is more than 300 s old, or ahead; set its clock or this machine's",
    Verdict.SIGNATURE: "its signature does not fit its key",
}


def _is_known(scope: Scope) -> bool:
    """Say whether this is a plain POST to one of the ten paths, spelled exactly so."""
    return (
        scope["method"] == "POST"
        and scope["raw_path"] in PATHS  # as it was sent: nothing is unquoted or normalised
        and scope["path"].encode() == scope["raw_path"]
        and not scope["query_string"]
        and scope["http_version"] == "1.1"
        and not any(name == b"upgrade" for name, _ in scope["headers"])
    )


def _declared(scope: Scope) -> int | None:
    """Return the length that the one Content-Length declares, or None where there is no such thing."""
    length = _sole(scope, b"content-length")
    if length is None or not length.isdigit() or len(length) > _LENGTH_DIGITS:
        return None
    if any(name == b"transfer-encoding" for name, _ in scope["headers"]):
        return None  # chunks would win over the declared length
    return int(length)


def _sole(scope: Scope, name: bytes) -> bytes | None:
    """Return the header's value; None where it is missing or there twice: gate and Flower must read the same."""
    values = [value for key, value in scope["headers"] if key == name]
    return values[0] if len(values) == 1 else None


async def _contained(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Call Flower; what it raises becomes a line in our log without its text, and a 500."""
    has_begun = False

    async def noted(message: Message) -> None:
        nonlocal has_begun
        has_begun = True
        await send(message)

    try:
        await app(scope, receive, noted)
    except Exception as error:  # noqa: BLE001 - whatever Flower raises must not end the link, nor tell data
        _log.error("Flower raised %s at %s", type(error).__name__, scope["path"])
        if not has_begun:
            await Answer(status=500, text=_RAISED).give(send)
