"""The coordinator's folder of a consortium, and what its verbs do in it.

    ca.key server.key identity/       private, 0600
    ca.crt server.crt                 public
    roster.json                       the roster in force, signed by all
    roster-draft.json                 the next one, until all have signed it
    denied.json                       who may not take part from now on
    issued/NAME/                      what goes back to a member: tls.crt, ca.crt

Who is in the roster changes in `server.enrolment`.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import time

from common.consortium import authority as authorities
from common.consortium import certificates, identity, keys, requests
from common.consortium import roster as rosters
from common.consortium.documents import write_text
from common.consortium.members import Member
from common.consortium.names import LABEL, host, is_address, is_host, is_label
from common.errors import ConsortiumError

PORT = 9443


@dataclass(frozen=True, kw_only=True)
class ConsortiumFolder:
    """Where everything lies."""

    path: Path

    @property
    def authority_key(self) -> Path:
        """The authority's private key."""
        return self.path / "ca.key"

    @property
    def authority(self) -> Path:
        """The authority's certificate."""
        return self.path / "ca.crt"

    @property
    def server_key(self) -> Path:
        """The link's private key."""
        return self.path / "server.key"

    @property
    def server_certificate(self) -> Path:
        """The link's certificate."""
        return self.path / "server.crt"

    @property
    def roster(self) -> Path:
        """The roster in force."""
        return self.path / "roster.json"

    @property
    def draft(self) -> Path:
        """The next roster, until all have signed it."""
        return self.path / "roster-draft.json"

    @property
    def denied(self) -> Path:
        """Who may not take part from now on."""
        return self.path / "denied.json"

    @property
    def identity(self) -> Path:
        """The coordinator's own identity."""
        return self.path / "identity"

    def issued(self, name: str) -> Path:
        """Return where a member's certificate is, to be sent back."""
        return self.path / "issued" / name


def init(
    path: Path,
    consortium: str,
    *,
    addresses: Sequence[str] = (),
    coordinator: str = "coordinator",
    now: float | None = None,
) -> ConsortiumFolder:
    """Make a consortium of its coordinator alone, in a folder that holds nothing; all of it or nothing.

    Args:
        path: the folder.
        consortium: its name.
        addresses: host or host:port under which others reach the link; the first goes into the roster.
        coordinator: the coordinator's name as a member.
        now: unix time; the clock's by default.
    """
    if not is_label(consortium):
        raise ConsortiumError(f"consortium: expected {LABEL}, got {consortium!r}. Give another name.")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConsortiumError(f"{path}: expected no folder or an empty one, got files. Name another with --out.")
    reached = [_address(address) for address in addresses] or [f"localhost:{PORT}"]
    making = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        making.mkdir(mode=0o700, parents=True)
        _fill(ConsortiumFolder(path=making), consortium, reached=reached, coordinator=coordinator, now=now)
        making.replace(path)
    except OSError as error:
        raise ConsortiumError(f"{path}: the consortium cannot be made ({error}). Nothing was written.") from error
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return ConsortiumFolder(path=path)


def opened(path: Path) -> ConsortiumFolder:
    """Return the folder of a consortium, or raise ConsortiumError."""
    folder = ConsortiumFolder(path=path)
    if not folder.roster.is_file():
        raise ConsortiumError(
            f"{path}: expected the folder of a consortium, got no roster.json there. Name it, or make one with "
            f"`discreet consortium init NAME --out DIR`."
        )
    return folder


def renew(folder: ConsortiumFolder, *, addresses: Sequence[str] = (), now: float | None = None) -> int:
    """Make a new certificate of the link, for its key and its names or new ones; return the second of its expiry."""
    authority = authorities.load_authority(folder.authority, folder.authority_key)
    key = keys.read_tls_key(folder.server_key)
    hosts = tuple(host(_address(address)) for address in addresses)
    if not hosts:
        hosts = certificates.hosts(identity.read_certificate(folder.server_certificate))
    pem = authorities.issue_server(authority, key, hosts=hosts, now=now)
    write_text(folder.server_certificate, pem.decode())
    return certificates.expires(pem)


def days_until(moment: int, *, now: float | None = None) -> int:
    """Return for how many whole days something is still valid; negative when it is not."""
    return int((moment - (time() if now is None else now)) // 86_400)


def certified(
    authority: authorities.Authority, request: requests.Request, *, now: float | None, days: float = authorities.DAYS
) -> tuple[Member, bytes]:
    """Return a member with a new certificate; others connect to a coordinator or a witness by its address."""
    hosts = [host(request.address)] if request.address and request.role != "owner" else []
    pem = authorities.issue_member(authority, request.csr, name=request.name, hosts=hosts, now=now, days=days)
    fields = request.model_dump(include={"name", "role", "signing", "node", "ledger", "address"})
    member = Member(**fields, certificate=certificates.fingerprint(pem), expires=certificates.expires(pem))
    return member, pem


def _fill(
    folder: ConsortiumFolder, consortium: str, *, reached: Sequence[str], coordinator: str, now: float | None
) -> None:
    """Write everything that a new consortium has."""
    authority, server = authorities.new_authority(consortium, now=now), keys.new_tls_key()
    keys.write_private(folder.authority_key, keys.private_pem(authority.key))
    keys.write_private(folder.server_key, keys.private_pem(server))
    write_text(folder.authority, authority.pem.decode())
    pem = authorities.issue_server(authority, server, hosts=[host(address) for address in reached], now=now)
    write_text(folder.server_certificate, pem.decode())
    own = identity.new(folder.identity, coordinator, role="coordinator", address=reached[0])
    member, pem = certified(authority, own.request, now=now)
    write_text(own.tls_certificate, pem.decode())
    write_text(own.authority, authority.pem.decode())
    content = {"version": 1, "consortium": consortium, "serial": 1, "authority": authority.pem.decode()}
    roster = rosters.parse(content | {"members": [member.model_dump()]}, name="roster")
    rosters.write(folder.roster, roster, {})
    identity.sign_roster(own, folder.roster)
    shutil.copyfile(folder.roster, own.roster)


def _address(text: str) -> str:
    bare = text.strip("[]")
    if is_host(bare):
        return f"[{bare}]:{PORT}" if ":" in bare else f"{bare}:{PORT}"
    if not is_address(text):
        raise ConsortiumError(f"{text!r}: expected host or host:port, got neither. Give --address again.")
    return text
