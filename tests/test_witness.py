"""A witness on a real socket under mutual TLS: it cosigns what only ever grew, and tells what did not."""

import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from sample_consortium import SampleConsortium
from witness_place import (
    EXAMPLE,
    HERE,
    PROGRAM,
    Place,
    add,
    add_refused,
    addition,
    bring_back,
    copy,
    cosign,
    grow,
    kept,
    key_of,
    latest,
    restored,
    started,
    two_owners,
    witnessed_place,
)

from client.witness import cosigned_file
from common import witness_wire as wire
from common.errors import (
    ForkedError,
    LedgerError,
    RolledBackError,
    WitnessDownError,
    WitnessError,
)
from common.ledger import Ledger
from common.transparency.cosignatures import CosignerKey, verify_cosigned
from common.transparency.cosignatures import cosign as make_line
from common.transparency.export import read as read_export
from common.transparency.notes import Checkpoint, Signer, read, verify
from common.transparency.verification import verify as verify_ledger
from server.witness.service import Running
from server.witness.store import Store


@pytest.fixture
def consortium(tmp_path) -> SampleConsortium:
    return two_owners(tmp_path)


@pytest.fixture
def place(consortium) -> Iterator[Place]:
    with witnessed_place(consortium) as place:
        yield place


# --- a ledger that grows ----------------------------------------------------------------------------------------------


def test_a_ledger_that_grows_is_cosigned_each_time(place):
    """From its first entry on; the cosigned note beside the ledger is the newest, signed by both."""
    before = time.time()
    for entries in (1, 1, 5, 0):
        with place.ledger() as ledger:
            grow(ledger, entries)
            size, key = ledger.books.size, ledger.key
        cosign(place)
        cosigned = verify_cosigned(kept(place), CosignerKey(key=place.own.signer.key))
        assert (cosigned.checkpoint.size, verify(kept(place), key)) == (size, cosigned.checkpoint)
        assert before - 1 <= cosigned.time_s <= time.time() + 1


def test_a_ledger_as_it_was_is_cosigned_again(place):
    """A node that starts anew asks before it charges: nothing was added, and there is a newer cosignature."""
    with place.ledger() as ledger:
        grow(ledger)
    first, again = (wire.decode_cosigning(add(place, addition(place, old_size=size))) for size in (0, 2))
    assert first.line != ""
    assert again.line.startswith("— witness ")
    assert read(latest(place).note).size == 2


def test_an_empty_ledger_has_nothing_to_cosign(place):
    """Before the first entry nothing was signed."""
    cosign(place)
    assert not cosigned_file(place.consortium.ledgers[0]).exists()


def test_two_owners_have_one_memory_each(place):
    """What one owner's ledger is does not touch the other's."""
    for number, entries in ((0, 3), (1, 7)):
        with place.ledger(number) as ledger:
            grow(ledger, entries)
        cosign(place, number)
    assert [read(latest(place, number).note).size for number in (0, 1)] == [4, 8]


def test_an_owner_whose_note_was_lost_asks_the_witness_for_it(place):
    """Without the file beside the ledger, the witness says where it stands."""
    with place.ledger() as ledger:
        grow(ledger)
    cosign(place)
    cosigned_file(place.consortium.ledgers[0]).write_text("rubbish")
    with place.ledger() as ledger:
        grow(ledger)
    cosign(place)
    assert read(kept(place)).size == 3


def test_what_another_process_had_cosigned_meanwhile_is_no_conflict(place):
    """Two processes of one owner share the ledger; the second knows an older size than the witness."""
    with place.ledger() as ledger:
        grow(ledger)
    cosign(place)
    old = kept(place)
    with place.ledger() as ledger:
        grow(ledger)
    cosign(place)
    cosigned_file(place.consortium.ledgers[0]).write_text(old)
    with place.ledger() as ledger:
        grow(ledger)
    cosign(place)
    assert read(kept(place)).size == 4


