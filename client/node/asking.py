"""One call to the link: whatever goes wrong is one of `client.node.link_errors`."""

import json
import ssl
from collections.abc import Callable, Iterator
from typing import TypeVar

import httpx

from client.node.link_errors import (
    CertificateRefusedError,
    ClockRefusedError,
    KeyRefusedError,
    RejectedError,
    RunOverError,
    UnreachableError,
    VersionRefusedError,
)
from common.errors import LinkError

VERSIONS_DIFFER = 1001  # Flower's number of that error

Request = TypeVar("Request")
Answer = TypeVar("Answer")


def asked(call: Callable[[Request], Answer], request: Request) -> Answer:
    """Make one call; whatever goes wrong is a LinkError."""
    try:
        return call(request)
    except httpx.HTTPStatusError as error:
        raise _refused(error.response) from error
    except httpx.HTTPError as error:
        raise _failed(error) from error
    except (ValueError, RuntimeError) as error:
        raise UnreachableError(f"the answer is none of Flower's protocol ({error})") from error


def _refused(response: httpx.Response) -> LinkError:
    """What a link means by a status; its own words are read for two of them alone."""
    status, code = response.status_code, _code(response)
    if code == VERSIONS_DIFFER:
        return VersionRefusedError("the link runs another version of Flower")
    if status == httpx.codes.UNAUTHORIZED:
        is_clock = "clock" in response.text.lower()
        return ClockRefusedError("the clocks differ") if is_clock else KeyRefusedError("the signature is refused")
    if status == httpx.codes.PRECONDITION_FAILED:
        return KeyRefusedError("the key is not registered, or a node with it is online already")
    if status == httpx.codes.FORBIDDEN:
        return RunOverError("the run is over")
    if status == httpx.codes.NOT_FOUND or status >= httpx.codes.INTERNAL_SERVER_ERROR:
        return UnreachableError(f"the answer is HTTP {status}")
    return RejectedError(f"the answer is HTTP {status}")


def _code(response: httpx.Response) -> int | None:
    """The number of Flower's own error, where the answer is one."""
    try:
        body = json.loads(response.text)
    except ValueError:
        return None
    code = body.get("code") if isinstance(body, dict) else None
    return code if isinstance(code, int) else None


def _failed(error: BaseException) -> LinkError:
    """What a connection that fails means."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return CertificateRefusedError(f"its certificate is not right: {cause.verify_message}")
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return CertificateRefusedError(f"it does not speak TLS 1.3 as agreed: {cause.reason}")
    return UnreachableError(f"{type(error).__name__}: {error}".rstrip(": "))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
