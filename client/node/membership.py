"""Who this node is among the others: the roster beside its identity, read again whenever the file changes."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path

from common.consortium import identity as identities
from common.consortium import roster as rosters
from common.consortium.identity import Identity
from common.consortium.members import Roster
from common.errors import ConsortiumError
from common.transparency.notes import Signer, VerifierKey

log = logging.getLogger("discreet.node")


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What this node's messages are bound to.

    Args:
        signer: the organisation's own key, with its name.
        position: its place among the roster's owners: the client number of its orders.
        roster: digest of the roster.
        consortium: its name.
        coordinator: whose orders count.
        coordinator_expires: unix time from which they do not.
        coordinator_address: host:port of its link.
    """

    signer: Signer
    position: int
    roster: str
    consortium: str
    coordinator: VerifierKey
    coordinator_expires: int
    coordinator_address: str

    @property
    def name(self) -> str:
        """The organisation's name."""
        return self.signer.key.name


class Membership:
    """The newest roster that this node has seen."""

    def __init__(self, identity: Identity, *, seen: Path) -> None:
        """Read the roster; ConsortiumError when this node is not an owner in one that all have signed.

        Args:
            identity: the organisation's keys, with the roster beside them.
            seen: a file that keeps the newest serial: an older roster is never gone back to.
        """
        self._identity, self._seen = identity, seen
        self._version = self._stat()
        self._standing = self._read()

    def standing(self) -> Standing:
        """Return what holds now; a roster that does not read is said once, and the one before it stays."""
        version = self._stat()
        if version != self._version:
            self._version = version
            try:
                self._standing = self._read()
            except ConsortiumError as error:
                log.warning("the new roster is not used, the one before it stays: %s", error)
            else:
                log.info("the roster is another: %s", self._standing.roster[:16])
        return self._standing

    def _read(self) -> Standing:
        roster = identities.trusted_roster(self._identity)
        rosters.refuse_older(roster, self._seen)
        return standing_in(roster, self._identity.signer)

    def _stat(self) -> tuple[int, int, int]:
        try:
            status = self._identity.roster.stat()
        except OSError:
            return (0, 0, 0)
        return status.st_ino, status.st_mtime_ns, status.st_size


def standing_in(roster: Roster, signer: Signer) -> Standing:
    """Return what a roster makes of the owner with this key; ConsortiumError when it is none, or no longer."""
    name = signer.key.name
    member = roster.member(name)
    if member.role != "owner" or not rosters.is_active(member, time.time()):
        state = f"a {member.role}" if member.role != "owner" else "revoked" if member.revoked else "expired"
        raise ConsortiumError(
            f"{name}: expected an active owner in the roster of {roster.consortium}, got {state}. Ask the coordinator: "
            f"an expired certificate is renewed by adding the same request.json again."
        )
    return Standing(
        signer=signer,
        position=[owner.name for owner in roster.owners].index(name),
        roster=roster.digest,
        consortium=roster.consortium,
        coordinator=roster.coordinator.key,
        coordinator_expires=roster.coordinator.expires,
        coordinator_address=roster.coordinator.address,
    )