def test_a_cosigned_note_serves_as_the_earlier_checkpoint_of_a_verification(place):
    """`discreet ledger verify --extends` takes it: an export of an older copy does not extend it."""
    ledger_file = place.consortium.ledgers[0]
    with place.ledger() as ledger:
        grow(ledger)
    older = copy(ledger_file, "older.db")
    with place.ledger() as ledger:
        grow(ledger)
    cosign(place)
    verify_ledger(read_export(ledger_file), extends=kept(place))
    with pytest.raises(LedgerError, match="rolled back"):
        verify_ledger(read_export(older), extends=kept(place))


def test_an_extension_is_asked_of_what_there_is(place):
    """Of an empty ledger there is nothing to show, and of three entries no four."""
    with place.ledger() as ledger:
        with pytest.raises(LedgerError, match="the ledger is empty"):
            ledger.extension(0)
        grow(ledger, 2)
        assert (ledger.extension(0).proof, ledger.extension(3).proof) == ((), ())
        with pytest.raises(RolledBackError, match="it has 3 entries and was seen with 4"):
            ledger.extension(4)


def test_the_proof_of_ten_thousand_entries_is_quick(place):
    """An order waits for it: less than a tenth of a second."""
    with place.ledger() as ledger:
        grow(ledger)
        with ledger._log.writing() as write:
            for _ in range(10_000):
                write(lambda sequence, time_ms: replace(EXAMPLE, sequence=sequence, time_ms=time_ms))
        times = []
        for old_size in (2, 5_000, 10_001):
            start_s = time.perf_counter()
            proof = ledger.extension(old_size).proof
            times.append(time.perf_counter() - start_s)
            assert len(proof) <= wire.LARGEST_PROOF
        assert min(times) < 0.1
    cosign(place)


# --- ledgers that were restored, or forked ----------------------------------------------------------------------------


def test_a_ledger_restored_from_yesterday_is_refused(place):
    """Also where what the witness said was restored with it; nothing is written to the ledger."""
    path = restored(place)
    assert read(kept(place)).size == 3
    before = path.read_bytes()
    with pytest.raises(RolledBackError, match=r"it has 3 entries and was seen with 6: this is an older copy"):
        cosign(place)
    assert path.read_bytes() == before


def test_a_ledger_restored_to_nothing_is_refused(place):
    """An empty ledger with the same keys is the oldest copy there is."""
    path = place.consortium.ledgers[0]
    copy(path, "backup")
    with place.ledger() as ledger:
        grow(ledger)
    cosign(place)
    bring_back(path, "backup")
    with pytest.raises(RolledBackError, match="it has 0 entries and was seen with 2"):
        cosign(place)


@pytest.mark.parametrize("entries", [3, 4, 9], ids=lambda entries: f"{entries + 3} entries")
def test_a_restored_ledger_that_went_on_is_a_fork(place, entries):
    """As long as what was seen, or longer: the witness notes the fork, and shows it to whoever asks."""
    restored(place)
    with place.ledger() as ledger:
        grow(ledger, entries, text="other")
        note = ledger.checkpoint
    with pytest.raises(ForkedError, match="6 entries of another past"):
        cosign(place)
    assert latest(place).forks == (note,)
    assert read(latest(place).note).size == 6


def test_a_restored_ledger_that_went_on_a_little_is_refused(place):
    """Still shorter than what was seen, it is an older copy, whatever it says since."""
    restored(place)
    with place.ledger() as ledger:
        grow(ledger, 1, text="other")
    with pytest.raises(RolledBackError, match="it has 4 entries and was seen with 6"):
        cosign(place)


