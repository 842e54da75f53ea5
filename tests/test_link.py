"""The link as a process: what the public port refuses, who gets in, and what survives a kill."""

import json
import os
import shutil
import ssl
import statistics
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import sample_consortium
from cryptography.hazmat.primitives import serialization
from link_process import (
    ROOT,
    answered,
    connected,
    free_port,
    proof,
    quiet_environment,
    refused,
    request,
    running,
    script,
    spoken,
    until,
)

from common.consortium import keys
from common.errors import LinkError
from server import consortium_folder, enrolment
from server.link.gate import PATHS
from server.link.settings import TOKEN_HEADER, LinkFolder, read_link

PULL = "/v1/fleet/pull-messages"
ACTIVATE = "/v1/fleet/activate-node"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a consortium whose third owner's certificate has expired."""
    return sample_consortium.make(tmp_path_factory.mktemp("link"), witness=False, expired=["owner-2"])


@pytest.fixture(scope="module")
def link(made, tmp_path_factory):
    """Run one link for all tests that leave it as it is."""
    with running(made.folder.path, tmp_path_factory.mktemp("log") / "log") as process:
        yield process


@pytest.fixture
def public(link):
    """Return a function that says bytes on the public port and returns the answer."""
    return lambda data: spoken(link.address.public, link.authority, data)


def _activation(key) -> bytes:
    """Return the body by which a node comes online."""
    from flwr.proto.fleet_pb2 import ActivateNodeRequest

    pem = keys.node_public_pem(key).encode()
    return ActivateNodeRequest(public_key=pem, heartbeat_interval=30).SerializeToString()


def _identifier(answer: tuple[int, bytes]) -> int:
    """Return the identifier of a node that has come online."""
    from flwr.proto.fleet_pb2 import ActivateNodeResponse

    assert answer[0] == 200, answer
    return ActivateNodeResponse.FromString(answer[1]).node_id


def _activated(link, key) -> tuple[int, bytes]:
    """Bring a node online, after taking it offline if it was on."""
    body = _activation(key)
    return spoken(link.address.public, link.authority, request(ACTIVATE, proof(key), body))


def _nodes(link) -> dict[str, tuple[int, str]]:
    """Return Flower's nodes as the control port lists them: by name, their identifier and state."""
    from flwr.proto.control_pb2 import ListNodesRequest, ListNodesResponse

    headers = link.address.bearer() | {"content-type": "application/protobuf"}
    headers |= {"flwr-package-name": "flwr", "flwr-package-version": "1.41.0", "flwr-component-name": "discreet"}
    url = f"http://{link.address.control}/v1/control/list-nodes"
    reply = httpx.post(url, content=ListNodesRequest().SerializeToString(), headers=headers)
    assert reply.status_code == 200, reply.text
    found = ListNodesResponse.FromString(reply.content).nodes_info
    return {node.name: (node.node_id, node.status) for node in found}


def test_ready_line_says_where_both_ports_are(link):
    """The line that scripts wait for names the ports, and link.json says the same."""
    assert link.ready == f"ready: public {link.address.public}, control {link.address.control}\n"
    assert link.address.control.startswith("127.0.0.1:")
    assert link.address.pid == link.process.pid


def test_files_of_the_link_are_for_its_owner_alone(link):
    """The folder is 0700, and the database, the token and the secret in it 0600."""
    assert link.folder.root.stat().st_mode & 0o777 == 0o700
    for file in link.folder.root.iterdir():
        assert file.stat().st_mode & 0o077 == 0, file


def test_active_owners_are_registered_under_their_names(link):
    """Flower's table is the roster's: whose certificate has expired is not in it."""
    assert {name for name, (_, state) in _nodes(link).items() if state != "unregistered"} == {"owner-0", "owner-1"}


def test_member_gets_in(link, made):
    """A member's node comes online and asks for messages."""
    key = made.owners[0].node_key
    identifier = _identifier(_activated(link, key))
    assert _nodes(link)["owner-0"] == (identifier, "online")
    from flwr.proto.fleet_pb2 import PullMessagesRequest
    from flwr.proto.node_pb2 import Node

    body = PullMessagesRequest(node=Node(node_id=identifier)).SerializeToString()
    status, _ = spoken(link.address.public, link.authority, request(PULL, proof(key), body))
    assert status == 200


def test_expired_and_foreign_keys_are_refused(public, made):
    """A member whose certificate has expired is as unknown as a key that nobody has."""
    for key in (made.owners[2].node_key, keys.new_node_key()):
        status, body = public(request(ACTIVATE, proof(key), _activation(key)))
        assert (status, json.loads(body)["code"]) == (412, 2004)


