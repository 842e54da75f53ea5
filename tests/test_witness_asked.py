"""What those learn who ask a witness: an owner whose witness is not there or lies, and an auditor."""

import json
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest
import typer
from sample_consortium import SampleConsortium, make
from typer.testing import CliRunner
from witness_place import (
    HERE,
    Place,
    bring_back,
    copy,
    cosign,
    grow,
    key_of,
    started,
    two_owners,
    witnessed_place,
)

from client import auditing
from client.commands import witnessed as witnessed_verb
from client.witness import Witness, cosigned_file
from common.errors import (
    ConsortiumError,
    ForkedError,
    LedgerError,
    RolledBackError,
    WitnessDownError,
    WitnessError,
)
from common.ledger import Ledger
from common.transparency.export import write as write_export
from common.transparency.notes import Signer, read
from server.witness.service import start
from server.witness.store import Store


@pytest.fixture
def consortium(tmp_path) -> SampleConsortium:
    return two_owners(tmp_path)


@pytest.fixture
def place(consortium) -> Iterator[Place]:
    with witnessed_place(consortium) as place:
        yield place


# --- a witness that is not there, or lies -----------------------------------------------------------------------------


def test_a_witness_that_is_not_there_is_down(place):
    """Nobody listens: said at once."""
    with socket.socket() as taken:
        taken.bind((HERE, 0))
        address = f"{HERE}:{taken.getsockname()[1]}"
        with (
            closing(place.witness(address=address)) as witness,
            pytest.raises(WitnessDownError, match="does not answer"),
        ):
            witness.latest(key_of(place))


def test_a_witness_that_says_nothing_is_down_after_the_deadline(place):
    """A network that was cut: the call ends all the same."""
    with socket.create_server((HERE, 0)) as silent, place.ledger() as ledger:
        address = f"{HERE}:{silent.getsockname()[1]}"
        witness = Witness(
            address, name="witness", key=place.own.signer.key, identity=place.consortium.owners[0], timeout_s=0.5
        )
        before = time.monotonic()
        with closing(witness), pytest.raises(WitnessDownError):
            witness.cosign(ledger)
        assert time.monotonic() - before < 5


def test_a_witness_that_comes_back_is_asked_over_the_same_channel(consortium):
    """A restart of the witness costs the owner one refusal, or a moment, and no restart of its own."""
    first = started(consortium)
    place = Place(consortium=consortium, running=first)
    port = int(first.address.rpartition(":")[2])
    with place.ledger() as ledger, closing(place.witness()) as witness:
        grow(ledger)
        witness.cosign(ledger)
        first.stop(grace_s=0)
        with pytest.raises(WitnessDownError):
            witness.cosign(ledger)
        own = consortium.witness
        assert own is not None
        second = start(own, store=Store(own.folder / "witness.db"), host=HERE, port=port)
        try:
            for _ in range(50):
                try:
                    witness.cosign(ledger)
                    break
                except WitnessDownError:
                    time.sleep(0.1)
            else:
                pytest.fail("it was not asked again")
        finally:
            second.stop(grace_s=0)


def test_a_cosignature_of_another_key_does_not_count(place):
    """Whoever answers in the witness's place has no key that the roster names."""
    other = Witness(
        place.running.address, name="witness", key=Signer.new("witness").key, identity=place.consortium.owners[0]
    )
    with place.ledger() as ledger:
        grow(ledger)
        with closing(other), pytest.raises(WitnessError, match="cosignature is not right"):
            other.cosign(ledger)
    assert not cosigned_file(place.consortium.ledgers[0]).exists()


def test_a_witness_s_word_for_a_rollback_is_not_enough(place):
    """A checkpoint that the ledger did not sign is no reason to call it restored."""
    with closing(sqlite3.connect(place.folder / "witness.db")) as db:
        note = Signer.new(key_of(place).name).sign(replace(read(_any_note()), origin=key_of(place).name, size=99))
        db.execute("INSERT INTO checkpoints VALUES (?, 99, ?)", (str(key_of(place)), note))
        db.commit()
    with place.ledger() as ledger:
        grow(ledger)
    with pytest.raises(WitnessError, match="a checkpoint that is not right") as caught:
        cosign(place)
    assert not isinstance(caught.value, RolledBackError)


def _any_note() -> str:
    signer = Signer.new("x")
    return signer.sign(replace(read("x\n1\n" + "A" * 43 + "=\n\n— x AAAAAAAA\n"), origin="x"))


