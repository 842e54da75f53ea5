"""A link in memory: Flower's ten calls over real TLS, for one node, and a coordinator that signs what it likes."""

import queue
import ssl
import threading
import time
import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from flwr.app import Message, RecordDict
from flwr.app.message.message import make_message, remove_content_from_message
from flwr.app.metadata import Metadata
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto, message_to_proto, run_to_proto
from flwr.proto import fab_pb2, fleet_pb2, heartbeat_pb2, message_pb2, run_pb2
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run
from sample_consortium import SampleConsortium

from common import bundle, letters
from common.consortium import certificates, seals
from common.messages import Order
from common.wire import encode_order
from server.coordinator.parties import Parties

NODE = 7
REQUESTS = {
    "activate-node": fleet_pb2.ActivateNodeRequest,
    "deactivate-node": fleet_pb2.DeactivateNodeRequest,
    "send-node-heartbeat": heartbeat_pb2.SendNodeHeartbeatRequest,
    "pull-messages": fleet_pb2.PullMessagesRequest,
    "push-messages": fleet_pb2.PushMessagesRequest,
    "get-run": run_pb2.GetRunRequest,
    "get-fab": fab_pb2.GetFabRequest,
    "push-object": message_pb2.PushObjectRequest,
    "pull-object": message_pb2.PullObjectRequest,
    "confirm-message-received": message_pb2.ConfirmMessageReceivedRequest,
}