def test_wrong_clock_is_told_and_right_again_let_in(link, public, made):
    """Ten minutes off: 401 `clock` and a line that names the member; with the right time it is let in again."""
    key = made.owners[1].node_key
    for behind_s in (600, -600):
        assert public(request(ACTIVATE, proof(key, behind_s=behind_s), _activation(key))) == (401, b"clock")
    assert public(request(ACTIVATE, proof(key), _activation(key)))[0] == 200
    assert sum("owner-1" in line and "clock" in line for line in link.lines()) == 1


def test_member_cannot_act_as_another(public, made):
    """Flower itself compares key and node: one member's proof with another's key in the body is refused."""
    mine, other = made.owners[0].node_key, made.owners[1].node_key
    assert public(request(ACTIVATE, proof(mine), _activation(other)))[0] == 401


_ROUTES = """
import json, sys
from pathlib import Path
from fastapi.routing import iter_route_contexts
from server.link import flower_app
from server.link.settings import LinkFolder

app = flower_app.load(LinkFolder(Path(sys.argv[1])), secret=b"secret").app
print(json.dumps([(method, route.path) for route in iter_route_contexts(app.routes) for method in route.methods]))
"""


def _routes(folder: Path) -> list[tuple[str, str]]:
    """Return method and path of every route that this Flower's SuperLink has."""
    LinkFolder(folder).root.mkdir()
    command = [sys.executable, "-c", _ROUTES, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    return [(method, path) for method, path in json.loads(done.stdout)]


def test_every_route_of_flower_outside_the_ten_is_not_found(link, public, made, tmp_path):
    """All routes of the app are asked for by a member with a right proof: 404 but for the ten; 401 without token."""
    routes = _routes(tmp_path)
    outside = [(method, path) for method, path in routes if path.encode() not in PATHS]
    inside = {path.encode() for method, path in routes if path.encode() in PATHS and method == "POST"}
    assert inside == PATHS
    assert len(outside) > 50
    headers = proof(made.owners[0].node_key)
    for method, path in outside:
        assert public(request(path, headers, method=method))[0] == 404, path
    with httpx.Client(base_url=f"http://{link.address.control}") as control:
        for method, path in routes:
            assert control.request(method, path).status_code == 401, path


@pytest.mark.parametrize(
    "target",
    [
        f"/{PULL}",
        f"{PULL}/",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/%70ull-messages",
        "/v1%2Ffleet%2Fpull-messages",
        "/V1/FLEET/PULL-MESSAGES",
        f"{PULL}?x=1",
        f"{PULL}%00",
        f"{PULL};x=1",
        f"http://localhost{PULL}",
        f"https://127.0.0.1:1{PULL}",
        "localhost:443",
        "*",
        "//v1/fleet/pull-messages",
        "\\v1\\fleet\\pull-messages",
    ],
)
def test_other_spellings_of_a_path_are_not_found(public, made, target):
    """Over the wire too, a member's proof opens the ten paths as they are spelled and nothing like them."""
    assert public(request(target, proof(made.owners[0].node_key)))[0] == 404


@pytest.mark.parametrize(
    "method", ["GET", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "PRI", "post"]
)
def test_other_methods_are_not_found(public, made, method):
    """The ten paths know POST alone."""
    assert public(request(PULL, proof(made.owners[0].node_key), method=method))[0] == 404


def test_upgrades_and_old_http_are_not_found(public, made):
    """No websocket, no HTTP/2 without TLS's consent, no HTTP/1.0."""
    headers = proof(made.owners[0].node_key)
    websocket = [
        (b"connection", b"Upgrade"),
        (b"upgrade", b"websocket"),
        (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="),
        (b"sec-websocket-version", b"13"),
    ]
    assert public(request(PULL, [*headers, *websocket], method="GET"))[0] == 404
    assert public(request(PULL, [*headers, *websocket]))[0] == 404
    assert public(request(PULL, [*headers, (b"connection", b"Upgrade"), (b"upgrade", b"h2c")]))[0] == 404
    assert public(request(PULL, headers, version="HTTP/1.0"))[0] == 404


@pytest.mark.parametrize(
    ("headers", "length", "statuses"),
    [
        ([(b"transfer-encoding", b"chunked")], "", {411}),
        ([(b"transfer-encoding", b"chunked")], "5", {411}),
        ([(b"transfer-encoding", b"gzip, chunked")], "", {501, 400}),
        ([(b"content-length", b"7")], "5", {400}),
        ([(b"content-length", b"5")], "5", {400}),  # h11 makes one of two that say the same; the body does not parse
        ([], "5, 7", {400}),
        ([], "-5", {400}),
        ([], "0x5", {400}),
        ([], "99999999999999999999999", {400, 411}),
        ([], "", {411}),
    ],
)
def test_lengths_that_can_be_read_in_two_ways_are_refused(public, made, headers, length, statuses):
    """Chunks, several lengths and odd ones end at the parser or the gate."""
    data = request(ACTIVATE, [*proof(made.owners[0].node_key), *headers], b"0\r\n\r\n", length=length)
    assert public(data)[0] in statuses


def test_body_beyond_the_bound_is_refused_and_not_kept(link):
    """A stranger who declares 400 MB, and sends a good part of it, hears 413 and costs the link no memory."""
    before = link.resident_mib()
    with connected(link.address.public, link.authority) as peer:
        peer.sendall(request("/v1/fleet/push-object", length=str(400 * 2**20)))
        assert answered(peer)[0] == 413
        with pytest.raises((ConnectionError, ssl.SSLError)):
            peer.sendall(bytes(64 * 2**20))
    assert link.resident_mib() - before < 8


def test_strangers_body_is_not_read(public):
    """Who has no registered key is answered after the headers; it is not even told to go on."""
    headers = proof(keys.new_node_key())
    for more in ([], [(b"expect", b"100-continue")]):
        assert public(request("/v1/fleet/push-object", [*headers, *more], length=str(2**20)))[0] == 412


def test_bytes_after_the_declared_body_are_another_request(link, made):
    """What follows the declared length is judged by itself: it does not ride on the first request's proof."""
    key = made.owners[0].node_key
    smuggled = request("/v1/control/list-runs") + request(PULL)
    with connected(link.address.public, link.authority) as peer:
        peer.sendall(request(PULL, proof(key), b"\xff") + smuggled)  # the first body does not parse: Flower says 400
        assert answered(peer)[0] == 400
        assert answered(peer)[0] == 404


@pytest.mark.parametrize(
    "data",
    [
        b"GET",
        b"\x16\x03\x01\x02\x00\x01",
        b"POST / HTTP/1.1\r\nhost localhost\r\n\r\n",
        b"POST / HTTP/1.1\r\n\r\n",
        b"POST /v1/fleet/\xc3\xa9 HTTP/1.1\r\nhost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\nx: " + b"a" * 100_000 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\n" + b"x: y\r\n" * 20_000 + b"\r\n",
        b"POST / HTTP/1.1\r\n folded: a\r\n\r\n",
        b"\r\n" * 50_000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_what_is_no_request_ends_the_connection(link, public, data):
    """Malformed, endless or unfinished headers: 400 or nothing, and the connection is cut."""
    assert public(data)[0] in {0, 400, 404}
    assert link.process.poll() is None


def _drip(peer, data: bytes) -> None:
    """Send a byte now and then."""
    for byte in data:
        peer.sendall(bytes([byte]))
        time.sleep(0.05)


def test_slow_headers_are_cut(link):
    """A header byte now and then keeps no connection: the deadline is for all of them."""
    with connected(link.address.public, link.authority) as peer:
        begun = time.monotonic()
        with pytest.raises((ConnectionError, ssl.SSLError)):
            _drip(peer, request(PULL) * 100)
        assert time.monotonic() - begun < 4  # the bound of this process is 1 s


def test_silent_connections_are_cut_before_and_after_the_handshake(link):
    """Who says nothing, within TLS or before it, is let go."""
    for authority in (None, link.authority):
        with connected(link.address.public, authority) as peer:
            begun = time.monotonic()
            assert answered(peer)[0] == 0
            assert time.monotonic() - begun < 4


def test_idle_connection_is_closed_after_its_time(link, made):
    """A connection that was used may rest for a while, not for ever."""
    with connected(link.address.public, link.authority) as peer:
        peer.sendall(request(PULL, proof(made.owners[0].node_key), b"\xff"))
        assert answered(peer)[0] == 400
        begun = time.monotonic()
        assert answered(peer)[0] == 0
        assert 1 < time.monotonic() - begun < 5


def test_body_that_does_not_come_is_cut(public, made):
    """A member that declares a body and does not send it hears 408."""
    data = request("/v1/fleet/push-object", proof(made.owners[0].node_key), b"some", length="2000")
    assert public(data)[0] == 408


def test_one_address_holds_a_bounded_number_of_connections(made, tmp_path):
    """Beyond the bound a connection is dropped; the others stay."""
    consortium = tmp_path / "consortium"
    shutil.copytree(made.folder.path, consortium, ignore=shutil.ignore_patterns("link"))
    with running(consortium, tmp_path / "log", connections_each=2, header_timeout_s=20) as link:
        address = link.address.public
        with connected(address, link.authority) as one, connected(address, link.authority) as two:
            assert spoken(address, link.authority, request("/"))[0] == 0
            for peer in (one, two):
                peer.sendall(request("/"))
                assert answered(peer)[0] == 404


def test_only_tls_1_3_is_spoken(link):
    """`openssl s_client` comes in with TLS 1.3 and with nothing older; plain HTTP is no TLS at all."""
    command = ["openssl", "s_client", "-connect", link.address.public, "-CAfile", str(link.authority), "-brief"]
    for option, is_let_in in (("-tls1_3", True), ("-tls1_2", False), ("-tls1_1", False)):
        done = subprocess.run(
            [*command, "-verify_return_error", option],
            input="",
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
        assert (done.returncode == 0) == is_let_in, done.stderr
        assert ("Protocol version: TLSv1.3" in done.stderr) == is_let_in
    assert spoken(link.address.public, None, request(PULL))[0] == 0


def test_answers_do_not_wait_for_acknowledgements(link):
    """An answer of two writes comes at once: with Nagle's algorithm on, each would take 40 ms."""
    data, times = request(PULL, proof(keys.new_node_key()), b"body"), []
    with connected(link.address.public, link.authority) as peer:
        for _ in range(11):
            begun = time.monotonic()
            peer.sendall(data)
            assert answered(peer)[0] == 412
            times.append(time.monotonic() - begun)
    assert statistics.median(times) < 0.03, times


def test_large_bodies_do_not_pile_up(link, public, made):
    """What a member sends is let go when it was answered: ten large objects cost no more memory than two."""
    data = request("/v1/fleet/push-object", proof(made.owners[0].node_key), bytes(32 * 2**20))
    resident = []
    for _ in range(10):
        assert public(data)[0] == 400  # zeros are no message
        resident.append(link.resident_mib())
    assert max(resident[2:]) - max(resident[:2]) < 48, resident


def test_node_of_flowers_reaches_the_fleet_api_and_is_refused(link, tmp_path):
    """A stock `flower-supernode` of this version connects, and ends with Flower's own words for an unknown key."""
    private = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    key_file = tmp_path / "key"
    key_file.write_bytes(keys.new_node_key().private_bytes(*private))
    key_file.chmod(0o600)
    command = [script("flower-supernode"), "--superlink", link.address.public, "--isolation", "process"]
    command += ["--root-certificates", str(link.authority), "--auth-supernode-private-key", str(key_file)]
    done = subprocess.run(
        [*command, "--port", str(free_port())],
        env=quiet_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 1
    assert "Exit Code: 305" in output
    assert "[code: 2004] Failed to activate SuperNode." in output


def test_control_port_answers_to_the_token_alone(link):
    """Without the token 401; a browser's or another user's request reaches nothing. The file holds the token."""
    url = f"http://{link.address.control}/health"
    assert httpx.get(url).status_code == 401
    assert httpx.get(url, headers={TOKEN_HEADER: "0" * 64}).status_code == 401
    assert httpx.get(url, headers=link.address.bearer()).status_code == 200


def test_nodes_of_strangers_cannot_be_registered_over_the_wire(public, made):
    """Neither way by which Flower registers nodes is on the public port."""
    headers = proof(made.owners[0].node_key)
    for path in ("/v1/fleet/register-node", "/v1/fleet/unregister-node", "/v1/control/register-node"):
        assert public(request(path, headers, b""))[0] == 404


def test_second_link_on_one_folder_does_not_start(link):
    """Exit status 1 and one line; the first one goes on."""
    done = refused(link.consortium)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "no other link" in line
    assert link.address.pid == link.process.pid


def test_flood_of_refusals_is_a_few_lines(link, public):
    """Anyone can cause a refusal: its line comes now and then, and holds nothing of what was sent."""
    before = len(link.lines())
    for _ in range(20):
        key = keys.new_node_key()
        public(request(ACTIVATE, proof(key), _activation(key)))
        public(b"nonsense with 17 patients\r\n\r\n")
    assert len(link.lines()) - before <= 2
    assert "patients" not in link.log.read_text()


def test_log_is_lines_without_traces_or_data(link):
    """Each line has its time and grade; nothing of a body, and no trace, is among them."""
    for line in link.lines():
        assert line[:4].isdigit(), line
        assert "Traceback" not in line


def test_kill_and_stop(made, tmp_path):
    """After kill -9 the same folder serves again with the same nodes; SIGTERM ends it cleanly."""
    consortium = tmp_path / "consortium"
    shutil.copytree(made.folder.path, consortium, ignore=shutil.ignore_patterns("link"))
    with running(consortium, tmp_path / "log") as link:
        nodes, token = _nodes(link), link.address.bearer()
        link.kill()
        with pytest.raises(LinkError, match="discreet serve"):
            read_link(link.folder)
    with running(consortium, tmp_path / "log") as link:
        assert {name: node for name, (node, _) in _nodes(link).items()} == {
            name: node for name, (node, _) in nodes.items()
        }
        assert link.address.bearer() == token
        with connected(link.address.public, link.authority):  # an idle peer does not hold a stop up
            begun = time.monotonic()
            assert link.stop() == 0
        assert time.monotonic() - begun < 5
        assert not link.folder.address.exists()
        with pytest.raises(LinkError):
            read_link(link.folder)
        assert not [line for line in link.lines() if "ERROR" in line]


def test_roster_is_followed_while_the_link_is_up(tmp_path):
    """Revoked: refused within 2 s; a list that does not verify changes nothing; admitted again: the same node."""
    made = sample_consortium.make(tmp_path, owners=2, witness=False)
    key = made.owners[0].node_key
    with running(made.folder.path, tmp_path / "log") as link:
        identifier = _identifier(_activated(link, key))
        enrolment.revoke(made.folder, "owner-0")
        assert until(lambda: _activated(link, key)[0] == 412, within_s=2) < 2
        until(lambda: _nodes(link).get("owner-0", (0, "unregistered"))[1] == "unregistered", within_s=2)

        denied = made.folder.denied.read_text()
        made.folder.denied.write_text(denied.replace("denied", "Denied"))
        until(lambda: any("stays denied" in line for line in link.lines()), within_s=2)
        assert _activated(link, key)[0] == 412

        made.folder.denied.unlink()
        until(lambda: _activated(link, key)[0] == 200, within_s=2)
        assert _nodes(link)["owner-0"] == (identifier, "online")

        made.folder.roster.write_text(made.folder.roster.read_text().replace('"serial": 3', '"serial": 4'))
        until(lambda: any("roster before stays in force" in line for line in link.lines()), within_s=2)
        assert _nodes(link)["owner-0"][0] == identifier


def test_expired_server_certificate_is_refused_with_the_remedy(tmp_path):
    """The link does not start with a certificate that nobody accepts; the line says how to renew it."""
    made = sample_consortium.make(tmp_path, owners=1, witness=False)
    consortium_folder.renew(made.folder, now=time.time() - 400 * 86_400)
    done = refused(made.folder.path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "expired" in line
    assert "discreet consortium renew" in line


def test_database_of_something_else_is_refused_in_one_line(made, tmp_path):
    """A damaged or foreign database ends the start with a line that says what to do."""
    consortium = tmp_path / "consortium"
    shutil.copytree(made.folder.path, consortium, ignore=shutil.ignore_patterns("link"))
    LinkFolder(consortium).root.mkdir()
    LinkFolder(consortium).database.write_bytes(b"not a database" * 1000)
    done = refused(consortium)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "link.db: expected a database of Flower" in line


def test_flower_that_has_moved_is_named_in_one_line(tmp_path):
    """Where Flower's insides are not where they were, the link says which version it is made for."""
    (tmp_path / "flwr").mkdir()
    (tmp_path / "flwr" / "__init__.py").touch()
    (tmp_path / "link").mkdir()
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", f"import flwr\n{_ROUTES}", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert "LinkError: Flower: expected the insides of 1.41.0" in done.stderr.splitlines()[-1]
    assert "pip install flwr==1.41.0" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_link_is_ready_in_time(made, tmp_path):
    """From the process's start to the ready line: the median of three is under 4 s, in less than 200 MiB."""
    consortium = tmp_path / "consortium"
    shutil.copytree(made.folder.path, consortium, ignore=shutil.ignore_patterns("link"))
    times, memory = [], []
    for _ in range(3):
        with running(consortium, tmp_path / "log") as link:
            times.append(link.ready_s)
            memory.append(link.resident_mib())
    assert statistics.median(times) < 4, times
    assert max(memory) < 200, memory
