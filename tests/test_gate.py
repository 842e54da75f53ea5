"""The gates: what never reaches Flower, and why."""

import asyncio

import pytest
from asgi_peer import NOW, Behind, ask, signed

from common.consortium import keys
from server.link import peers
from server.link.gate import PATHS, PUBLIC_KEY, SIGNATURE, TIMESTAMP, ControlGate, PublicGate
from server.link.peers import Admission
from server.link.settings import Limits

PULL, PUSH_OBJECT = "/v1/fleet/pull-messages", "/v1/fleet/push-object"
LIMITS = Limits(max_object=1000, max_body=100, envelope=0, body_timeout_s=0.2, requests_each=2)
NODE = keys.new_node_key()
LENGTH = (b"content-length", b"4")


@pytest.fixture
def behind():
    return Behind()


@pytest.fixture
def gate(behind):
    """Return a public gate that knows one member."""
    member = peers.parse("north", keys.node_public_pem(NODE), expires=NOW + 10)
    admission = Admission()
    admission.admit({"north": member})
    return PublicGate(behind, admission, LIMITS, clock=lambda: NOW)


def _asked(gate, path=PULL, headers=None, chunks=(b"body",), **scope: object):
    return asyncio.run(ask(gate, path, [LENGTH, *signed(NODE)] if headers is None else headers, chunks=chunks, **scope))


@pytest.mark.parametrize("path", sorted(path.decode() for path in PATHS))
def test_member_reaches_each_of_the_ten_paths(gate, behind, path):
    """A member's signed request with a whole body reaches Flower as it was sent."""
    assert _asked(gate, path).body == b"flower"
    assert behind.bodies == [b"body"]


def test_there_are_ten_paths():
    """The set is what a node needs; registration over the wire is not in it."""
    assert len(PATHS) == 10
    assert not {b"/v1/fleet/register-node", b"/v1/fleet/unregister-node"} & PATHS


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/health",
        "/docs",
        "/openapi.json",
        "/v1/fleet",
        "/v1/fleet/",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/control/start-run",
        "/v1/runtime/acquire-task",
        f"{PULL}/",
        f"/{PULL}",
        "/v1/fleet//pull-messages",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/./pull-messages",
        "/v1/fleet/pull-messages/../push-object",
        "/V1/fleet/pull-messages",
        "/v1/fleet/Pull-Messages",
        "/v1/fleet/pull-messages;x",
        "/v1/fleet/pull-messages#x",
        "/v1/fleet/pull-messages ",
        f"http://localhost{PULL}",
        "*",
        "",
    ],
)
def test_every_other_path_is_not_found(gate, behind, path):
    """Nothing is normalised: what is not spelled like one of the ten is not there, even for a member."""
    reply = _asked(gate, path)
    assert (reply.status, reply.reads, behind.bodies) == (404, 0, [])


@pytest.mark.parametrize(
    "scope",
    [
        {"raw_path": b"/v1/fleet/%70ull-messages"},
        {"raw_path": b"/v1/fleet%2Fpull-messages"},
        {"path": "/v1/control/start-run", "raw_path": PULL.encode()},
        {"query_string": b"a=1"},
        {"http_version": "1.0"},
        {"http_version": "2"},
        *({"method": method} for method in ("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "CONNECT", "post", "PATCH")),
    ],
)
def test_other_spellings_methods_and_versions_are_not_found(gate, behind, scope):
    """Percent-encoding, a query, another method or another HTTP is another request than the ten."""
    reply = _asked(gate, **scope)
    assert (reply.status, reply.reads, behind.bodies) == (404, 0, [])


def test_upgrade_is_not_found_and_websocket_is_closed(gate, behind):
    """Nothing but plain requests is spoken."""
    upgrade = [(b"connection", b"upgrade"), (b"upgrade", b"h2c")]
    assert _asked(gate, headers=[LENGTH, *upgrade, *signed(NODE)]).status == 404
    assert _asked(gate, type="websocket").status == 1008
    assert behind.scopes == []


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [LENGTH, LENGTH],
        [LENGTH, (b"content-length", b"5")],
        [(b"content-length", b"-1")],
        [(b"content-length", b"+4")],
        [(b"content-length", b"4, 4")],
        [(b"content-length", b"\xb2")],
        [(b"content-length", b"9" * 5000)],
        [(b"transfer-encoding", b"chunked")],
        [LENGTH, (b"transfer-encoding", b"chunked")],
        [LENGTH, (b"transfer-encoding", b"identity")],
    ],
)
def test_body_without_one_plain_length_is_refused(gate, behind, headers):
    """Chunks, no length and two lengths are refused before anything else is looked at."""
    reply = _asked(gate, headers=[*headers, *signed(NODE)])
    assert (reply.status, reply.reads, behind.bodies) == (411, 0, [])


