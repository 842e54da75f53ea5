"""Changes of who is in a consortium: each makes a draft of the next serial, in force when all have signed it.

What is taken away holds at once (`denied.json`); what is added waits for the signatures.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.consortium import authority as authorities
from common.consortium import certificates, denials, identity, requests, rotation
from common.consortium import roster as rosters
from common.consortium.documents import write_text
from common.consortium.members import Member, Roster
from common.errors import ConsortiumError
from server.consortium_folder import ConsortiumFolder, certified


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A change that waits for signatures."""

    path: Path
    roster: Roster
    missing: tuple[str, ...]


def newest(folder: ConsortiumFolder) -> Roster:
    """Return the draft where one waits, else the roster in force."""
    current = rosters.load(folder.roster)
    draft = rosters.unsigned(folder.draft) if folder.draft.exists() else current
    return draft if draft.serial > current.serial else current


def add(
    folder: ConsortiumFolder,
    request_file: Path,
    *,
    replace: bool = False,
    now: float | None = None,
    days: float = authorities.DAYS,
) -> Draft:
    """Certify who asks and draft the roster with it; a name that is there gets its new keys, or a new certificate.

    New keys need the signature of the former one, or `replace`: whoever asks in another's name has not that key.
    """
    request = requests.load(request_file)
    roster = newest(folder)
    present = next((member for member in roster.members if member.name == request.name), None)
    if present is not None:
        _refuse_usurper(request_file, request, present, replace=replace)
    authority = authorities.load_authority(folder.authority, folder.authority_key)
    member, pem = certified(authority, request, now=now, days=days)
    draft = _next(folder, roster, member)  # refuses what the others already have, before anything is written
    issued = folder.issued(request.name)
    try:
        issued.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConsortiumError(f"{issued}: expected a folder, got {error.strerror}. May you write there?") from error
    write_text(issued / "tls.crt", pem.decode())
    write_text(issued / "ca.crt", authority.pem.decode())
    return _propose(folder, draft)


def revoke(folder: ConsortiumFolder, name: str) -> Draft:
    """Deny a member at once, and draft the roster without it."""
    roster = newest(folder)
    member = roster.member(name)
    if member.role == "coordinator":
        raise ConsortiumError(f"{name}: expected an owner or a witness, got the coordinator. Rotate its keys instead.")
    if member.revoked:
        raise ConsortiumError(f"{name}: expected an active member, got one revoked by serial {roster.serial} already.")
    draft = _next(folder, roster, member.model_copy(update={"revoked": True}))
    current = rosters.load(folder.roster)
    keys = {one.signing for one in (*current.members, *draft.members) if one.name == name}  # where it is rotating, both
    refused = keys | denials.denied_keys(folder.denied, current)
    denials.deny_keys(folder.denied, current, refused, identity.load(folder.identity).signer)
    return _propose(folder, draft)


def merge(files: Sequence[Path], out: Path) -> tuple[str, ...]:
    """Gather signatures into `out`; return who has still to sign. A draft that is in force is no draft any more."""
    folder = ConsortiumFolder(path=out.parent)
    if not files or out.name != folder.roster.name or not folder.authority_key.exists():
        return rosters.merge(files, out)
    current, coming = rosters.load(out), rosters.unsigned(files[0])
    _refuse_backwards(files[0], current, coming)
    is_outdated = _outdates_denials(folder, current, coming)
    missing = rosters.merge(files, out)
    if missing:
        return missing
    if is_outdated:
        folder.denied.unlink()
    if folder.draft.exists() and rosters.unsigned(folder.draft).serial <= coming.serial:
        folder.draft.unlink()
    _bring_home(folder, coming)
    return ()


def _refuse_usurper(path: Path, request: requests.Request, present: Member, *, replace: bool) -> None:
    if request.role != present.role:
        raise ConsortiumError(f"{path}: expected {present.name} as {present.role}, got {request.role}. Name it anew.")
    kept = [
        what
        for what in ("signing", "node")
        if getattr(request, what) and getattr(request, what) == getattr(present, what)
    ]
    if present.revoked and kept:
        raise ConsortiumError(
            f"{path}: expected new keys of {present.name}, who is revoked, got its former {kept[0]} key. Let it make "
            f"another identity."
        )
    is_vouched = present.signing in {request.signing, request.former}
    if (present.revoked or not is_vouched) and not replace:
        raise ConsortiumError(
            f"{path}: expected the signature of {present.name}'s present key, got a request without it. Let the member "
            f"run `discreet identity rotate`; if its key is lost, make sure who asks, then add it with --replace."
        )


def _next(folder: ConsortiumFolder, roster: Roster, member: Member) -> Roster:
    """Put a member in its former place, or at the end, into a roster of a serial that was never used."""
    names = [one.name for one in roster.members]
    members = [member if one.name == member.name else one for one in roster.members]
    members += [member] if member.name not in names else []
    used = rosters.newest_serial(folder.identity / identity.SIGNED)  # also of a draft that was thrown away
    content = {"serial": max(roster.serial, used) + 1, "members": [one.model_dump() for one in members]}
    return rosters.parse(roster.model_dump() | content, name=member.name)


def _propose(folder: ConsortiumFolder, draft: Roster) -> Draft:
    """Write a draft that the coordinator has signed, if its own keys in it are those in use."""
    rosters.write(folder.draft, draft, {})
    own = identity.load(folder.identity)
    if draft.coordinator.key == own.signer.key:
        identity.sign_roster(own, folder.draft)
    return Draft(path=folder.draft, roster=draft, missing=rosters.missing_signatures(folder.draft))


def _refuse_backwards(path: Path, current: Roster, coming: Roster) -> None:
    if (coming.consortium, coming.authority) != (current.consortium, current.authority):
        raise ConsortiumError(
            f"{path}: expected a roster of {current.consortium} and its authority, got another's. Name the copies that "
            f"came back."
        )
    if coming.serial < current.serial:
        raise ConsortiumError(
            f"{path}: expected serial {current.serial} or newer, got {coming.serial}. Merge copies of the newest draft."
        )


def _outdates_denials(folder: ConsortiumFolder, current: Roster, coming: Roster) -> bool:
    """Whether `denied.json` is of a former key of the coordinator, and the coming roster says all that it says."""
    if coming.coordinator.key == current.coordinator.key or not folder.denied.exists():
        return False
    refused = rosters.denied(folder.denied, current)
    active = sorted(member.name for member in coming.members if member.name in refused and not member.revoked)
    if active:
        raise ConsortiumError(
            f"{folder.denied}: expected the coming roster to revoke {', '.join(active)}, got serial {coming.serial} "
            f"without that. Merge the newest draft."
        )
    return True


def _bring_home(folder: ConsortiumFolder, roster: Roster) -> None:
    """Put the roster, and a new certificate, beside the coordinator's own keys: the present ones or the next ones."""
    coordinator = roster.coordinator
    for place in (folder.identity, folder.identity / rotation.NEXT):
        if place.exists() and identity.load(place).signer.key == coordinator.key:
            shutil.copyfile(folder.roster, place / "roster.json")
            issued = folder.issued(coordinator.name)
            if (
                issued.exists()
                and certificates.fingerprint((issued / "tls.crt").read_bytes()) == coordinator.certificate
            ):
                shutil.copyfile(issued / "tls.crt", place / "tls.crt")
                shutil.copyfile(issued / "ca.crt", place / "ca.crt")
