"""Who may not take part from now on: `denied.json`, beside the roster, signed by the coordinator alone.

It can only take away. A member is denied by its signing key, so that one who comes back with new keys is not.
"""

import base64
import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from common.consortium import seals
from common.consortium.documents import decoded, read_json, write_text
from common.consortium.members import Roster
from common.errors import ConsortiumError
from common.transparency.notes import Signer


def deny(path: Path, roster: Roster, names: Iterable[str], signer: Signer) -> None:
    """Write `denied.json`: these members of the roster may not take part from now on; who was denied stays denied."""
    refused = {roster.member(name).signing for name in names}
    deny_keys(path, roster, refused | denied_keys(path, roster), signer)


def deny_keys(path: Path, roster: Roster, refused: Collection[str], signer: Signer) -> None:
    """Write `denied.json` with exactly these signing keys, signed by the coordinator."""
    if roster.coordinator.key != signer.key:
        raise ConsortiumError(
            f"{path}: expected the key of the coordinator {roster.coordinator.name}, got another. Nothing was denied."
        )
    texts = sorted(refused)
    signature = seals.seal(signer, _denial(roster.consortium, texts))
    content = {"consortium": roster.consortium, "denied": texts, "signature": base64.b64encode(signature).decode()}
    write_text(path, json.dumps(content, indent=1) + "\n")


def denied(path: Path, roster: Roster) -> frozenset[str]:
    """Return the names of members whom the coordinator denied; nobody when there is no file.

    ConsortiumError for a file that it did not sign: who goes on regardless might let a revoked member in.
    """
    refused = denied_keys(path, roster)
    return frozenset(member.name for member in roster.members if member.signing in refused)


def denied_keys(path: Path, roster: Roster) -> frozenset[str]:
    """Return the signing keys that the coordinator denied, also of who is in this roster no more."""
    if not path.exists():
        return frozenset()
    content = read_json(path)
    refused = content.get("denied") if isinstance(content, dict) else None
    if not isinstance(refused, list) or not all(isinstance(key, str) for key in refused):
        raise ConsortiumError(f"{path}: expected a list of denied keys, got another file. Bring the right one back.")
    statement = _denial(roster.consortium, refused)
    if not roster.coordinator.key.is_signed(statement, decoded(content.get("signature"))):
        raise ConsortiumError(
            f"{path}: expected the signature of the coordinator {roster.coordinator.name}, got another. The file was "
            f"changed, or is of another consortium: bring the right one back, or revoke again."
        )
    return frozenset(refused)


def _denial(consortium: str, refused: Sequence[str]) -> bytes:
    return seals.statement("denied", consortium=consortium, denied=list(refused))
