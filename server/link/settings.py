"""Where a link keeps its files, what it bounds, and how its own side finds it.

folder = LinkFolder(Path("hospitals"))
address = read_link(folder)        # LinkError when no link is up there
address.control, address.bearer()  # "127.0.0.1:40217" and the header that its control port asks for
"""

import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path

from common import checks
from common.errors import LinkError

TOKEN_HEADER = "x-discreet-token"  # noqa: S105 - the header's name, not a token
MIB = 2**20


@dataclass(frozen=True)
class LinkFolder:
    """The files of a link in the folder of its consortium; all of `root` is for its owner's eyes only."""

    consortium: Path

    @property
    def root(self) -> Path:
        """Folder of all the others, 0700."""
        return self.consortium / "link"

    @property
    def database(self) -> Path:
        """Flower's database."""
        return self.root / "link.db"

    @property
    def secret(self) -> Path:
        """What a runner of apps proves to know."""
        return self.root / "superexec.secret"

    @property
    def token(self) -> Path:
        """What every request on the control port must carry."""
        return self.root / "token"

    @property
    def lock(self) -> Path:
        """Held by the link that is up."""
        return self.root / "lock"

    @property
    def address(self) -> Path:
        """Where the link that is up listens; removed when it stops."""
        return self.root / "link.json"

    @property
    def control_port(self) -> Path:
        """The number of the last control port: a link that restarts takes it again, and runners find it there."""
        return self.root / "control.port"

    @property
    def seen(self) -> Path:
        """The newest roster's serial that this link has served."""
        return self.root / "roster.seen"


@dataclass(frozen=True, kw_only=True)
class LinkAddress:
    """A link that is up: its process, its two ports, and the files of its two secrets."""

    pid: int
    control: str
    public: str
    secret: Path
    token: Path

    def bearer(self) -> dict[str, str]:
        """Return the header that the control port asks for."""
        return {TOKEN_HEADER: self.token.read_text(encoding="ascii").strip()}

    def to_json(self) -> str:
        """Return the text of link.json."""
        return json.dumps(
            {
                "pid": self.pid,
                "control": self.control,
                "public": self.public,
                "secret": str(self.secret),
                "token": str(self.token),
            }
        )


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the public port bears; every time in seconds, every size in bytes.

    Args:
        max_object: the largest object that a node may push; the request around it may have `envelope` more.
        max_body: bound on the bodies of all other paths.
        max_header: bound on what may come before a request's headers are whole.
        header_timeout_s: from the connection to the end of its handshake, and from there to the first whole headers.
        keep_alive_s: from an answer to the whole headers of the next request on the same connection.
        body_timeout_s: within which a body must have come; one beyond `max_body` has a second more for each `slowest`.
        connections: at most so many at a time; `connections_each` of them from one address.
        requests_each: at most so many of one member at a time.
        oldest_s: a signature may be this old, and at least `youngest_s`: below 0, so that a clock may be a little
            ahead (Flower's own window).
    """

    max_object: int = 64 * MIB
    max_body: int = MIB
    envelope: int = 64 * 1024
    max_header: int = 16 * 1024
    header_timeout_s: float = 10
    keep_alive_s: float = 60
    body_timeout_s: float = 60
    slowest: int = 128 * 1024
    connections: int = 1024
    connections_each: int = 64
    requests_each: int = 16
    oldest_s: float = 305
    youngest_s: float = -5

    def __post_init__(self) -> None:
        checks.positive(
            max_object=self.max_object,
            max_body=self.max_body,
            max_header=self.max_header,
            header_timeout_s=self.header_timeout_s,
            body_timeout_s=self.body_timeout_s,
            slowest=self.slowest,
            connections=self.connections,
            requests_each=self.requests_each,
        )

    def body_deadline_s(self, size: int) -> float:
        """Return within how many seconds a body of this size must have come."""
        return self.body_timeout_s + (size // self.slowest if size > self.max_body else 0)


def read_link(folder: LinkFolder) -> LinkAddress:
    """Return where the link of this folder listens.

    Raises:
        LinkError: no link is up there, or it is not ready yet.
    """
    try:
        found = json.loads(folder.address.read_text(encoding="utf-8")) if _is_held(folder.lock) else None
        if found is not None:
            return LinkAddress(
                pid=found["pid"],
                control=found["control"],
                public=found["public"],
                secret=Path(found["secret"]),
                token=Path(found["token"]),
            )
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not written yet, or removed just now
    raise LinkError(
        f"{folder.root}: expected a link that is up, got none. Start it: discreet serve {folder.consortium}"
    )


def _is_held(lock: Path) -> bool:
    """Say whether a process holds the lock; one that was killed does not."""
    try:
        descriptor = os.open(lock, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