def test_the_right_copy_goes_on_after_a_fork(place):
    """The fork stays noted for ever; the ledger that was cosigned is still the owner's."""
    path = place.consortium.ledgers[0]
    with place.ledger() as ledger:
        grow(ledger, 2)
    copy(path, "backup")
    with place.ledger() as ledger:
        grow(ledger, 1)
    cosign(place)
    copy(path, "right")
    bring_back(path, "backup")
    with place.ledger() as ledger:
        grow(ledger, 1, text="other")
    with pytest.raises(ForkedError, match=r"forked, or an older copy was restored and went on"):
        cosign(place)
    bring_back(path, "right")
    with place.ledger() as ledger:
        grow(ledger, 1)
    cosign(place)
    assert read(latest(place).note).size == 5
    assert len(latest(place).forks) == 1


def test_forks_fill_no_disk(place):
    """A few prove it as well as many."""
    with place.ledger() as ledger:
        grow(ledger, 2)
    cosign(place)
    signer = Signer.from_pem(key_of(place).name, place.consortium.ledgers[0].with_name("owner-0.db.key").read_bytes())
    for number in range(wire.MOST_FORKS + 3):
        note = signer.sign(replace(read(kept(place)), root=bytes([number]) * 32))
        code, details = add_refused(place, wire.Addition(old_size=3, proof=(), note=note))
        assert (code, wire.decode_conflict(details.encode()).word) == (grpc.StatusCode.FAILED_PRECONDITION, "fork")
    assert len(latest(place).forks) == wire.MOST_FORKS


# --- the witness's memory ---------------------------------------------------------------------------------------------


def test_a_restarted_witness_remembers(consortium, tmp_path):
    """Killed with -9 as soon as the cosignature is out, it knows the size and refuses the older copy."""
    process, address = spawned(consortium)
    try:
        running = Place(consortium=consortium, running=Running(address=address, server=None, store=None))  # type: ignore[arg-type]
        path = restored(running)
    finally:
        process.kill()
        process.wait()
    process, address = spawned(consortium)
    try:
        again = Place(consortium=consortium, running=Running(address=address, server=None, store=None))  # type: ignore[arg-type]
        with pytest.raises(RolledBackError):
            cosign(again)
        assert read(latest(again).note).size == 6
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0
    finally:
        process.kill()
        process.wait()
    assert path.exists()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=lambda version: version.name)
def test_the_process_speaks_tls_1_3_alone(consortium, version):
    """As the link does; and it offers HTTP/2."""
    process, address = spawned(consortium)
    owner = consortium.owners[0]
    context = ssl.create_default_context(cafile=str(owner.authority))
    context.load_cert_chain(owner.tls_certificate, owner.tls_key)
    context.set_alpn_protocols(["h2"])
    context.maximum_version = version
    try:
        with socket.create_connection((HERE, int(address.rpartition(":")[2]))) as plain:
            if version is ssl.TLSVersion.TLSv1_2:
                with pytest.raises(OSError, match=r"EOF|HANDSHAKE|reset"):
                    context.wrap_socket(plain, server_hostname=HERE)
            else:
                with context.wrap_socket(plain, server_hostname=HERE) as wrapped:
                    assert (wrapped.version(), wrapped.selected_alpn_protocol()) == ("TLSv1.3", "h2")
    finally:
        process.kill()
        process.wait()