@pytest.mark.parametrize(("path", "size", "status"), [(PULL, 101, 413), (PUSH_OBJECT, 1001, 413)])
def test_body_beyond_the_bound_is_refused_unread(gate, path, size, status):
    """Each path has its bound, and the length that is declared counts."""
    reply = _asked(gate, path, [(b"content-length", b"%d" % size), *signed(NODE)])
    assert (reply.status, reply.reads, reply.headers[b"connection"]) == (status, 0, b"close")


def test_body_at_the_bound_is_let_in(gate, behind):
    """The bound itself is allowed."""
    _asked(gate, PUSH_OBJECT, [(b"content-length", b"1000"), *signed(NODE)], chunks=[b"a" * 999, b"b"])
    assert behind.bodies == [b"a" * 999 + b"b"]


def test_unknown_key_hears_what_flower_says(gate, behind):
    """A key that no member has gets 412 with Flower's error as JSON, unread; a node of Flower's prints it."""
    reply = _asked(gate, headers=[LENGTH, *signed(keys.new_node_key())])
    assert (reply.status, reply.reads, behind.bodies) == (412, 0, [])
    from flwr.supercore.error import ApiErrorCode, FlowerError

    error = FlowerError.from_json(reply.body.decode())
    assert error is not None
    assert error.code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED


@pytest.mark.parametrize(
    "mangled",
    [
        lambda proof: proof[1:],  # no key
        lambda proof: [*proof, proof[0]],  # two keys
        lambda proof: [(proof[0][0], proof[0][1] + b"="), *proof[1:]],
        lambda proof: [(proof[0][0], b"\xff" * 9000), *proof[1:]],
    ],
)
def test_key_that_is_not_shown_once_and_exactly_is_unknown(gate, mangled):
    """Gate and Flower must read the same key: two headers, or another spelling, are no key."""
    reply = _asked(gate, headers=[LENGTH, *mangled(signed(NODE))])
    assert (reply.status, reply.reads) == (412, 0)


@pytest.mark.parametrize(
    "mangled",
    [
        lambda proof: proof[:2],  # no signature
        lambda proof: [proof[0], proof[2]],  # no time
        lambda proof: [*proof, proof[1]],  # two times
        lambda proof: [*proof, proof[2]],
        lambda proof: [*proof[:2], (b"flwr-signature", b"AAAA")],
        lambda proof: [*proof[:2], (b"flwr-signature", b"\xff\x00")],
        lambda proof: [*proof[:2], signed(keys.new_node_key())[2]],
        lambda proof: [proof[0], (b"flwr-timestamp", b"2027-01-15"), proof[2]],
        lambda proof: [proof[0], (b"flwr-timestamp", b"\xff"), proof[2]],
        lambda proof: [proof[0], (b"flwr-timestamp", b"9999-12-31T23:59:59-23:59"), proof[2]],
        lambda proof: [proof[0], signed(NODE, at=NOW - 1)[1], proof[2]],  # another time than was signed
    ],
)
def test_proof_that_does_not_hold_is_refused_unread(gate, behind, mangled):
    """Any bytes in place of a proof give one answer: 401, `signature`."""
    reply = _asked(gate, headers=[LENGTH, *mangled(signed(NODE))])
    assert (reply.status, reply.body, reply.reads, behind.bodies) == (401, b"signature", 0, [])


@pytest.mark.parametrize(("age_s", "status"), [(304, 200), (306, 401), (-4, 200), (-6, 401), (600, 401), (-600, 401)])
def test_window_is_flowers(gate, age_s, status):
    """A signed time is good from 5 s ahead to 305 s old; outside it the answer is `clock`."""
    reply = _asked(gate, headers=[LENGTH, *signed(NODE, at=NOW - age_s)])
    assert (reply.status, reply.body) == (status, b"flower" if status == 200 else b"clock")


def test_wrong_clock_is_one_line_that_names_the_member(gate, caplog):
    """The log says who, and nothing of what was sent."""
    _asked(gate, headers=[LENGTH, *signed(NODE, at=NOW - 600)])
    (line,) = caplog.messages
    assert "north" in line
    assert "clock" in line


def test_expired_member_is_refused_at_that_second(gate, behind):
    """The gate looks at the clock with every request: no roster has to change."""
    gate.clock = lambda: NOW + 10
    assert _asked(gate, headers=[LENGTH, *signed(NODE, at=NOW + 10)]).status == 412


