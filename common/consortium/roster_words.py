"""A roster in sentences, for who is to sign it."""

from common.consortium import certificates
from common.consortium.members import Member, Roster

_WHAT = {
    "role": "its role",
    "signing": "its signing key",
    "node": "its node key",
    "ledger": "its ledger",
    "certificate": "its certificate",
    "address": "its address",
    "expires": "its expiry",
}


def in_words(roster: Roster) -> list[str]:
    """Return what a roster says, and what to compare before it is signed."""
    active = [member for member in roster.members if not member.revoked]
    people = ", ".join(f"{member.name} ({member.role})" for member in active)
    gone = ", ".join(member.name for member in roster.members if member.revoked)
    return [
        f"Roster {roster.serial} of {roster.consortium}: {people}.",
        *([f"Revoked: {gone}."] if gone else []),
        f"Its authority's certificate is {certificates.fingerprint(roster.authority)}.",
        f"Its digest is {roster.digest}: all others must see the same one.",
    ]


def changes(before: Roster, after: Roster) -> list[str]:
    """Return what is different, a sentence each."""
    former = {member.name: member for member in before.members}
    sentences = []
    if before.consortium != after.consortium:
        sentences.append(f"ANOTHER consortium: {before.consortium} before, {after.consortium} now.")
    if before.authority != after.authority:
        sentences.append("ANOTHER authority signs certificates.")
    for member in after.members:
        known = former.pop(member.name, None)
        sentences += _joined(member) if known is None else _changed(known, member)
    sentences += [f"{name} is GONE without being revoked." for name in former]
    kept = [member.name for member in before.members if member.name not in former]
    if kept != [member.name for member in after.members][: len(kept)]:
        sentences.append("The ORDER of members, by which clients are numbered, is another.")
    return sentences


def _joined(member: Member) -> list[str]:
    return [f"{member.name} joins as {member.role}{', revoked at once' if member.revoked else ''}."]


def _changed(before: Member, after: Member) -> list[str]:
    different = [what for field, what in _WHAT.items() if getattr(before, field) != getattr(after, field)]
    sentences = [f"{after.name} changes {', '.join(different)}."] if different else []
    if before.revoked != after.revoked:
        sentences.append(f"{after.name} is revoked." if after.revoked else f"{after.name} is NO LONGER revoked.")
    return sentences