def spawned(consortium: SampleConsortium) -> tuple[subprocess.Popen[str], str]:
    """The real process, when it says that it is ready."""
    own = consortium.witness
    assert own is not None
    command = [sys.executable, "-c", PROGRAM, str(own.folder), "--listen", f"{HERE}:0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    assert process.stdout is not None
    line = process.stdout.readline()
    process.stdout.close()
    assert line.startswith("ready: witness witness on 127.0.0.1:"), line
    return process, line.split()[-1]


def test_a_witness_that_lost_its_memory_begins_anew_and_the_owner_is_warned(consortium, caplog):
    """The owner knows better than the witness; it has the whole ledger cosigned again."""
    first = started(consortium)
    with closing(Ledger(consortium.ledgers[0])) as ledger:
        grow(ledger)
    cosign(Place(consortium=consortium, running=first))
    first.stop(grace_s=0)
    for file in consortium.witness.folder.glob("witness.db*"):
        file.unlink()
    second = started(consortium)
    try:
        cosign(Place(consortium=consortium, running=second))
    finally:
        second.stop(grace_s=0)
    assert "has cosigned 2 entries and knows of 0" in caplog.text


def test_nothing_is_forgotten(place):
    """The file's own triggers refuse what would take something back."""
    with place.ledger() as ledger:
        grow(ledger)
    cosign(place)
    with closing(sqlite3.connect(place.folder / "witness.db")) as db:
        for statement in ("DELETE FROM checkpoints", "UPDATE checkpoints SET size = 1", "DELETE FROM forks"):
            if "forks" in statement:
                db.execute("INSERT INTO forks VALUES ('x', 'y')")
            with pytest.raises(sqlite3.IntegrityError, match="forgets nothing"):
                db.execute(statement)


def test_no_cosignature_leaves_when_the_memory_cannot_be_written(place):
    """Another process holds the file's lock: the owner hears that the witness is down, and has no cosignature."""
    with place.ledger() as ledger:
        grow(ledger)
    with closing(sqlite3.connect(place.folder / "witness.db", isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(WitnessDownError):
            cosign(place)
        db.execute("ROLLBACK")
    assert not cosigned_file(place.consortium.ledgers[0]).exists()
    assert latest(place).note == ""


def test_two_processes_on_one_memory_cosign_no_fork(place, tmp_path):
    """Whoever is second finds what the first has written: of two pasts one is cosigned."""
    signer = Signer.new("discreet/ledger/00")
    notes = [signer.sign(Checkpoint(origin=signer.key.name, size=1, root=bytes([number]) * 32)) for number in (1, 2)]

    def cosigner(note: str) -> str:
        return make_line(note, place.own.signer, time_s=1)

    with closing(Store(tmp_path / "w.db")) as one, closing(Store(tmp_path / "w.db")) as other:
        first = one.add(signer.key, wire.Addition(old_size=0, proof=(), note=notes[0]), cosigner)
        second = other.add(signer.key, wire.Addition(old_size=0, proof=(), note=notes[1]), cosigner)
        assert isinstance(first, str)
        assert second == wire.Conflict(word="fork", size=1)
        assert other.newest(str(signer.key)).forks == (notes[1],)


def test_a_failure_of_the_witness_says_nothing_of_it(place):
    """Its memory is gone while it runs: one word of ours leaves, and no exception's text."""
    with place.ledger() as ledger:
        grow(ledger)
    asked = addition(place)
    place.running.store._db.execute("DROP TABLE checkpoints")
    assert add_refused(place, asked) == (grpc.StatusCode.UNAVAILABLE, "the witness cannot answer now")
    place.running.store._db = None  # type: ignore[assignment]
    assert add_refused(place, asked) == (grpc.StatusCode.INTERNAL, "the witness failed")
    place.running.store._db = sqlite3.connect(":memory:")


def test_without_its_certificates_an_owner_cannot_ask(place):
    """Said by the file that is missing; the ledger is not cosigned."""
    place.consortium.owners[0].tls_certificate.unlink()
    with place.ledger() as ledger:
        grow(ledger)
    with pytest.raises(WitnessError, match=r"cannot be asked: .*tls\.crt"):
        cosign(place)


@pytest.mark.parametrize("content", [b"rubbish", b"SQLite format 3\0"])
def test_a_file_that_is_no_memory_is_refused(tmp_path, content):
    """A witness never begins anew on somebody else's file."""
    (tmp_path / "w.db").write_bytes(content)
    with pytest.raises(WitnessError):
        Store(tmp_path / "w.db")
    assert (tmp_path / "w.db").read_bytes() == content


def test_a_ledger_is_no_memory(place):
    """Nor is it changed."""
    path = place.consortium.ledgers[1]
    before = path.read_bytes()
    with pytest.raises(WitnessError, match="expected a witness's memory"):
        Store(path)
    assert path.read_bytes() == before