def test_member_that_is_no_longer_admitted_is_refused_at_once(gate, behind):
    """Who is taken away is refused with the next request."""
    gate.admission.admit({})
    assert _asked(gate).status == 412
    assert behind.bodies == []


@pytest.mark.parametrize("chunks", [(b"bod",), (b"body!",), (b"bo", b"dy", b"!"), (b"",)])
def test_body_of_another_length_never_reaches_flower(gate, behind, chunks):
    """Neither a byte more nor a byte less than was declared."""
    reply = _asked(gate, chunks=chunks)
    assert (reply.status, behind.bodies) == (400, [])
    assert reply.headers[b"connection"] == b"close"


def test_body_that_does_not_come_is_cut(gate, behind):
    """Who does not send its body in time is told so and cut off."""
    reply = _asked(gate, chunks=())
    assert (reply.status, reply.headers[b"connection"], behind.bodies) == (408, b"close", [])


def test_large_body_gets_time_for_its_size():
    """64 MiB may take as long as a slow line needs; a small body may not."""
    assert Limits().body_deadline_s(1000) == 60
    assert Limits().body_deadline_s(64 * 2**20) == 60 + 512  # 128 KiB a second


def test_one_member_cannot_hold_more_than_its_share(gate, behind):
    """Two requests at a time are this test's bound: the third hears 503, and its place is free again afterwards."""

    async def three():
        slow = [asyncio.create_task(ask(gate, PULL, [LENGTH, *signed(NODE)], chunks=())) for _ in range(2)]
        await asyncio.sleep(0)
        third = await ask(gate, PULL, [LENGTH, *signed(NODE)], chunks=[b"body"])
        return (
            third,
            [(await task).status for task in slow],
            await ask(gate, PULL, [LENGTH, *signed(NODE)], chunks=[b"body"]),
        )

    third, slow, fourth = asyncio.run(three())
    assert (third.status, slow, fourth.status) == (503, [408, 408], 200)


@pytest.mark.parametrize("after_start", [False, True])
def test_what_flower_raises_tells_nothing(gate, behind, caplog, after_start):
    """An exception becomes a 500, or a broken answer, and a line with its kind only."""
    behind.error, behind.after_start = RuntimeError("patient 17"), after_start
    reply = _asked(gate)
    assert reply.status == (200 if after_start else 500)
    assert b"patient" not in reply.body
    assert "RuntimeError" in caplog.text
    assert "patient" not in caplog.text


def test_public_gate_passes_no_lifespan(gate, behind):
    """Only the control port starts and stops Flower."""
    _asked(gate, type="lifespan")
    assert behind.scopes == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([(b"x-discreet-token", b"right")], 200),
        ([], 401),
        ([(b"x-discreet-token", b"")], 401),
        ([(b"x-discreet-token", b"wrong")], 401),
        ([(b"x-discreet-token", b"right2")], 401),
        ([(b"x-discreet-token", b"\xff")], 401),
        ([(b"x-discreet-token", b"right"), (b"x-discreet-token", b"right")], 401),
        ([(b"authorization", b"right")], 401),
    ],
)
@pytest.mark.parametrize("path", ["/v1/control/start-run", "/health", "/v1/fleet/activate-node", "/anything"])
def test_control_gate_asks_every_path_for_the_token(behind, headers, status, path):
    """Without the exact token, once, nothing reaches Flower, whatever the path."""
    gate = ControlGate(behind, b"right")
    assert _asked(gate, path, headers).status == status
    assert bool(behind.bodies) == (status == 200)


def test_control_gate_lets_flower_start_and_no_websocket_in(behind):
    """The lifespan passes; a websocket is closed."""
    gate = ControlGate(behind, b"right")
    _asked(gate, type="lifespan")
    assert _asked(gate, headers=[(b"x-discreet-token", b"right")], type="websocket").status == 1008
    assert behind.scopes == ["lifespan"]


def test_headers_and_window_are_those_of_this_flower():
    """What the gate reads is what this Flower's nodes send, and its window is neither wider nor narrower."""
    from flwr.common import constant as common
    from flwr.supercore import constant

    assert constant.FLEET_HTTP_PUBLIC_KEY_HEADER.encode() == PUBLIC_KEY
    assert constant.FLEET_HTTP_SIGNATURE_HEADER.encode() == SIGNATURE
    assert common.TIMESTAMP_HEADER.encode() == TIMESTAMP
    assert Limits().youngest_s == -common.SYSTEM_TIME_TOLERANCE
    assert Limits().oldest_s == common.TIMESTAMP_TOLERANCE + common.SYSTEM_TIME_TOLERANCE