def shim(**files: str) -> bytes:
    """The bundle that Flower makes of the shim, and of other files."""
    content = {"pyproject.toml": bundle.PYPROJECT.encode()}
    content |= {name.replace("__", "."): text.encode() for name, text in files.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a library that Flower builds with
        return build_fab_from_files(content)[0]


@dataclass
class FakeRun:
    """What the link says of a run."""

    scenario: Any
    bundle: bytes = field(default_factory=shim)


class FakeLink:
    """Hands out messages and takes their answers.

    `broken` maps a call to the HTTP answer (status, body) that it gets instead; `calls` counts what was asked;
    `deaf` names calls that are carried out without an answer getting through.
    """

    def __init__(self, consortium: SampleConsortium, *, context: ssl.SSLContext | None = None, port: int = 0) -> None:
        self.runs: dict[int, FakeRun] = {}
        self.broken: dict[str, tuple[int, str]] = {}
        self.deaf: set[str] = set()
        self.is_forgetful = False
        self.heads: defaultdict[str, set[str]] = defaultdict(set)  # names of the answers to a message
        self.calls: Counter[str] = Counter()
        self.confirmed: list[str] = []
        self.online = False
        self._messages: queue.Queue[Message] = queue.Queue()
        self._objects: dict[str, bytes] = {}
        self._replies: dict[str, tuple[message_pb2.Message, message_pb2.ObjectTree]] = {}
        folder = consortium.folder
        context = context or certificates.server_context(folder.server_certificate, folder.server_key)
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    @property
    def address(self) -> str:
        return f"localhost:{self.port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def send(self, content: RecordDict, *, run: int, kind: str = "train", ttl_s: float = 600.0) -> str:
        """Put a message into the node's box; return its name."""
        now = time.time()
        metadata = Metadata(run, "", 1, NODE, "", "1", now, ttl_s, kind)
        message = make_message(metadata, content=content)
        with no_object_id_recompute():
            message.metadata.__dict__["_message_id"] = message.object_id
            for name, part in get_all_nested_objects(message).items():
                self._objects[name] = part.deflate()
        self._messages.put(message)
        return str(message.metadata.message_id)

    def reply(self, name: str, *, within_s: float = 30.0) -> RecordDict:
        """Wait for the answer to a message, and return its content."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            if name in self._replies and name in self.confirmed:
                head, tree = self._replies[name]
                parts = {node.object_id: self._objects[node.object_id] for node in iterate_object_tree(tree)}
                message = inflate_object_from_contents(tree.object_id, parts)
                assert head.metadata.reply_to_message_id == name
                return message.content
            time.sleep(0.02)
        raise TimeoutError(f"no answer within {within_s} s; asked so far: {dict(self.calls)}")

    def said(self, name: str) -> tuple[letters.Records, dict[str, bytes]]:
        """Wait for the answer to a message, and return its records and arrays."""
        return letters.opened(self.reply(name))

    def _answer(self, call: str, request: Any) -> Any:  # noqa: C901, PLR0911 - one call after the other
        match call:
            case "activate-node":
                if self.online:
                    return 412, '{"code": 2004, "detail": "Failed to activate SuperNode."}'
                self.online = True
                return fleet_pb2.ActivateNodeResponse(node_id=NODE)
            case "deactivate-node":
                if not self.online:
                    return 412, '{"code": 2005, "detail": "Failed to deactivate SuperNode."}'
                self.online = False
                return fleet_pb2.DeactivateNodeResponse()
            case "send-node-heartbeat":
                return heartbeat_pb2.SendNodeHeartbeatResponse(success=True)
            case "pull-messages":
                return self._pull()
            case "push-messages":
                (head,), (tree,) = request.messages_list, request.message_object_trees
                if self.is_forgetful or self.heads[head.metadata.reply_to_message_id] - {head.metadata.message_id}:
                    return fleet_pb2.PushMessagesResponse(session_id="s")
                self.heads[head.metadata.reply_to_message_id].add(head.metadata.message_id)
                self._replies[head.metadata.reply_to_message_id] = head, tree
                missing = [node.object_id for node in iterate_object_tree(tree) if node.object_id not in self._objects]
                return fleet_pb2.PushMessagesResponse(objects_to_push=missing, session_id="s")
            case "get-run":
                run = Run.create_empty(request.run_id)
                run.override_config = {"scenario": self.runs[request.run_id].scenario}
                run.fab_hash = sha256(self.runs[request.run_id].bundle).hexdigest()
                return run_pb2.GetRunResponse(run=run_to_proto(run))
            case "get-fab":
                return fab_pb2.GetFabResponse(
                    fab=fab_to_proto(Fab(request.hash_str, self.runs[request.run_id].bundle, {}))
                )
            case "push-object":
                self._objects[request.object_id] = request.object_content
                return message_pb2.PushObjectResponse(stored=True)
            case "pull-object":
                content = self._objects.get(request.object_id, b"")
                return message_pb2.PullObjectResponse(
                    object_found=True, object_available=bool(content), object_content=content
                )
        self.confirmed.append(request.message_object_id)
        return message_pb2.ConfirmMessageReceivedResponse()

    def _pull(self) -> fleet_pb2.PullMessagesResponse:
        try:
            message = self._messages.get_nowait()
        except queue.Empty:
            return fleet_pb2.PullMessagesResponse()
        with no_object_id_recompute():
            tree = get_object_tree(message)
        bare = message_to_proto(remove_content_from_message(message))
        return fleet_pb2.PullMessagesResponse(messages_list=[bare], message_object_trees=[tree])

    def _handler(link) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - the handler has a self of its own
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # head and body in one packet: no waiting for the peer's acknowledgement

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                call = self.path.removeprefix("/v1/fleet/")
                link.calls[call] += 1
                if call in link.broken:
                    answer: Any = link.broken[call]
                elif call not in REQUESTS:
                    answer = (404, "")
                else:
                    answer = link._answer(call, REQUESTS[call].FromString(body))
                    answer = (503, "") if call in link.deaf else answer
                status, content = (200, answer.SerializeToString()) if not isinstance(answer, tuple) else answer
                data = content if isinstance(content, bytes) else content.encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        return Handler


@dataclass(frozen=True, kw_only=True)
class Coordinator:
    """Signs orders and questions for owner `party` of one run of a fake link."""

    consortium: SampleConsortium
    link: FakeLink
    scenario: str
    flower_run: int = 2**63 + 5
    party: int = 0
    policy: str = ""

    def begin(self, **changes: Any) -> "Coordinator":
        """Let the link know the run."""
        self.link.runs[self.flower_run] = FakeRun(scenario=self.scenario, **changes)
        return self

    def parties(self) -> Parties:
        roster = self.consortium.roster
        return Parties(
            roster=roster,
            signer=self.consortium.coordinator.signer,
            flower_run=self.flower_run,
            scenario=sha256(self.scenario.encode()).hexdigest(),
            owners=roster.owners,
            nodes=tuple(range(len(roster.owners))),
            policies=dict.fromkeys(range(len(roster.owners)), self.policy),
        )

    def told(self, policy: str) -> "Coordinator":
        """The same, once it knows the owner's policy."""
        return replace(self, policy=policy)

    def ask(self, run: str, kind: str = "offer") -> str:
        """Send a question; return the message's name."""
        statement = self.parties().question(self.party, kind=kind, run=run)
        signature = seals.seal(self.consortium.coordinator.signer, statement)
        content = letters.letter({"question": {"kind": kind, "run": run}, "seal": {"signature": signature}}, {})
        return self.link.send(content, run=self.flower_run, kind="query")

    def order(self, order: Order, *, tamper: dict[str, Any] | None = None, signature: bytes | None = None) -> str:
        """Send an order; return the message's name. What `tamper` names is changed after it was signed."""
        _, seal = self.sealed(order)
        scalars = dict(encode_order(order).scalars) | (tamper or {})
        weights = np.ascontiguousarray(order.weights_P, "<f4").tobytes()
        sealed = {"signature": signature or seal, "policy": self.policy}
        content = letters.letter({"order": scalars, "seal": sealed}, {"weights": weights})
        return self.link.send(content, run=self.flower_run)

    def sealed(self, order: Order) -> tuple[bytes, bytes]:
        """The statement of an order, and the coordinator's signature over it."""
        frame = encode_order(order)
        weights = sha256(np.ascontiguousarray(order.weights_P, "<f4").tobytes()).hexdigest()
        statement = self.parties().order(self.party, scalars=frame.scalars, weights=weights)
        return statement, seals.seal(self.consortium.coordinator.signer, statement)

    def refuse_unsigned(self, order: Order, reply: tuple[letters.Records, dict[str, bytes]]) -> str:
        """Raise unless the owner signed this reply to this order; return the word of a refusal, or nothing."""
        statement, _ = self.sealed(order)
        records, arrays = reply
        signature = records["seal"]["signature"]
        if "refusal" in records:
            word = str(records["refusal"]["word"])
            self.parties().refuse_unsealed_refusal(self.party, signature, order=statement, word=word)
            return word
        self.parties().refuse_unsealed_report(
            self.party,
            signature,
            order=statement,
            code=str(records["seal"]["code"]),
            scalars=records["report"],
            update=sha256(arrays["update"]).hexdigest(),
        )
        return ""
