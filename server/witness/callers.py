"""Who may ask a witness: the active members of the roster, as it and `denied.json` say at this moment.

A member is known by its certificate's fingerprint; that the authority issued it, TLS has checked.
"""

import logging
import time
from pathlib import Path
from threading import Lock

from common.consortium import certificates, denials, identity
from common.consortium import roster as rosters
from common.consortium.identity import Identity
from common.consortium.members import Member, Roster
from common.errors import ConsortiumError, WitnessError

log = logging.getLogger("discreet.witness")

_Stamp = tuple[tuple[int, int, int] | None, ...]


class Callers:
    """The members who may call; both files are read again whenever one has changed.

    Guarantees:
        While a file does not read, nobody may call: who goes on with an old roster may let a revoked member in.
        An older roster than one seen before is refused.
    """

    def __init__(self, own: Identity) -> None:
        """Read the roster beside an identity, or raise ConsortiumError."""
        self._own, self._lock = own, Lock()
        self._stamp = self._stamped()
        self._roster, self._denied = self._read()

    def member(self, certificate: bytes) -> Member:
        """Return the active member who holds a certificate (PEM).

        Raises:
            ConsortiumError: nobody active does.
            WitnessError: nobody can say, since the roster does not read.
        """
        with self._lock:
            self._refresh()
            roster, denied = self._roster, self._denied
        found = certificates.fingerprint(certificate)
        member = next((one for one in roster.members if one.certificate == found), None)
        if member is None:
            raise ConsortiumError(f"certificate {found[:16]}: expected a member's of {roster.consortium}, got another.")
        if member.name in denied or not rosters.is_active(member, time.time()):
            raise ConsortiumError(f"{member.name}: expected an active member, got one that was revoked or has expired.")
        return member

    def knows(self, ledger: str) -> bool:
        """Whether a ledger, named by its key's text, is a member's, revoked ones included."""
        with self._lock:
            self._refresh()
            return any(member.ledger == ledger for member in self._roster.members if member.ledger)

    def _refresh(self) -> None:
        stamp = self._stamped()
        if stamp != self._stamp:
            try:
                self._roster, self._denied = self._read()
            except ConsortiumError as error:
                raise WitnessError(f"Nobody may ask until this is mended: {error}") from error
            self._stamp = stamp
            log.info("roster %d of %s is in force", self._roster.serial, self._roster.consortium)

    def _read(self) -> tuple[Roster, frozenset[str]]:
        roster = identity.trusted_roster(self._own)
        rosters.refuse_older(roster, self._own.folder / "seen.json")
        return roster, denials.denied(self._own.folder / "denied.json", roster)

    def _stamped(self) -> _Stamp:
        return tuple(_stamp(path) for path in (self._own.roster, self._own.folder / "denied.json"))


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
