"""From the roster to Flower's nodes: who is a member is written down in one place only.

    watch = RosterWatch.open(consortium, seen=folder.seen, now=time.time())
    registration.settle(flower, watch.peers)       # Flower's table is what the roster says
    watch = watch.looked_again(now=time.time())    # cheap while the files are the same

A change to the worse is not obeyed: while the roster or the list of the denied does not verify, the last good one of
each stays in force, and a line says why.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from common.consortium import roster as rosters
from common.consortium.members import Roster, is_active
from common.errors import ConsortiumError
from server.link import peers
from server.link.flower_app import FlowerApp
from server.link.peers import Peer

_log = logging.getLogger("discreet.link")
_Stamp = tuple[int, int, int] | None


@dataclass(frozen=True, kw_only=True)
class RosterWatch:
    """A consortium's roster as it was last read, and who of it may connect."""

    roster_file: Path
    denied_file: Path
    seen: Path
    roster: Roster
    denied: frozenset[str]
    stamps: tuple[_Stamp, _Stamp]
    peers: Mapping[str, Peer]

    @classmethod
    def open(cls, consortium: Path, *, seen: Path, now: float) -> "RosterWatch":
        """Read the roster and the denied; ConsortiumError when either is not as it must be."""
        roster_file, denied_file = consortium / "roster.json", consortium / "denied.json"
        stamps = _stamp(roster_file), _stamp(denied_file)
        roster = _verified(roster_file, seen)
        denied = rosters.denied(denied_file, roster)
        return cls(
            roster_file=roster_file,
            denied_file=denied_file,
            seen=seen,
            roster=roster,
            denied=denied,
            stamps=stamps,
            peers=_active(roster, denied, now),
        )

    def looked_again(self, *, now: float) -> "RosterWatch":
        """Return this with what the files say now; what does not verify changes nothing but the log."""
        stamps = _stamp(self.roster_file), _stamp(self.denied_file)
        roster, denied = self.roster, self.denied
        if stamps != self.stamps:
            try:
                roster = _verified(self.roster_file, self.seen)
            except ConsortiumError as error:
                _log.error("the roster before stays in force: %s", error)
            try:
                denied = rosters.denied(self.denied_file, roster)
            except ConsortiumError as error:
                _log.error("who was denied before stays denied: %s", error)
        found = replace(self, roster=roster, denied=denied, stamps=stamps, peers=_active(roster, denied, now))
        return self if found.stamps == self.stamps and found.peers.keys() == self.peers.keys() else found


def settle(flower: FlowerApp, wanted: Mapping[str, Peer]) -> list[str]:
    """Make Flower's table of nodes what the roster says; return a line for each change.

    Guarantees:
        Afterwards exactly the keys of `wanted` are registered, each under its member's name.
        A second call changes nothing.
    """
    lines = []
    known = flower.nodes()
    by_key = {peer.pem: peer for peer in wanted.values()}
    for node in known:
        if node.is_registered and node.pem not in by_key:
            flower.withdraw(node)
            lines.append(f"{node.name or 'a node that no member has'}: unregistered")
    registered = {(node.pem, node.name) for node in known if node.is_registered}
    for peer in by_key.values():
        if (peer.pem, peer.name) not in registered:
            flower.admit(peer.pem, name=peer.name, known=known)
            lines.append(f"{peer.name}: registered")
    return lines


def _verified(file: Path, seen: Path) -> Roster:
    """Read a roster that all signed and that is not older than the newest seen."""
    roster = rosters.load(file)
    rosters.refuse_older(roster, seen)
    return roster


def _active(roster: Roster, denied: frozenset[str], now: float) -> dict[str, Peer]:
    """Return the owners that may connect now, by name."""
    return {
        member.name: peers.parse(member.name, member.node, expires=member.expires)
        for member in roster.owners
        if is_active(member, now) and member.name not in denied
    }


def _stamp(file: Path) -> _Stamp:
    """Return what changes when a file is replaced or written to; None while there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
