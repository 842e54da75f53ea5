"""The members of a consortium, and the record of them all.

A client's number in an order is its owner's place in `Roster.owners`.
"""

from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from common.consortium import certificates, keys, seals
from common.consortium.names import Address, Label
from common.errors import ConsortiumError
from common.model_tables import Table
from common.transparency.notes import VerifierKey

Role = Literal["coordinator", "owner", "witness"]
_Second = Annotated[int, Field(ge=0, le=2**40, strict=True)]
_Fingerprint = Annotated[str, Field(pattern=r"\A(?:[0-9a-f]{64})?\z")]


class Member(Table):
    """Who takes part, and by which keys it is known."""

    name: Label
    role: Role
    signing: str
    node: str = ""
    ledger: str = ""
    certificate: _Fingerprint = ""
    address: Address = ""
    expires: _Second
    revoked: Annotated[bool, Field(strict=True)] = False

    @model_validator(mode="after")
    def _keys_fit(self) -> Self:
        if VerifierKey.parse(self.signing).name != self.name:
            raise ValueError(f"signing: expected a key of {self.name}, got one of another name")
        if (self.role == "owner") != bool(self.node) or (self.node and not keys.is_node_public(self.node)):
            raise ValueError(f"node: expected an EC P-384 key of {self.name} if it is an owner, got {self.node!r}")
        if self.ledger:
            VerifierKey.parse(self.ledger)
            if self.role != "owner":
                raise ValueError(f"ledger: expected none of {self.name}, a {self.role}, got one")
        return self

    @property
    def key(self) -> VerifierKey:
        """By which its signatures are checked."""
        return VerifierKey.parse(self.signing)


class Roster(Table):
    """All members, in the order that client numbers follow."""

    version: Literal[1]
    consortium: Label
    serial: Annotated[int, Field(ge=1, le=2**40, strict=True)]
    authority: str
    members: tuple[Member, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not certificates.is_authority(self.authority):
            raise ValueError("authority: expected the certificate of an authority, got another text")
        coordinators = [member.name for member in self.members if member.role == "coordinator"]
        if len(coordinators) != 1 or self.coordinator.revoked:
            raise ValueError(f"members: expected one coordinator, got {coordinators or 'none'}")
        _refuse_repeated("name", [(member.name.lower(), member.name) for member in self.members])
        _refuse_repeated("node key", [(member.node, member.name) for member in self.members])
        _refuse_repeated("certificate", [(member.certificate, member.name) for member in self.members])
        texts = [(text, member.name) for member in self.members for text in (member.signing, member.ledger) if text]
        _refuse_repeated("key", [(VerifierKey.parse(text).public.hex(), name) for text, name in texts])
        return self

    @property
    def statement(self) -> bytes:
        """What all members sign."""
        plain = self.model_dump(mode="json")
        for member in plain["members"]:
            member["revoked"] = int(member["revoked"])  # canonical JSON has no booleans
        return seals.statement("roster", roster=plain)

    @property
    def digest(self) -> str:
        """SHA-256, hexadecimal, of every value; signatures do not count."""
        return seals.digest(self.statement)

    @property
    def owners(self) -> tuple[Member, ...]:
        """The owners that are not revoked: an order's client number is a place in here."""
        return tuple(member for member in self.members if member.role == "owner" and not member.revoked)

    @property
    def coordinator(self) -> Member:
        """The one coordinator."""
        return next(member for member in self.members if member.role == "coordinator")

    def member(self, name: str) -> Member:
        """Return the member of this name, revoked or not, or raise ConsortiumError."""
        for member in self.members:
            if member.name == name:
                return member
        known = ", ".join(member.name for member in self.members)
        raise ConsortiumError(f"{self.consortium}: expected a member, got {name!r}. Its members are {known}.")

    def witness(self, name: str) -> Member:
        """Return the witness of this name, or raise ConsortiumError."""
        member = self.member(name)
        if member.role != "witness" or member.revoked:
            state = "a revoked one" if member.revoked else "another role"
            raise ConsortiumError(f"{self.consortium}: expected {name!r} to be a witness, got {state}. Name another.")
        return member


def is_active(member: Member, now: float) -> bool:
    """Whether a member may take part at this unix time: neither revoked nor expired."""
    return not member.revoked and now < member.expires


def _refuse_repeated(what: str, values: Iterable[tuple[str, str]]) -> None:
    seen: dict[str, str] = {}
    for value, name in values:
        if value and value in seen:
            raise ValueError(f"members: expected a {what} for each, got one of {seen[value]} and {name} alike")
        seen[value] = name
