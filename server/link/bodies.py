"""Bodies: whole and of the declared length, or nothing of them reaches Flower.

Flower reads a body before it looks at who sent it, and bounds nothing. So it is collected here: at most as many bytes
as the header said, within a deadline.
"""

import asyncio

from starlette.types import Message, Receive


class BodyCutError(Exception):
    """A body that was too long, too short, or too late; `is_late` says which."""

    def __init__(self, *, is_late: bool) -> None:
        super().__init__("late" if is_late else "of another length than declared")
        self.is_late = is_late


async def collect(receive: Receive, *, size: int, deadline_s: float) -> bytes:
    """Return a body of exactly `size` bytes that came within the deadline.

    Raises:
        BodyCutError: it did not.
    """
    try:
        async with asyncio.timeout(deadline_s):
            return await _collected(receive, size)
    except TimeoutError:
        raise BodyCutError(is_late=True) from None


async def _collected(receive: Receive, size: int) -> bytes:
    """Return the whole body; stop at the first byte too many."""
    chunks: list[bytes] = []
    got, more = 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise BodyCutError(is_late=False)  # the peer is gone
        chunks.append(message.get("body", b""))
        got += len(chunks[-1])
        more = message.get("more_body", False)
        if got > size:
            break
    if got != size:
        raise BodyCutError(is_late=False)
    return b"".join(chunks)


def replayed(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body once, and afterwards what comes from the connection."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return pending.pop() if pending else await receive()

    return next_message
