"""A member's own folder: its private keys, its certificate, and the roster it trusts.

signing.key node.key tls.key    private, 0600, never leave
request.json                    public: goes to the coordinator
tls.crt ca.crt roster.json      public: come back from it
signed.json                     the newest roster that was signed here
"""

from dataclasses import dataclass
from pathlib import Path

from common.consortium import certificates, keys, requests
from common.consortium import roster as rosters
from common.consortium.documents import write_text
from common.consortium.members import Member, Role, Roster
from common.consortium.names import LABEL, is_label
from common.errors import ConsortiumError
from common.transparency.notes import Signer

SIGNED = "signed.json"
PRIVATE = ("signing.key", "node.key", "tls.key")


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Who a member is: the request it made, and the keys behind it."""

    folder: Path
    request: requests.Request
    signer: Signer

    @property
    def name(self) -> str:
        """The member's name."""
        return self.request.name

    @property
    def role(self) -> Role:
        """What the member asked to be."""
        return self.request.role

    @property
    def node_key(self) -> keys.PrivateKey:
        """An owner's key for Flower, read from its file."""
        return keys.read_node_key(self.folder / "node.key")

    @property
    def tls_key(self) -> Path:
        """The private key of its certificate."""
        return self.folder / "tls.key"

    @property
    def tls_certificate(self) -> Path:
        """Its certificate, once the coordinator has sent it."""
        return self.folder / "tls.crt"

    @property
    def authority(self) -> Path:
        """The certificate of the consortium's authority."""
        return self.folder / "ca.crt"

    @property
    def roster(self) -> Path:
        """The roster."""
        return self.folder / "roster.json"


def new(
    folder: Path, name: str, *, role: Role = "owner", ledger: str = "", address: str = "", former: Signer | None = None
) -> Identity:
    """Make an identity: its keys and its request, in a folder that has none; all of it or nothing.

    Args:
        folder: where; it is made when it is missing, for its owner alone.
        name: of the member, as the roster is to have it.
        role: what it is to be.
        ledger: an owner's ledger, by its key's text.
        address: host:port where others reach it; "" where nobody has to.
        former: the signing key that the new one follows.
    """
    if not is_label(name):
        raise ConsortiumError(f"name: expected {LABEL}, got {name!r}. Give another name.")
    _refuse_present(folder)
    signer, tls = Signer.new(name), keys.new_tls_key()
    node = keys.new_node_key() if role == "owner" else None
    text = requests.make(signer, role=role, node=node, tls=tls, ledger=ledger, address=address, former=former)
    pems = {"signing.key": signer.pem(), "tls.key": keys.private_pem(tls)}
    if node:
        pems["node.key"] = keys.private_pem(node)
    written: list[Path] = []
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for key, pem in pems.items():
            keys.write_private(folder / key, pem)
            written.append(folder / key)
        write_text(folder / "request.json", text)
    except (OSError, ConsortiumError) as error:
        for file in written:
            file.unlink(missing_ok=True)
        raise ConsortiumError(f"{folder}: the identity cannot be made ({error}). No key is left there.") from error
    return load(folder)


def load(folder: Path) -> Identity:
    """Read an identity whose keys are those of its request, or raise ConsortiumError."""
    request = requests.load(folder / "request.json")
    signer = keys.read_signer(folder / "signing.key", request.name)
    identity = Identity(folder=folder, request=request, signer=signer)
    tls = keys.read_tls_key(identity.tls_key).public_key()
    if str(signer.key) != request.signing:
        raise _foreign(folder / "signing.key")
    if tls != certificates.requested_key(request.csr, name=request.name):
        raise _foreign(identity.tls_key)
    if request.role == "owner" and keys.node_public_pem(identity.node_key) != request.node:
        raise _foreign(folder / "node.key")
    return identity


def own_member(identity: Identity, roster: Roster) -> Member:
    """Return the identity's place in a roster; ConsortiumError when what stands there is not what it asked for."""
    member, request = roster.member(identity.name), identity.request
    if member.revoked:
        raise ConsortiumError(
            f"{identity.name}: expected to be in the roster of {roster.consortium}, got revoked in serial "
            f"{roster.serial}. Ask the coordinator why."
        )
    for field in ("role", "signing", "node", "ledger", "address"):
        if getattr(member, field) != getattr(request, field):
            raise ConsortiumError(
                f"{identity.name}: {field}: expected in the roster what {identity.folder / 'request.json'} asked for, "
                f"got something else. Sign nothing: ask the coordinator to add your request.json again."
            )
    return member


def trusted_roster(identity: Identity) -> Roster:
    """Return the roster beside an identity that every member, this one too, signed; or raise ConsortiumError.

    Guarantees:
        The identity's own key signed it, and its own keys stand in it as it asked for.
        `ca.crt` beside it is the roster's authority, and `tls.crt` is of this member, this authority and this roster.
    """
    roster = rosters.load(identity.roster)
    refuse_uncertified(identity, own_member(identity, roster), roster)
    return roster


def refuse_uncertified(identity: Identity, member: Member, roster: Roster) -> None:
    """Raise ConsortiumError unless the certificates beside an identity are those that the roster names."""
    again = "Copy it again from what the coordinator sent back."
    if certificates.fingerprint(read_certificate(identity.authority)) != certificates.fingerprint(roster.authority):
        raise ConsortiumError(
            f"{identity.authority}: expected the authority of {roster.consortium}, got another one. {again}"
        )
    pem = read_certificate(identity.tls_certificate)
    key = certificates.requested_key(identity.request.csr, name=identity.name)
    if not certificates.is_certified(pem, authority=roster.authority, key=key):
        raise ConsortiumError(
            f"{identity.tls_certificate}: expected a certificate of {identity.name} from the authority of "
            f"{roster.consortium}, got a foreign one. {again}"
        )
    if certificates.fingerprint(pem) != member.certificate or certificates.expires(pem) != member.expires:
        raise ConsortiumError(
            f"{identity.tls_certificate}: expected the certificate that roster {roster.serial} names, got another. "
            f"{again}"
        )


def sign_roster(identity: Identity, path: Path) -> Roster:
    """Sign a roster's file as this member, once it is sure that its own keys stand in it, and that it is no older."""
    roster = rosters.unsigned(path)
    own_member(identity, roster)
    rosters.refuse_older(roster, identity.folder / SIGNED)
    return rosters.sign(path, identity.signer)


def _refuse_present(folder: Path) -> None:
    for name in (*PRIVATE, "request.json"):
        if (folder / name).exists():
            raise ConsortiumError(
                f"{folder / name}: expected no identity, got one. Keys are never written over: name another folder, or "
                f"make new keys with `discreet identity rotate {folder}`."
            )


def _foreign(path: Path) -> ConsortiumError:
    return ConsortiumError(
        f"{path}: expected the private key of {path.parent / 'request.json'}, got another one. Bring both back from "
        f"one copy."
    )


def read_certificate(path: Path) -> bytes:
    """Return a certificate's file, or raise ConsortiumError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConsortiumError(
            f"{path}: expected a certificate, got {error.strerror}. The coordinator sends it back after "
            f"`discreet consortium add`."
        ) from error
