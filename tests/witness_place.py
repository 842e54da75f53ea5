"""A witness that really answers, for tests: two owners with their ledgers, and what they ask."""

import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from sample_consortium import SampleConsortium, make
from sample_ledgers import terms

from client.witness import Witness, cosigned_file
from common import witness_wire as wire
from common.consortium import keys
from common.consortium.identity import Identity
from common.ledger import Ledger
from common.transparency.entries import Audit
from common.transparency.notes import VerifierKey
from server.witness.service import Running, start
from server.witness.store import Store

HERE = "127.0.0.1"
EXAMPLE = Audit(sequence=0, time_ms=0, account="a", run="r", findings={"finding": "x"})
HEALTH = "/grpc.health.v1.Health/Check"
PROGRAM = (
    "import typer; from server.commands import witness; app = typer.Typer(); witness.mount(app);"
    "app(standalone_mode=False)"
)


@dataclass(frozen=True, kw_only=True)
class Place:
    """A consortium of two owners with their ledgers, and the witness that answers."""

    consortium: SampleConsortium
    running: Running

    @property
    def folder(self) -> Path:
        return self.own.folder

    @property
    def own(self) -> Identity:
        assert self.consortium.witness is not None
        return self.consortium.witness

    def witness(self, identity: Identity | None = None, *, address: str = "") -> Witness:
        """What an owner asks with."""
        roster = self.consortium.roster
        return Witness(
            address or self.running.address,
            name="witness",
            key=roster.witness("witness").key,
            identity=identity or self.consortium.owners[0],
            timeout_s=5,
        )

    @contextmanager
    def ledger(self, number: int = 0) -> Iterator[Ledger]:
        with closing(Ledger(self.consortium.ledgers[number])) as ledger:
            yield ledger


@contextmanager
def witnessed_place(consortium: SampleConsortium) -> Iterator[Place]:
    """Let the consortium's witness answer until the test is over."""
    running = started(consortium)
    try:
        yield Place(consortium=consortium, running=running)
    finally:
        running.stop(grace_s=0)


def two_owners(folder: Path, **named: Any) -> SampleConsortium:
    """A consortium of two owners who have ledgers."""
    return make(folder, owners=2, ledgers=True, **({"witness_address": f"{HERE}:9444"} | named))


def started(consortium: SampleConsortium) -> Running:
    own = consortium.witness
    assert own is not None
    return start(own, store=Store(own.folder / "witness.db"), host=HERE, port=0)


def grow(ledger: Ledger, entries: int = 1, *, text: str = "x") -> None:
    """Add entries, by hand and quickly."""
    ledger.open_accounts({"a": terms()})
    for _ in range(entries):
        ledger.audited("a", "r", {"finding": text})


def cosign(place: Place, number: int = 0) -> None:
    """Have an owner's ledger cosigned."""
    with place.ledger(number) as ledger, closing(place.witness(place.consortium.owners[number])) as witness:
        witness.cosign(ledger)


def kept(place: Place, number: int = 0) -> str:
    return cosigned_file(place.consortium.ledgers[number]).read_text()


def key_of(place: Place, number: int = 0) -> VerifierKey:
    return VerifierKey.parse(place.consortium.owners[number].request.ledger)


def copy(ledger: Path, name: str) -> Path:
    """Put a ledger's file away, as a backup does; what the witness said lies beside it, and is put away too."""
    for end in ("", ".cosigned"):
        source = ledger.with_name(ledger.name + end)
        if source.exists():
            shutil.copyfile(source, ledger.with_name(f"{name}{end}"))
    return ledger.with_name(name)


def bring_back(ledger: Path, name: str) -> None:
    """Put a backup in a ledger's place."""
    for end in ("", ".cosigned", "-wal", "-shm"):
        target, source = ledger.with_name(ledger.name + end), ledger.with_name(f"{name}{end}")
        target.unlink(missing_ok=True)
        if source.exists():
            shutil.copyfile(source, target)


def call(
    identity: Identity,
    address: str,
    method: str,
    data: bytes,
    *,
    authority: Identity | None = None,
    certificate: bytes | None = None,
    timeout: float | None = 5,
) -> bytes:
    """Call any method with any bytes."""
    credentials = grpc.ssl_channel_credentials(
        (authority or identity).authority.read_bytes(),
        keys.read_private(identity.tls_key),
        certificate or identity.tls_certificate.read_bytes(),
    )
    with grpc.secure_channel(address, credentials) as channel:
        answer: bytes = channel.unary_unary(method)(data, timeout=timeout)
        return answer


def refused(*args: Any, **named: Any) -> tuple[grpc.StatusCode, str]:
    """What a call is refused with."""
    with pytest.raises(grpc.RpcError) as caught:
        call(*args, **named)
    error: Any = caught.value
    return error.code(), error.details()


def latest(place: Place, number: int = 0) -> wire.Newest:
    with closing(place.witness()) as witness:
        return witness.latest(key_of(place, number))


def addition(place: Place, *, old_size: int = 0, **changes: Any) -> wire.Addition:
    """What the first owner would ask next."""
    with place.ledger() as ledger:
        extension = ledger.extension(old_size)
    return replace(wire.Addition(old_size=old_size, proof=extension.proof, note=extension.note), **changes)


def add(place: Place, asked: wire.Addition, number: int = 0) -> bytes:
    return call(place.consortium.owners[number], place.running.address, wire.ADD_CHECKPOINT, wire.encode(asked))


def add_refused(place: Place, asked: wire.Addition, number: int = 0) -> tuple[grpc.StatusCode, str]:
    owner = place.consortium.owners[number]
    return refused(owner, place.running.address, wire.ADD_CHECKPOINT, wire.encode(asked))


def restored(place: Place) -> Path:
    """A ledger that was seen with six entries, and is yesterday's copy of three again."""
    path = place.consortium.ledgers[0]
    with place.ledger() as ledger:
        grow(ledger, 2)
    cosign(place)
    copy(path, "backup")
    with place.ledger() as ledger:
        grow(ledger, 3)
    cosign(place)
    bring_back(path, "backup")
    return path
