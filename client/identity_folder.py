"""An owner's or a witness's identity, as its verbs make and show it.

What all rooms share stands in `common.consortium.identity`.
"""

from pathlib import Path
from time import time
from typing import Any

from common.consortium import certificates, identity, rotation
from common.consortium import roster as rosters
from common.consortium.identity import Identity
from common.consortium.members import Role
from common.errors import ConsortiumError
from common.transparency.database import key_files
from common.transparency.notes import VerifierKey

DAY_S = 86_400


def new(folder: Path, name: str, *, role: Role = "owner", ledger: Path | None = None, address: str = "") -> Identity:
    """Make an identity; an owner's names the public key of its ledger.

    Args:
        folder: where; it must hold no identity.
        name: of the member.
        role: what it is to be.
        ledger: an owner's ledger, whose public key lies beside it.
        address: host:port under which others reach a witness.
    """
    if ledger is not None and role != "owner":
        raise ConsortiumError(f"{name}: expected no ledger of a {role}, got {ledger}. Leave --ledger out.")
    if role == "witness" and not address:
        raise ConsortiumError(f"{name}: expected the address of a witness, got none. Give --address host:port.")
    key = "" if ledger is None else str(ledger_key(ledger))
    return identity.new(folder, name, role=role, ledger=key, address=address)


def ledger_key(ledger: Path) -> VerifierKey:
    """Return the public key that lies beside a ledger, or raise ConsortiumError."""
    _, public = key_files(ledger)
    try:
        return VerifierKey.parse(public.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConsortiumError(
            f"{public}: expected a ledger's public key, got none that reads. Name the ledger's own file, or make one "
            f"with `discreet ledger new {ledger}`."
        ) from error


def described(folder: Path, *, now: float | None = None) -> dict[str, Any]:
    """Return an identity as plain values, without anything private: what it is, what it lacks, what is wrong."""
    own = identity.load(folder)
    request = own.request
    days = None
    if own.tls_certificate.exists():
        moment = certificates.expires(own.tls_certificate.read_bytes())
        days = int((moment - (time() if now is None else now)) // DAY_S)
    return {
        "name": own.name,
        "role": own.role,
        "signing": request.signing,
        "ledger": request.ledger,
        "address": request.address,
        "certificate_days": days,
        "rotating": (folder / rotation.NEXT).exists(),
        **_roster(own),
    }


def in_words(shown: dict[str, Any]) -> list[str]:
    """Return `described` in sentences for people."""
    days = shown["certificate_days"]
    validity = "none yet" if days is None else f"{days} days left" if days >= 0 else "EXPIRED"
    return [
        f"{shown['name']}, {shown['role']}. Its signing key, to be read out to the coordinator:",
        f"  {shown['signing']}",
        f"Ledger: {shown['ledger'] or 'none'}. Address: {shown['address'] or 'none'}. Certificate: {validity}.",
        *(["New keys wait in the folder next."] if shown["rotating"] else []),
        f"In the roster of {shown['consortium']}, serial {shown['serial']}, digest {shown['digest']}."
        if shown["problem"] is None
        else f"Not ready: {shown['problem']}",
    ]


def _roster(own: Identity) -> dict[str, Any]:
    try:
        roster = identity.trusted_roster(own)
    except ConsortiumError as error:
        return {"consortium": None, "serial": None, "digest": None, "problem": str(error)}
    state: dict[str, Any] = {"consortium": roster.consortium, "serial": roster.serial, "digest": roster.digest}
    is_active = rosters.is_active(roster.member(own.name), time())
    return state | {"problem": None if is_active else "its certificate has expired: ask the coordinator for a new one."}
