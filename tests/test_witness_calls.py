"""What reaches a witness: who may ask, what may be asked, and the bytes of both."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace

import grpc
import pytest
from grpc_health.v1 import health_pb2
from sample_consortium import SampleConsortium, make
from witness_place import (
    HEALTH,
    HERE,
    Place,
    add,
    add_refused,
    addition,
    call,
    cosign,
    grow,
    key_of,
    refused,
    started,
    two_owners,
    witnessed_place,
)

from common import witness_wire as wire
from common.consortium import authority as authorities
from common.consortium import denials, keys
from common.errors import (
    ConsortiumError,
    WireError,
    WitnessDownError,
    WitnessError,
)
from common.transparency.export import read as read_export
from common.transparency.merkle import consistency_proof
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


# --- who may ask ------------------------------------------------------------------------------------------------------


def test_the_health_check_answers_serving(place):
    """To members, for the whole and for the service by its name."""
    owner = place.consortium.owners[0]
    for name in ("", wire.SERVICE):
        asked = health_pb2.HealthCheckRequest(service=name).SerializeToString()
        answer = health_pb2.HealthCheckResponse.FromString(call(owner, place.running.address, HEALTH, asked))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    unknown = health_pb2.HealthCheckRequest(service="other").SerializeToString()
    assert refused(owner, place.running.address, HEALTH, unknown)[0] is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    "method",
    [
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.health.v1.Health/Watch",
        f"/{wire.SERVICE}/Other",
    ],
)
def test_nothing_else_is_offered(place, method):
    """No reflection, no streams."""
    code, _ = refused(place.consortium.owners[0], place.running.address, method, b"")
    assert code is grpc.StatusCode.UNIMPLEMENTED


def test_any_member_may_read_and_only_the_owner_may_have_it_cosigned(place):
    """An auditor reads with its own certificate; a note of another's ledger is refused, whoever signed it."""
    with place.ledger() as ledger:
        grow(ledger)
    asked = addition(place)
    assert add_refused(place, asked, number=1)[0] is grpc.StatusCode.INVALID_ARGUMENT
    cosign(place)
    question = wire.encode(wire.Question(ledger=str(key_of(place))))
    for member in place.consortium.members:
        newest = wire.decode_newest(call(member, place.running.address, wire.LATEST, question))
        assert read(newest.note).size == 2
    coordinator = place.consortium.coordinator
    code, _ = refused(coordinator, place.running.address, wire.ADD_CHECKPOINT, wire.encode(asked))
    assert code is grpc.StatusCode.NOT_FOUND


def test_a_ledger_that_is_not_in_the_roster_is_unknown(place):
    """Nobody learns whether there is one."""
    question = wire.encode(wire.Question(ledger=str(Signer.new("discreet/ledger/00").key)))
    code, _ = refused(place.consortium.owners[0], place.running.address, wire.LATEST, question)
    assert code is grpc.StatusCode.NOT_FOUND


def test_a_stranger_s_certificate_does_not_get_through_tls(place, tmp_path):
    """Members of another consortium have the same names and another authority: the owner hears that nobody answers."""
    foreign = make(tmp_path / "foreign", owners=1).owners[0]
    question = wire.encode(wire.Question(ledger=str(key_of(place))))
    code, _ = refused(foreign, place.running.address, wire.LATEST, question, authority=place.own)
    assert code is grpc.StatusCode.UNAVAILABLE


