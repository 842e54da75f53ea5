"""Certificates and keys: who has none that is valid now is refused at once, reads why, and is back with a new one."""

import shutil
import time
from collections.abc import Iterator

import grpc
import pytest
import witness_place
from link_process import proof, request, spoken
from lying_stage import LIAR, LyingStage, lying, prepared
from test_link import _routes

from client.node.fleet import Fleet
from client.node.link_errors import KeyRefusedError
from common import witness_wire as wire
from common.consortium import authority as authorities
from common.consortium import certificates, identity, keys
from common.consortium import roster as rosters
from common.consortium.identity import Identity
from server import consortium_folder, enrolment
from server.link.gate import PATHS
from simulations.trials.cast import WITNESS
from simulations.trials.processes import wait_ready
from simulations.trials.trial import finished

YEAR_S = 400 * 86_400
SOON_S = 7.0  # how long a certificate is valid that is to expire
AT_ONCE_S = 2.0


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LyingStage]:
    """Everybody, ready."""
    with lying(prepared(tmp_path_factory.mktemp("certificates"))) as made:
        yield made


@pytest.fixture(autouse=True)
def _from_here_on(stage: LyingStage) -> None:
    stage.mark()


def settled(stage: LyingStage) -> None:
    """Wait until all organisations are back at the link."""
    stage.start_true_link()
    assert stage.link is not None
    wait_ready(stage.link, within_s=30)
    for name in stage.cast.organisations:
        stage.wait_said(name, "answers again after", within_s=30)


def test_a_link_with_an_expired_certificate_is_refused_until_it_is_renewed(stage):
    """`serve` does not start with it; a link that does is refused by all in one line; the renewed one has all back."""
    folder = consortium_folder.opened(stage.cast.consortium)
    stage.link.stop()
    consortium_folder.renew(folder, now=time.time() - YEAR_S)
    stage.start_true_link()
    assert stage.link.process.wait(30) == 2
    (line,) = [line for line in stage.link.said().splitlines() if line.startswith("error")]
    assert "expected a certificate that is valid now, got an expired one. Renew it: discreet consortium renew" in line
    stage.start_link_anyway()
    for name in stage.cast.organisations:
        stage.wait_said(name, "its certificate is not right: certificate has expired")
    stage.link.stop()
    assert stage.discreet("consortium", "renew", "--consortium", str(folder.path)).returncode == 0
    settled(stage)
    for name in stage.cast.organisations:
        assert stage.said(name).count("certificate has expired") == 1
        assert stage.nodes[name].is_alive()


def test_a_link_of_a_foreign_authority_is_refused(stage):
    """Whoever takes the address over without the consortium's authority gets not a byte from any node."""
    folder = consortium_folder.opened(stage.cast.consortium)
    own = {file: file.read_bytes() for file in (folder.server_certificate, folder.server_key)}
    stage.link.stop()
    key, foreign = keys.new_tls_key(), authorities.new_authority("trial")  # of the same name
    folder.server_key.unlink()
    keys.write_private(folder.server_key, keys.private_pem(key))
    folder.server_certificate.write_bytes(authorities.issue_server(foreign, key, hosts=["127.0.0.1"]))
    stage.start_link_anyway()
    for name in stage.cast.organisations:
        stage.wait_said(name, "its certificate is not right:")
    stage.link.stop()
    for file, content in own.items():
        file.write_bytes(content)
    settled(stage)
    for name in stage.cast.organisations:
        assert stage.said(name).count("its certificate is not right:") == 1


def told(stage: LyingStage, own: Identity, certificate: bytes | None = None) -> str:
    """What the witness says to who asks for the newest checkpoint of its ledger: a status of gRPC, or OK."""
    data = wire.encode(wire.Question(ledger=own.request.ledger))
    try:
        witness_place.call(own, stage.cast.witness, wire.LATEST, data, certificate=certificate)
    except grpc.RpcError as error:
        return f"{error.code().name}: {error.details()}"
    return "OK"


def test_the_witness_answers_no_expired_foreign_or_unregistered_certificate(stage):
    """It ends the handshake, or looks into the roster; a member whose certificate is good is answered meanwhile."""
    folder = consortium_folder.opened(stage.cast.consortium)
    own = identity.load(stage.cast.of("organisation-1") / "identity")
    authority, csr = authorities.load_authority(folder.authority, folder.authority_key), own.request.csr
    expired = authorities.issue_member(authority, csr, name=own.name, now=time.time() - YEAR_S)
    foreign = authorities.issue_member(authorities.new_authority("trial"), csr, name=own.name)
    unlisted = authorities.issue_member(authority, csr, name=own.name)
    assert told(stage, own, expired).startswith("UNAVAILABLE")
    assert told(stage, own, foreign).startswith("UNAVAILABLE")
    assert told(stage, own, unlisted).startswith("PERMISSION_DENIED")
    assert told(stage, own) == "OK"


