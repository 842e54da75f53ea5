"""A consortium at a glance: members, expiry, signatures."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from common.consortium import certificates
from common.consortium import roster as rosters
from server import consortium_folder
from server.consortium_folder import days_until


def table(path: Path, *, now: float | None = None) -> dict[str, Any]:
    """Return a consortium's state as plain values; also of a draft's, where one waits."""
    folder = consortium_folder.opened(path)
    roster = rosters.unsigned(folder.roster)
    pem = folder.server_certificate.read_bytes() if folder.server_certificate.exists() else None
    return {
        "consortium": roster.consortium,
        "server_days": None if pem is None else days_until(certificates.expires(pem), now=now),
        "in_force": _roster(folder.roster, rosters.denied(folder.denied, roster), now=now),
        "draft": _roster(folder.draft, frozenset(), now=now) if folder.draft.exists() else None,
    }


def show(table: dict[str, Any]) -> None:
    """Print it for people."""
    console = Console()
    days = table["server_days"]
    console.print(f"{table['consortium']}: the link's certificate " + _lasts(days), highlight=False)
    for title, roster in (("In force", table["in_force"]), ("Draft", table["draft"])):
        if roster is not None:
            shown = Table("member", "role", "certificate", "signed", title=f"{title}: serial {roster['serial']}")
            for member in roster["members"]:
                state = member["state"] if member["state"] != "active" else _lasts(member["days"])
                shown.add_row(member["name"], member["role"], state, "yes" if member["signed"] else "NO")
            console.print(shown)
            console.print(f"digest {roster['digest']}", highlight=False, soft_wrap=True)


def _roster(path: Path, denied: frozenset[str], *, now: float | None) -> dict[str, Any]:
    roster, missing = rosters.unsigned(path), rosters.missing_signatures(path)
    members = []
    for member in roster.members:
        days = days_until(member.expires, now=now)
        state = "revoked" if member.revoked else "denied" if member.name in denied else "active"
        is_signed = not member.revoked and member.name not in missing
        members.append(
            {"name": member.name, "role": member.role, "state": state, "days": days, "signed": is_signed}
            | {"signing": member.signing, "ledger": member.ledger, "address": member.address}
        )
    return {"serial": roster.serial, "digest": roster.digest, "missing": list(missing), "members": members}


def _lasts(days: int | None) -> str:
    if days is None:
        return "is missing"
    return f"{days} days left" if days >= 0 else "EXPIRED"
