"""The roster's file: who is in the consortium, with which keys, signed by all of them.

    {"roster": {..., "serial": 4, "members": [...]}, "signatures": {"north": "base64", ...}}

Nobody alone can change it. A member that must go at once stands in `denied.json` beside it, which the coordinator alone
signs and which can only take away. A roster that is consistent in itself may still be a stranger's: a member trusts one
only when its own signature is in it (`identity.trusted_roster`).
"""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from common.consortium import seals
from common.consortium.denials import denied, deny
from common.consortium.documents import decoded, read_json, write_text
from common.consortium.members import Member, Role, Roster, is_active
from common.errors import ConsortiumError
from common.transparency.notes import Signer
from common.validation_errors import explain

__all__ = [
    "Member",
    "Role",
    "Roster",
    "denied",
    "deny",
    "is_active",
    "load",
    "merge",
    "refuse_older",
    "sign",
    "unsigned",
]
VERSION = 1


def load(path: Path) -> Roster:
    """Read a roster that all its members signed, or raise ConsortiumError that names who did not."""
    roster, signatures = _read(path)
    missing = unsigned_by(roster, signatures)
    if missing:
        raise ConsortiumError(
            f"{path}: expected the signature of every member over this roster, got none that is right of "
            f"{', '.join(missing)}. Let them sign it: discreet consortium sign {path.name} --identity DIR"
        )
    return roster


def unsigned(path: Path) -> Roster:
    """Read a roster whoever signed it: for those who are still to sign it."""
    return _read(path)[0]


def missing_signatures(path: Path) -> tuple[str, ...]:
    """Return who has not, or not rightly, signed a roster's file."""
    return unsigned_by(*_read(path))


def unsigned_by(roster: Roster, signatures: Mapping[str, bytes]) -> tuple[str, ...]:
    """Return the members without a right signature; a revoked one needs none."""
    statement = roster.statement
    return tuple(
        member.name
        for member in roster.members
        if not member.revoked and not member.key.is_signed(statement, signatures.get(member.name, b""))
    )


def write(path: Path, roster: Roster, signatures: Mapping[str, bytes]) -> None:
    """Write a roster's file whole."""
    texts = {name: base64.b64encode(signature).decode() for name, signature in sorted(signatures.items())}
    content = {"roster": roster.model_dump(mode="json"), "signatures": texts}
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def sign(path: Path, signer: Signer) -> Roster:
    """Put a member's signature into a roster's file; ConsortiumError when its key is not the roster's."""
    roster, signatures = _read(path)
    member = roster.member(signer.key.name)
    if member.revoked or member.key != signer.key:
        state = "revoked" if member.revoked else "another key"
        raise ConsortiumError(
            f"{path}: expected {member.name} with the key that is to sign, got {state}. Nothing was signed: ask the "
            f"coordinator what it made of your request.json."
        )
    write(path, roster, _right(roster, signatures) | {member.name: seals.seal(signer, roster.statement)})
    return roster


def merge(paths: Sequence[Path], out: Path) -> tuple[str, ...]:
    """Gather the signatures of copies of one roster into `out`; return who has still to sign.

    A wrong signature is left out. A roster that all have signed is never replaced by one that lacks somebody's.
    """
    read = [_read(path) for path in paths]
    if not read:
        raise ConsortiumError("expected files to merge, got none. Name the copies that came back.")
    roster = read[0][0]
    for path, (other, _) in zip(paths, read, strict=True):
        if other != roster:
            raise ConsortiumError(
                f"{path}: expected the same roster as {paths[0]} (serial {roster.serial}, {roster.digest[:16]}), got "
                f"serial {other.serial}, {other.digest[:16]}. Merge copies of one roster."
            )
    gathered = {name: signature for other, found in read for name, signature in _right(other, found).items()}
    missing = unsigned_by(roster, gathered)
    if missing and out.exists() and not missing_signatures(out):
        raise ConsortiumError(
            f"{out}: expected the signatures of all, got none of {', '.join(missing)}. The file is as it was: merge "
            f"again when they have signed, or name another file with --out."
        )
    write(out, roster, gathered)
    return missing


def newest_serial(seen: Path) -> int:
    """Return the newest serial that `refuse_older` kept there, 0 when there is none."""
    return _seen(seen)["serial"] if seen.exists() else 0


def refuse_older(roster: Roster, seen: Path) -> None:
    """Keep the newest serial in `seen`; ConsortiumError for an older roster, or another one of the same serial."""
    if seen.exists():
        known = _seen(seen)
        consortium, serial = known.get("consortium"), known["serial"]
        if consortium != roster.consortium or roster.serial < serial:
            raise ConsortiumError(
                f"roster: expected one of {consortium} of serial {serial} or newer, got {roster.consortium} "
                f"{roster.serial}. {seen} says that it was seen: ask the coordinator for the newest."
            )
        if roster.serial == serial:
            if known.get("digest") == roster.digest:
                return
            raise ConsortiumError(
                f"roster: expected the one of serial {roster.serial} that {seen} says was seen, got another of the "
                f"same serial. Somebody shows different rosters to different members: compare their digests."
            )
    newest = {"consortium": roster.consortium, "serial": roster.serial, "digest": roster.digest}
    write_text(seen, json.dumps(newest) + "\n")


def parse(content: object, *, name: str) -> Roster:
    """Read a roster's table, or raise ConsortiumError."""
    version = content.get("version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > VERSION:
        raise ConsortiumError(
            f"{name}: version: expected {VERSION}, got {version}. It is of a newer Discreet: upgrade Discreet."
        )
    try:
        return Roster.model_validate(content)
    except ValidationError as error:
        tables = {"members": (Member,), **dict.fromkeys(Roster.model_fields, ())}
        raise ConsortiumError(f"{name}: {explain(error, tables)} Ask the coordinator for the roster again.") from error


def _seen(path: Path) -> dict[str, Any]:
    known = read_json(path)
    if not isinstance(known, dict) or not isinstance(known.get("serial"), int):
        raise ConsortiumError(f"{path}: expected the newest serial seen, got another file. Bring it back.")
    return known


def _read(path: Path) -> tuple[Roster, dict[str, bytes]]:
    content = read_json(path)
    if not isinstance(content, dict) or content.keys() != {"roster", "signatures"}:
        raise ConsortiumError(
            f"{path}: expected a roster and signatures, got others. Ask the coordinator for it again."
        )
    texts = content["signatures"]
    if not isinstance(texts, dict):
        raise ConsortiumError(f"{path}: signatures: expected them by name, got others. Ask for the file again.")
    return parse(content["roster"], name=str(path)), {name: decoded(text) for name, text in texts.items()}


def _right(roster: Roster, signatures: Mapping[str, bytes]) -> dict[str, bytes]:
    wrong = {*unsigned_by(roster, signatures), *(member.name for member in roster.members if member.revoked)}
    known = {member.name for member in roster.members} - wrong
    return {name: signature for name, signature in signatures.items() if name in known}
