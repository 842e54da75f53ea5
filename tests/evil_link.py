"""A link that lies, as a process of its own: the server's own code with a liar between its gates and Flower.

    python evil_link.py serve FOLDER --host H --port P
    python evil_link.py anyway serve FOLDER ...    with whatever certificate lies there

What it does stands in FOLDER/lies.json, a number of a round and a lie, and may change while it runs:

    weights   the first organisation's order comes with other weights
    swap      the first two organisations get each other's orders
    replay    the first organisation gets its order of an earlier round under the new message's name
    refusal   the first organisation's report becomes a refusal that nobody signed
    error     the first organisation's report becomes an error of the link's own
"""

import json
import ssl
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Error
from flwr.app.message import make_message
from flwr.common.serde import message_from_proto
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse
from flwr.proto.message_pb2 import ObjectTree, PullObjectRequest, PullObjectResponse, PushObjectRequest
from flwr.proto.runtime_pb2 import PullAppMessagesResponse, PushAppMessagesRequest

import discreet
from common.consortium import certificates
from common.letters import config
from common.packing import packed
from server.link import bodies, flower_app, serving

FLEET, RUNTIME = "/v1/fleet/", "/v1/runtime/"
LETTER = b"ConfigRecord"
FORGED = {"refusal": {"word": "budget-spent"}, "seal": {"signature": b"x" * 64}}