def test_the_witness_of_a_roster_is_found_by_its_name(place):
    """With the address and the key that all members signed; an owner's name is no witness's."""
    roster, owner = place.consortium.roster, place.consortium.owners[0]
    witness = Witness.listed("witness", roster=roster, identity=owner)
    assert (witness.name, witness.address) == ("witness", f"{HERE}:9444")
    with pytest.raises(ConsortiumError, match="to be a witness"):
        Witness.listed("owner-1", roster=roster, identity=owner)


# --- what an auditor asks ---------------------------------------------------------------------------------------------


@pytest.fixture
def audited(tmp_path) -> Iterator[Place]:
    """A consortium whose roster names the address where the witness really listens."""
    with socket.socket() as free:
        free.bind((HERE, 0))
        port = free.getsockname()[1]
    consortium = make(tmp_path, owners=2, ledgers=True, witness_address=f"{HERE}:{port}")
    own = consortium.witness
    assert own is not None
    running = start(own, store=Store(own.folder / "witness.db"), host=HERE, port=port)
    yield Place(consortium=consortium, running=running)
    running.stop(grace_s=0)


def test_an_auditor_compares_a_copy_with_what_was_cosigned(audited):
    """Another member, with the ledger or an export: equal, longer, an older copy, another past."""
    path, auditor = audited.consortium.ledgers[0], audited.consortium.owners[1].folder
    with audited.ledger() as ledger:
        grow(ledger, 2)
    with pytest.raises(LedgerError, match="has cosigned nothing"):
        auditing.witnessed(path, identity=auditor, witness="")
    older = copy(path, "older")
    with audited.ledger() as ledger:
        grow(ledger)
    cosign(audited)
    table = auditing.witnessed(path, identity=auditor, witness="witness")
    assert (table["owner"], table["size"], table["cosigned_size"], table["forks"]) == ("owner-0", 4, 4, [])
    with audited.ledger() as ledger:
        grow(ledger)
    export = path.with_name("export.jsonl")
    write_export(path, export)
    said = " ".join(auditing.in_words(auditing.witnessed(export, identity=auditor, witness="")))
    assert "cosigned 4 entries of owner-0's ledger at " in said
    assert "begins with them, which 1 entries follow" in said
    assert "never shown another past" in said
    with pytest.raises(LedgerError, match="rolled back"):
        auditing.witnessed(older, identity=auditor, witness="")


def test_an_auditor_is_told_of_forks(audited):
    """The right copy is right, and the witness has seen another; that other is no extension."""
    path, auditor = audited.consortium.ledgers[0], audited.consortium.owners[1].folder
    with audited.ledger() as ledger:
        grow(ledger, 2)
    copy(path, "backup")
    with audited.ledger() as ledger:
        grow(ledger)
    cosign(audited)
    right = copy(path, "right")
    bring_back(path, "backup")
    with audited.ledger() as ledger:
        grow(ledger, text="other")
    with pytest.raises(ForkedError):
        cosign(audited)
    with pytest.raises(LedgerError, match="forked"):
        auditing.witnessed(path, identity=auditor, witness="")
    said = auditing.in_words(auditing.witnessed(right, identity=auditor, witness=""))
    assert said[-1] == "It was shown 1 other pasts of this ledger: ask owner-0 why."


def test_a_stranger_s_ledger_is_no_member_s(audited, tmp_path):
    """An auditor is told that the roster does not name it."""
    with closing(Ledger.create(tmp_path / "other.db")) as ledger:
        grow(ledger)
    with pytest.raises(LedgerError, match="no member's ledger"):
        auditing.witnessed(tmp_path / "other.db", identity=audited.consortium.owners[1].folder, witness="")


def test_the_auditor_s_verb_prints_what_was_found(audited):
    """As JSON for scripts, as sentences for people."""
    with audited.ledger() as ledger:
        grow(ledger)
    cosign(audited)
    app = typer.Typer()
    witnessed_verb.mount(app)
    asked = [str(audited.consortium.ledgers[0]), "--identity", str(audited.consortium.owners[1].folder)]
    result = CliRunner().invoke(app, [*asked, "--json"])
    assert json.loads(result.stdout)["cosigned_size"] == 2
    assert "Witness witness cosigned 2 entries" in CliRunner().invoke(app, asked).stdout


def test_the_verbs_import_no_grpc_until_they_are_called():
    """`discreet --help` answers at once."""
    program = (
        "import sys, typer; from client.commands import witnessed; from server.commands import witness;"
        "app = typer.Typer(); witness.mount(app); witnessed.mount(app); sys.exit('grpc' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
