"""A whole signed consortium in a folder, for tests of everything that needs one.

>>> from tempfile import TemporaryDirectory
>>> with TemporaryDirectory() as folder:
...     [owner.name for owner in make(Path(folder)).roster.owners]
['owner-0', 'owner-1', 'owner-2']
"""

import shutil
from collections.abc import Collection
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from common.consortium import identity
from common.consortium import roster as rosters
from common.consortium.identity import Identity
from common.consortium.members import Roster
from common.ledger import Ledger
from server import consortium_folder, enrolment
from server.consortium_folder import ConsortiumFolder

DAY_S = 86_400


@dataclass(frozen=True, kw_only=True)
class SampleConsortium:
    """The coordinator's folder, the members' identities (owner-0, owner-1, ..., witness) and the ledgers' files."""

    folder: ConsortiumFolder
    coordinator: Identity
    owners: tuple[Identity, ...]
    witness: Identity | None
    ledgers: tuple[Path, ...]

    @property
    def roster(self) -> Roster:
        """The roster in force."""
        return rosters.load(self.folder.roster)

    @property
    def members(self) -> tuple[Identity, ...]:
        """All identities, the coordinator's first."""
        return (self.coordinator, *self.owners, *([self.witness] if self.witness else []))


def make(
    folder: Path,
    owners: int = 3,
    *,
    witness: bool = True,
    ledgers: bool = False,
    expired: Collection[str] = (),
    witness_address: str = "localhost:9444",
    name: str = "sample",
    now: float | None = None,
) -> SampleConsortium:
    """Make a consortium that all members signed, in an empty folder.

    For a foreign certificate make a second consortium elsewhere: its members have the same names.

    Args:
        folder: gets consortium/ (the coordinator's), owner-0/, ..., witness/ and owner-0.db, ...
        owners: how many.
        witness: whether there is one.
        ledgers: whether each owner has a ledger, whose key is in the roster.
        expired: names of members whose certificates ended a day ago.
        witness_address: host:port of the witness.
        name: of the consortium.
        now: unix time from which all is valid; the clock's by default.
    """
    made = consortium_folder.init(folder / "consortium", name, addresses=["localhost:9443"], now=now)
    files = tuple(folder / f"owner-{number}.db" for number in range(owners if ledgers else 0))
    texts = [_ledger_key(file) for file in files] or [""] * owners
    identities = [
        identity.new(folder / f"owner-{number}", f"owner-{number}", ledger=text) for number, text in enumerate(texts)
    ]
    if witness:
        identities.append(identity.new(folder / "witness", "witness", role="witness", address=witness_address))
    for one in identities:
        request = one.folder / "request.json"
        enrolment.add(made, request, now=now, days=-1 if one.name in expired else 365)
    sign_all(made, identities)
    return SampleConsortium(
        folder=made,
        coordinator=identity.load(made.identity),
        owners=tuple(one for one in identities if one.role == "owner"),
        witness=identities[-1] if witness else None,
        ledgers=files,
    )


def sign_all(folder: ConsortiumFolder, identities: Collection[Identity]) -> Roster:
    """Let all sign the draft, put it in force, and send everybody the roster and its certificates."""
    if folder.draft.exists():
        for one in identities:
            identity.sign_roster(one, folder.draft)
        enrolment.merge([folder.draft], folder.roster)
    for one in (*identities, identity.load(folder.identity)):
        shutil.copyfile(folder.roster, one.roster)
        if folder.issued(one.name).exists():
            for file in folder.issued(one.name).iterdir():
                shutil.copyfile(file, one.folder / file.name)
    return rosters.load(folder.roster)


def _ledger_key(file: Path) -> str:
    with closing(Ledger.create(file)) as ledger:
        return str(ledger.key)
