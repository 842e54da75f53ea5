"""The calls to a link over real TLS: every failure is one of ours."""

import socket
import ssl
import threading
import time
from contextlib import closing

import numpy as np
import pytest
import sample_consortium
from fake_link import NODE, FakeLink, FakeRun
from flwr.app import MetricRecord
from flwr.supercore.inflatable import inflatable_object
from flwr.supercore.protobuf.client import ProtobufClient
from flwr.supernode.fleet_http_client import FleetHttpClient

from client.node.fleet import Fleet
from client.node.letters import Reply
from client.node.link_errors import (
    CertificateRefusedError,
    ClockRefusedError,
    KeyRefusedError,
    RejectedError,
    RunOverError,
    UnreachableError,
    VersionRefusedError,
)
from common import letters
from common.consortium import certificates
from common.errors import WireError


@pytest.fixture(scope="module")
def consortium(tmp_path_factory):
    return sample_consortium.make(tmp_path_factory.mktemp("consortium"), owners=1, witness=False)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    return sample_consortium.make(tmp_path_factory.mktemp("foreign"), owners=1, witness=False)


@pytest.fixture
def link(consortium):
    with closing(FakeLink(consortium)) as opened:
        yield opened


def fleet_of(consortium, address):
    owner = consortium.owners[0]
    return Fleet(address, key=owner.node_key, context=certificates.client_context(owner.authority))


@pytest.fixture
def fleet(consortium, link):
    with closing(fleet_of(consortium, link.address)) as opened:
        yield opened


def content():
    order = {"run": "r", "round": 1, "part": 1.5, "yes": True, "raw": b"\0"}
    return letters.letter({"order": order}, {"weights": np.arange(3, dtype="<f4").tobytes()})


def test_flower_has_what_the_adapter_needs():
    """A new version that moved any of it is noticed here, and not at a hospital."""
    assert set(FleetHttpClient.__init__.__annotations__ | ProtobufClient.__init__.__annotations__) >= {
        *("base_url", "interceptors", "verify", "timeout"),
    }
    for name in (
        *("ActivateNode", "DeactivateNode", "SendNodeHeartbeat", "PullMessages", "PushMessages", "GetRun", "GetFab"),
        *("PushObject", "PullObject", "ConfirmMessageReceived"),
    ):
        assert callable(getattr(FleetHttpClient, name))
    assert callable(inflatable_object.no_object_id_recompute)


def test_a_message_comes_whole_and_its_answer_goes_back(link, fleet):
    """Scalars keep their types, arrays their bytes; the answer is the one that was sent."""
    assert fleet.activate() == NODE
    assert fleet.pull() is None
    name = link.send(content(), run=2**64 - 1)
    envelope = fleet.pull()
    assert (envelope.id, envelope.flower_run) == (name, 2**64 - 1)
    letter = fleet.letter(envelope, stop=threading.Event())
    assert letter.kind == "train"
    assert letter.records == {"order": {"run": "r", "round": 1, "part": 1.5, "yes": True, "raw": b"\0"}}
    assert letter.arrays["weights"] == np.arange(3, dtype="<f4").tobytes()
    fleet.push(envelope, Reply(records={"report": {"round": 1}}, update=np.ones(2, "<f4").tobytes()))
    fleet.confirm(envelope)
    reply = link.reply(name)
    assert letters.opened(reply) == ({"report": {"round": 1}}, {"update": np.ones(2, "<f4").tobytes()})


@pytest.mark.parametrize("call", ["push-messages", "push-object"])
@pytest.mark.parametrize("is_carried_out", [False, True], ids=["cut before", "cut after"])
def test_an_answer_that_was_cut_off_goes_on_as_the_same_message(link, fleet, call, is_carried_out):
    """The link takes one answer to a message: another one, made anew, would leave it with half of the first."""
    fleet.activate()
    name = link.send(content(), run=5)
    envelope = fleet.pull()
    reply = Reply(records={"report": {"round": 1}}, update=np.ones(2, "<f4").tobytes())
    if is_carried_out:
        link.deaf.add(call)
    else:
        link.broken[call] = (503, "")
    for _ in range(2):
        with pytest.raises(UnreachableError):
            fleet.push(envelope, reply)
    link.deaf.clear()
    link.broken.clear()
    fleet.push(envelope, reply)
    fleet.confirm(envelope)
    assert len(link.heads[name]) == 1
    assert letters.opened(link.reply(name)) == ({"report": {"round": 1}}, {"update": np.ones(2, "<f4").tobytes()})