class Liar:
    """Passes requests on to Flower and changes some of them, or of the answers."""

    def __init__(self, app: Any, lies: Path) -> None:
        self.app, self.lies = app, lies
        self.round, self.order = "", []  # the newest orders: round, nodes
        self.trees: dict[tuple[int, str], ObjectTree] = {}  # of orders, by node and round
        self.kept: dict[str, bytes] = {}  # parts of orders
        self.reports: set[str] = set()  # letters that the first organisation sent in this round
        self.invented: dict[str, bytes] = {}  # parts that nobody sent

    @property
    def lie(self) -> str:
        """What is to be done in this round."""
        try:
            return str(json.loads(self.lies.read_text()).get(self.round, ""))
        except (OSError, ValueError):
            return ""

    @property
    def first(self) -> int:
        """The first organisation's node."""
        return self.order[0] if self.order else 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Let one request through."""
        path = scope.get("path", "")
        if scope["type"] != "http" or not path.startswith((FLEET, RUNTIME)):
            await self.app(scope, receive, send)
            return
        body = self.asked(path, await _whole(receive))
        headers = [pair for pair in scope["headers"] if pair[0] != b"content-length"]
        scope = {**scope, "headers": [*headers, (b"content-length", str(len(body)).encode())]}
        status, head, answer = await _answer(self.app, scope, bodies.replayed(body, receive))
        if path == RUNTIME + "pull-object" and PullObjectRequest.FromString(body).object_id in self.invented:
            status, head, answer = 200, [(b"content-type", b"application/protobuf")], b""
        if status == 200:
            answer = self.answered(path, body, answer)
        head = [pair for pair in head if pair[0].lower() != b"content-length"]
        head.append((b"content-length", str(len(answer)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": head})
        await send({"type": "http.response.body", "body": answer})

    def asked(self, path: str, body: bytes) -> bytes:
        """What Flower is told instead."""
        if path == RUNTIME + "push-messages":
            return self._orders(PushAppMessagesRequest.FromString(body))
        if path == FLEET + "push-object":
            part = PushObjectRequest.FromString(body)
            if part.node.node_id == self.first and part.object_content.startswith(LETTER):
                self.reports.add(part.object_id)
        return body

    def answered(self, path: str, body: bytes, answer: bytes) -> bytes:
        """What the one who asked is told instead."""
        match path:
            case "/v1/fleet/pull-messages":
                return self._messages(PullMessagesRequest.FromString(body), PullMessagesResponse.FromString(answer))
            case "/v1/fleet/pull-object":
                return self._part(PullObjectRequest.FromString(body), answer)
            case "/v1/runtime/pull-messages":
                return self._replies(PullAppMessagesResponse.FromString(answer))
            case "/v1/runtime/pull-object":
                return self._reply_part(PullObjectRequest.FromString(body), answer)
        return answer

    def _orders(self, request: PushAppMessagesRequest) -> bytes:
        """Note who is ordered what, and perhaps swap two of them."""
        messages = request.messages_list
        if messages and messages[0].metadata.message_type == "train":
            self.round = messages[0].metadata.group_id
            self.order = [message.metadata.dst_node_id for message in messages]
            self.reports.clear()
            if self.lie == "swap":
                one, other = messages[0].metadata, messages[1].metadata
                one.dst_node_id, other.dst_node_id = other.dst_node_id, one.dst_node_id
        return request.SerializeToString()

    def _messages(self, request: PullMessagesRequest, answer: PullMessagesResponse) -> bytes:
        """Keep what an order is made of, and perhaps give that of an earlier round."""
        node = request.node.node_id
        for number, message in enumerate(answer.messages_list):
            if message.metadata.message_type == "train":
                tree = answer.message_object_trees[number]
                self.trees[node, message.metadata.group_id] = ObjectTree.FromString(tree.SerializeToString())
                if self.lie == "replay" and node == self.first:
                    earliest = min(key for key in self.trees if key[0] == node)
                    tree.CopyFrom(self.trees[earliest])
        return answer.SerializeToString()

    def _part(self, request: PullObjectRequest, answer: bytes) -> bytes:
        """A part of an order: kept, changed, or brought back."""
        part = PullObjectResponse.FromString(answer)
        if part.object_available:
            self.kept[request.object_id] = part.object_content
        elif request.object_id in self.kept:
            content = self.kept[request.object_id]
            part = PullObjectResponse(object_found=True, object_available=True, object_content=content)
        is_letter = part.object_content.startswith(LETTER)
        if self.lie == "weights" and request.node.node_id == self.first and is_letter:
            content = bytearray(part.object_content)
            content[len(content) // 2] ^= 1  # most of it is weights
            part.object_content = bytes(content)
        return part.SerializeToString()

    def _replies(self, answer: PullAppMessagesResponse) -> bytes:
        """Perhaps say that an organisation failed."""
        for number, message in enumerate(answer.messages_list):
            if message.metadata.src_node_id != self.first or message.metadata.message_type != "train":
                continue
            if self.lie == "error":
                invented = make_message(metadata=message_from_proto(message).metadata, error=Error(7, "budget-spent"))
                name = message.metadata.message_id
                answer.message_object_trees[number].CopyFrom(ObjectTree(object_id=name))
                self.invented[name] = invented.deflate()
        return answer.SerializeToString()

    def _reply_part(self, request: PullObjectRequest, answer: bytes) -> bytes:
        """Perhaps a refusal instead of the report."""
        part = PullObjectResponse.FromString(answer)
        if request.object_id in self.invented:
            content = self.invented[request.object_id]
            part = PullObjectResponse(object_found=True, object_available=True, object_content=content)
        if self.lie == "refusal" and request.object_id in self.reports:
            part.object_content = ConfigRecord.deflate(config(packed(FORGED, {})))
        return part.SerializeToString()


async def _whole(receive: Callable[[], Awaitable[Any]]) -> bytes:
    chunks, more = [], True
    while more:
        message = await receive()
        chunks.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(chunks)


async def _answer(app: Any, scope: Any, receive: Any) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """What Flower answers."""
    head: dict[str, Any] = {}
    chunks = []

    async def take(message: Any) -> None:
        if message["type"] == "http.response.start":
            head.update(message)
        else:
            chunks.append(message.get("body", b""))

    await app(scope, receive, take)
    return head["status"], list(head.get("headers", [])), b"".join(chunks)


honest = flower_app.load


def lying(folder: Any, *, secret: bytes) -> flower_app.FlowerApp:
    """Flower's app behind a liar."""
    made = honest(folder, secret=secret)
    made.app = Liar(made.app, folder.consortium / "lies.json")
    return made


def unchecked(folder: Any) -> ssl.SSLContext:
    """The certificate that is there, expired or of another authority."""
    return certificates.server_context(folder.server_certificate, folder.server_key)


if __name__ == "__main__":
    if sys.argv[1] == "anyway":
        del sys.argv[1]
        serving._context = unchecked
    serving.flower_app.load = lying
    discreet.main()