def test_an_unregistered_key_gets_no_further_than_the_gate(stage):
    """It is refused before its body is read, and the link's log says so in one line."""
    folder = consortium_folder.opened(stage.cast.consortium)
    key = keys.new_node_key()
    fleet = Fleet(stage.cast.link, key=key, context=certificates.client_context(folder.authority))
    with pytest.raises(KeyRefusedError, match="the key is not registered"):
        fleet.activate()
    fleet.close()
    assert stage.said("link").count("refused a node whose key no active member of the roster has") == 1
    assert spoken(stage.cast.link, folder.authority, request("/v1/fleet/push-object", proof(key), b"x" * 9))[0] == 412


def test_nothing_but_ten_paths_is_there_at_the_public_port_of_a_trial(stage, tmp_path):
    """Every route of Flower's is asked for by a member with a right proof."""
    folder = consortium_folder.opened(stage.cast.consortium)
    member = proof(identity.load(stage.cast.of("organisation-1") / "identity").node_key)
    found: dict[int, set[str]] = {}
    routes = _routes(tmp_path)
    for method, path in routes:
        if method != "POST" or path.encode() not in PATHS:
            status, _ = spoken(stage.cast.link, folder.authority, request(path, member, method=method))
            found.setdefault(status, set()).add(f"{method} {path}")
    assert found.keys() == {404}
    assert len(found[404]) == len(routes) - len(PATHS) > 50


def test_a_member_whose_certificate_expires_is_out_until_it_is_renewed(stage):
    """Nobody has to do anything for the first, all sign for the second; its node waits meanwhile."""
    folder = consortium_folder.opened(stage.cast.consortium)
    request_file = stage.cast.of("organisation-2") / "identity" / "request.json"
    enrolment.add(folder, request_file, days=SOON_S / 86_400)
    stage.sign()
    expires = rosters.load(folder.roster).member("organisation-2").expires
    stage.wait_said("link", "organisation-2: unregistered")
    assert time.time() < expires + AT_ONCE_S
    line = stage.wait_said("organisation-2", "the key is not registered")
    assert "is it neither expired nor revoked" in line
    assert stage.discreet("consortium", "add", str(request_file), "--consortium", str(folder.path)).returncode == 0
    stage.sign()
    stage.wait_said("organisation-2", "answers again after")
    assert stage.nodes["organisation-2"].is_alive()
    assert stage.said("organisation-2").count("the key is not registered") == 1


def test_a_member_revoked_in_the_middle_of_a_run_is_out_within_two_seconds(stage, tmp_path):
    """The others go on; the witness does not answer it either, once it has the list; last, since it does not return."""
    rounds = 6
    more = [f"run.rounds={rounds}", f"server.max_participations={rounds}", "server.round_timeout_s=4.0"]
    run = stage.discreet_run(tmp_path / "run", *more)
    stage.wait_said(LIAR, "round 1: trained", within_s=60)
    assert stage.discreet("consortium", "revoke", LIAR, "--consortium", str(stage.cast.consortium)).returncode == 0
    begun = time.monotonic()
    stage.wait_said("link", f"{LIAR}: unregistered")
    assert time.monotonic() - begun < AT_ONCE_S
    stage.wait_said(LIAR, "Does the coordinator's roster have this node's key")  # at a message, or when it registers
    figures = finished(run, within_s=90)
    assert figures["rounds"] == rounds
    charged = {name: stage.run_of(name, figures["run"]).charged for name in stage.cast.organisations}
    assert charged["organisation-1"] == charged["organisation-2"] == rounds
    assert 1 <= charged[LIAR] < rounds
    assert figures["organisations"][2]["refusals"] >= rounds - charged[LIAR]
    shutil.copyfile(stage.cast.consortium / "denied.json", stage.cast.folder / WITNESS / "denied.json")
    revoked = told(stage, identity.load(stage.cast.of(LIAR) / "identity"))
    assert revoked == "PERMISSION_DENIED: expected an active member of the roster"
    assert told(stage, identity.load(stage.cast.of("organisation-1") / "identity")) == "OK"