def test_an_answer_that_nobody_waits_for_is_given_up(link, fleet):
    """A link that wants none of it has forgotten the question."""
    fleet.activate()
    link.send(content(), run=5)
    envelope = fleet.pull()
    link.is_forgetful = True
    with pytest.raises(RejectedError, match="nobody waits"):
        fleet.push(envelope, Reply(records={"report": {"round": 1}}, update=None))


def test_a_run_and_its_bundle_are_what_the_link_says(link, fleet):
    """Nobody has vouched for either."""
    link.runs[5] = FakeRun(scenario="text", bundle=b"zip")
    run = fleet.run(5)
    assert run.scenario == "text"
    assert fleet.bundle(5, run.bundle) == b"zip"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ((401, "clock"), ClockRefusedError),
        ((401, "signature"), KeyRefusedError),
        ((412, '{"code": 2004, "detail": "no"}'), KeyRefusedError),
        ((403, '{"code": 2007, "detail": "no"}'), RunOverError),
        ((400, '{"code": 1001, "detail": "version"}'), VersionRefusedError),
        ((404, ""), UnreachableError),
        ((503, ""), UnreachableError),
        ((413, ""), RejectedError),
        ((200, "no protobuf at all"), UnreachableError),
    ],
    ids=["clock", "signature", "key", "over", "version", "no such path", "down", "too large", "rubbish"],
)
def test_what_a_link_answers_is_one_of_our_errors(link, fleet, answer, kind):
    """No signal is sent to this process, and no library's exception comes through."""
    link.broken["activate-node"] = answer
    with pytest.raises(kind):
        fleet.activate()


def test_a_foreign_link_is_told_from_one_that_is_down(consortium, foreign):
    """A certificate of another consortium is refused before a byte of ours is sent."""
    with closing(FakeLink(foreign)) as other, closing(fleet_of(consortium, other.address)) as fleet:
        with pytest.raises(CertificateRefusedError, match="certificate is not right"):
            fleet.activate()
        assert not other.calls
    with closing(fleet_of(consortium, other.address)) as fleet, pytest.raises(UnreachableError):
        fleet.activate()


def test_a_link_that_speaks_an_older_tls_is_refused(consortium):
    """TLS 1.3 and nothing else."""
    folder = consortium.folder
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder.server_certificate, folder.server_key)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    refused = pytest.raises(CertificateRefusedError, match=r"TLS 1\.3")
    link = FakeLink(consortium, context=context)
    with closing(link), closing(fleet_of(consortium, link.address)) as fleet, refused:
        fleet.activate()


def test_a_port_that_speaks_no_tls_is_unreachable(consortium):
    """Whatever it is, it is no link."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:

        def hang_up():
            peer, _ = server.accept()
            peer.close()

        threading.Thread(target=hang_up, daemon=True).start()
        address = f"localhost:{server.getsockname()[1]}"
        with closing(fleet_of(consortium, address)) as fleet, pytest.raises(UnreachableError):
            fleet.activate()


@pytest.mark.parametrize(
    "damage",
    [
        lambda sent: sent.__setitem__("more", MetricRecord({"n": 1})),
        lambda sent: sent["letter"].__setitem__("order.rounds", [1, 2]),
    ],
    ids=["metrics", "lists"],
)
def test_what_is_no_letter_does_not_decode(link, fleet, damage):
    """Only records of scalars and arrays are taken."""
    sent = content()
    damage(sent)
    link.send(sent, run=1)
    with pytest.raises(WireError):
        fleet.letter(fleet.pull(), stop=threading.Event())


@pytest.mark.parametrize(
    "foreign_bytes",
    [b"", b"\0", b"Nothing 4\0abcd", b"Message x 1\0a", b"Message  1\0\xff", b"RecordDict  2\0[]", b"ArrayChunk  1\0a"],
)
def test_foreign_bytes_in_place_of_an_object_do_not_decode(link, fleet, foreign_bytes):
    """Whatever the link hands out under an object's name."""
    link.send(content(), run=1)
    for name in link._objects:
        link._objects[name] = foreign_bytes
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()  # an empty object is one that may still come
    with pytest.raises((WireError, UnreachableError)):
        fleet.letter(fleet.pull(), stop=stop)


def test_a_part_that_comes_late_is_waited_for(link, fleet):
    """A message is there before its parts are."""
    link.send(content(), run=1)
    name = next(iter(link._objects))
    late = link._objects.pop(name)
    threading.Timer(0.2, link._objects.__setitem__, (name, late)).start()
    begun = time.monotonic()
    assert fleet.letter(fleet.pull(), stop=threading.Event()).records["order"]["run"] == "r"
    assert time.monotonic() - begun < 2