def test_no_certificate_does_not_get_through_tls(place):
    """TLS asks for one before anything is said."""
    credentials = grpc.ssl_channel_credentials(place.own.authority.read_bytes())
    with grpc.secure_channel(place.running.address, credentials) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(wire.LATEST)(b"", timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_without_tls_nothing_is_said(place):
    """A plain connection is closed."""
    with grpc.insecure_channel(place.running.address) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(wire.LATEST)(b"", timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_witness_of_another_consortium_is_not_believed(place, tmp_path):
    """The owner's own authority did not sign its certificate."""
    foreign = make(tmp_path / "foreign", owners=1, ledgers=True).owners[0]
    with closing(place.witness(foreign)) as witness, pytest.raises(WitnessDownError):
        witness.latest(key_of(place))


def test_an_expired_certificate_is_refused_on_both_sides(tmp_path):
    """The owner is told to renew it before anything is sent; the witness's TLS does not let it through."""
    consortium = make(tmp_path, owners=2, ledgers=True, witness_address=f"{HERE}:9444", expired={"owner-0"})
    place = Place(consortium=consortium, running=started(consortium))
    try:
        with place.ledger() as ledger:
            grow(ledger)
        with pytest.raises(WitnessError, match="has expired"):
            cosign(place)
        question = wire.encode(wire.Question(ledger=str(key_of(place))))
        assert refused(consortium.owners[0], place.running.address, wire.LATEST, question)[0] in {
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.PERMISSION_DENIED,
        }
    finally:
        place.running.stop(grace_s=0)


def test_a_revoked_member_is_turned_away_at_once(place):
    """The coordinator's list of the denied is looked at with every call; the others go on."""
    with place.ledger() as ledger:
        grow(ledger)
    cosign(place)
    roster, coordinator = place.consortium.roster, place.consortium.coordinator
    denials.deny(place.folder / "denied.json", roster, ["owner-0"], coordinator.signer)
    with place.ledger() as ledger:
        grow(ledger)
    with pytest.raises(WitnessError, match="PERMISSION_DENIED") as caught:
        cosign(place)
    assert not isinstance(caught.value, WitnessDownError)
    with place.ledger(1) as ledger:
        grow(ledger)
    cosign(place, 1)


def test_a_certificate_that_the_roster_does_not_name_is_turned_away(place):
    """The authority signed it, for the right name; it is not the one that all members signed for."""
    owner, folder = place.consortium.owners[0], place.consortium.folder
    authority = authorities.load_authority(folder.path / "ca.crt", folder.path / "ca.key")
    other = authorities.issue_member(authority, owner.request.csr, name=owner.name)
    question = wire.encode(wire.Question(ledger=str(key_of(place))))
    code, _ = refused(owner, place.running.address, wire.LATEST, question, certificate=other)
    assert code is grpc.StatusCode.PERMISSION_DENIED


def test_while_the_roster_does_not_read_nobody_may_ask(place):
    """A witness that goes on with what it knew might let a revoked member in; when it reads again, all is well."""
    content = place.own.roster.read_bytes()
    place.own.roster.write_bytes(content[:-5])
    with place.ledger() as ledger:
        grow(ledger)
    with pytest.raises(WitnessDownError, match="cannot answer now"):
        cosign(place)
    place.own.roster.write_bytes(content)
    cosign(place)


def test_an_owner_is_no_witness(place, tmp_path):
    """The verb refuses another's identity."""
    store = Store(tmp_path / "w.db")
    with closing(store), pytest.raises(ConsortiumError, match="expected the identity of a witness"):
        start(place.consortium.owners[0], store=store, host=HERE, port=0)


def test_a_port_that_is_taken_is_refused(place, tmp_path):
    """Two witnesses on one port would each hear half of the calls."""
    store = Store(tmp_path / "w.db")
    port = int(place.running.address.rpartition(":")[2])
    with closing(store), pytest.raises(WitnessError, match="cannot listen"):
        start(place.own, store=store, host=HERE, port=port)


# --- what is asked ----------------------------------------------------------------------------------------------------


def test_a_message_that_is_too_large_is_refused_unread(place):
    """More than a mebibyte is nobody's checkpoint."""
    code, _ = refused(
        place.consortium.owners[0], place.running.address, wire.ADD_CHECKPOINT, b"x" * (wire.LARGEST_MESSAGE + 1)
    )
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("timeout", [None, 3_600])
def test_a_call_without_an_end_is_refused(place, timeout):
    """Who waits for ever holds what others need."""
    question = wire.encode(wire.Question(ledger=str(key_of(place))))
    owner = place.consortium.owners[0]
    code, details = refused(owner, place.running.address, wire.LATEST, question, timeout=timeout)
    assert (code, details) == (grpc.StatusCode.INVALID_ARGUMENT, "deadline: at most 60 s")


def test_calls_that_say_nothing_hold_the_witness_no_longer_than_their_deadline(place):
    """A member that opens calls and sends no message cannot keep the others out."""
    owner = place.consortium.owners[0]
    credentials = grpc.ssl_channel_credentials(
        owner.authority.read_bytes(), keys.read_private(owner.tls_key), owner.tls_certificate.read_bytes()
    )
    with place.ledger(1) as ledger:
        grow(ledger)
    with grpc.secure_channel(place.running.address, credentials) as channel:
        ends = [channel.stream_unary(wire.LATEST).future(_silent(2), timeout=1.0) for _ in range(8)]
        time.sleep(1.2)
        cosign(place, 1)
        assert all(end.code() is not grpc.StatusCode.OK for end in ends)


def _silent(seconds: float) -> Iterator[bytes]:
    time.sleep(seconds)
    yield from ()


BAD: list[tuple[str, Callable[[wire.Addition], bytes]]] = [
    ("nothing", lambda asked: b""),
    ("no JSON", lambda asked: b"\xff"),
    ("not canonical", lambda asked: wire.encode(asked) + b" "),
    ("a list", lambda asked: b"[]"),
    ("a field more", lambda asked: wire.encode(asked)[:-1] + b',"x":1}'),
    ("deep", lambda asked: b"[" * 100_000),
    ("negative size", lambda asked: wire.encode(replace(asked, old_size=-1))),
    ("size beyond the note", lambda asked: wire.encode(replace(asked, old_size=9))),
    ("no note", lambda asked: wire.encode(replace(asked, note=""))),
    ("long note", lambda asked: wire.encode(replace(asked, note="x" * 20_000))),
    ("forged note", lambda asked: wire.encode(replace(asked, note=asked.note.replace("\n2\n", "\n3\n")))),
    ("two signatures", lambda asked: wire.encode(replace(asked, note=asked.note + asked.note.split("\n\n")[1]))),
    ("short hash", lambda asked: wire.encode(replace(asked, proof=(b"x",)))),
    ("many hashes", lambda asked: wire.encode(replace(asked, proof=(bytes(32),) * 64))),
]  # fmt: skip


@pytest.mark.parametrize("spoil", [spoil for _, spoil in BAD], ids=[name for name, _ in BAD])
def test_what_does_not_decode_is_refused_in_words_of_ours(place, spoil):
    """No exception's text leaves, nothing is cosigned, and the witness goes on."""
    with place.ledger() as ledger:
        grow(ledger)
    data = spoil(addition(place))
    code, details = refused(place.consortium.owners[0], place.running.address, wire.ADD_CHECKPOINT, data)
    assert (code, details) == (grpc.StatusCode.INVALID_ARGUMENT, "malformed, or not signed by the ledger")
    cosign(place)


def test_a_wrong_old_size_is_answered_with_the_right_one(place):
    """C2SP: 409 and the size; here FAILED_PRECONDITION and the same."""
    with place.ledger() as ledger:
        grow(ledger, 4)
    cosign(place)
    with place.ledger() as ledger:
        grow(ledger)
    code, details = add_refused(place, addition(place, old_size=3))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert wire.decode_conflict(details.encode()) == wire.Conflict(word="conflict", size=5)


def test_a_proof_that_shows_nothing_is_refused(place):
    """A hash more, one less, one flipped."""
    with place.ledger() as ledger:
        grow(ledger, 4)
    cosign(place)
    with place.ledger() as ledger:
        grow(ledger, 4)
    asked = addition(place, old_size=5)
    for proof in (asked.proof[:-1], (*asked.proof, bytes(32)), (bytes(32), *asked.proof[1:]), ()):
        code, details = add_refused(place, replace(asked, proof=proof))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert wire.decode_conflict(details.encode()).word == "fork"
    assert wire.decode_cosigning(add(place, asked)).line
    leaves = read_export(place.consortium.ledgers[0]).leaves
    assert asked.proof == consistency_proof(leaves, 5)


# --- the bytes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "decode"),
    [
        (wire.Addition(old_size=3, proof=(bytes(32), b"\xff" * 32), note="n"), wire.decode_addition),
        (wire.Cosigning(line="— w x\n"), wire.decode_cosigning),
        (wire.Conflict(word="fork", size=3), wire.decode_conflict),
        (wire.Conflict(word="conflict", size=0), wire.decode_conflict),
        (wire.Question(ledger="k"), wire.decode_question),
        (wire.Newest(note="", forks=("a", "b")), wire.decode_newest),
    ],
    ids=lambda value: type(value).__name__ if not callable(value) else "",
)
def test_every_message_comes_back(message, decode):
    """Writing and reading loses nothing, and nothing else reads as the same."""
    data = wire.encode(message)
    assert decode(data) == message
    for spoilt in (
        data[:-1],
        data + b"\n",
        b"{}",
        data.replace(b'{"', b'{"x":1,"', 1),
        b"x" * (wire.LARGEST_MESSAGE + 1),
    ):
        with pytest.raises(WireError):
            decode(spoilt)


def test_a_message_says_this(place):
    """The bytes are pinned: witnesses and owners of different versions understand each other."""
    message = wire.Addition(old_size=1, proof=(bytes(32),), note="n\n")
    assert wire.encode(message) == b'{"note":"n\\n","old_size":1,"proof":["' + b"00" * 32 + b'"]}'
    assert wire.encode(wire.Newest(note="n", forks=("f",))) == b'{"forks":["f"],"note":"n"}'
    assert wire.ADD_CHECKPOINT == "/discreet.witness.v1.Witness/AddCheckpoint"


def test_the_private_keys_of_the_tests_stay_private(place):
    """The witness refuses a TLS key that others may read."""
    os.chmod(place.own.tls_key, 0o644)  # noqa: PTH101
    store = Store(place.folder / "other.db")
    with closing(store), pytest.raises(ConsortiumError, match="only its owner may read"):
        start(place.own, store=store, host=HERE, port=0)
