"""The link as Flower speaks it, call by call: the only module of the node that knows Flower.

Its own functions would send a signal to this process when a key is refused, and try for ever inside; so the calls are
made one by one. Every failure is one of `client.node.link_errors`, and whatever does not decode is WireError. The
clients and interceptors used here are Flower's own of version 1.41; a test holds them to what is needed. Long, because
it is one side of one protocol, call by call.
"""

import ssl
import threading
from typing import cast

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message
from flwr.app.message.message import remove_content_from_message
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.common.serde import fab_from_proto, message_from_proto, message_to_proto, run_from_proto
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from client.node.asking import asked
from client.node.letters import Envelope, FlowerRun, Letter, Reply
from client.node.link_errors import KeyRefusedError, RejectedError, UnreachableError
from common.errors import WireError
from common.letters import letter, opened

TIMEOUT_S = 15.0
MOST_OBJECTS = 4096  # of one message: 20 GB of weights
MOST_BYTES = 4 << 30
OBJECT_WAIT_S = (0.05, 1.0)  # first and longest pause for an object that its sender has not sent yet
OBJECT_PATIENCE_S = 60.0
_HEAD = ""  # the step before an answer's parts


class _Version:
    """Says which Flower this is; Flower's own interceptor would end this process when the link's is another."""

    def __init__(self) -> None:
        self._headers = dict(RuntimeVersionMetadata.from_local_component("SuperNode").as_metadata())

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Add the headers."""
        context.request.headers.update(self._headers)
        return call_next(context)


class Fleet:
    """The calls that a node makes; any of them may raise a LinkError."""

    def __init__(self, address: str, *, key: ec.EllipticCurvePrivateKey, context: ssl.SSLContext | None) -> None:
        """Prepare to call a link.

        Args:
            address: host:port.
            key: the node's, which signs every call.
            context: TLS; None for a link without it, which tests have.
        """
        self._public = public_key_to_bytes(key.public_key())
        self._node = Node()
        self._parcel: _Parcel | None = None
        self._client = FleetHttpClient(
            f"{'https' if context else 'http'}://{address}",
            interceptors=[_Version(), NodeAuthHttpInterceptor(key, key.public_key())],
            verify=context or False,
            timeout=TIMEOUT_S,
        )

    def activate(self) -> int:
        """Say that the node is there; return the link's number of it."""
        request = ActivateNodeRequest(public_key=self._public, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
        self._node = Node(node_id=asked(self._client.ActivateNode, request).node_id)
        return int(self._node.node_id)

    def deactivate(self, number: int) -> None:
        """Say that the node is gone: without it, another one cannot take its place for a minute."""
        asked(self._client.DeactivateNode, DeactivateNodeRequest(node_id=number))

    def heartbeat(self) -> None:
        """Say that the node is still there; KeyRefusedError when the link does not know it any more."""
        request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
        if not asked(self._client.SendNodeHeartbeat, request).success:
            raise KeyRefusedError("the link does not know this node")

    def pull(self) -> Envelope | None:
        """Return the next message, or None when there is none."""
        answer = asked(self._client.PullMessages, PullMessagesRequest(node=self._node))
        if not answer.messages_list:
            return None
        head, tree = answer.messages_list[0], answer.message_object_trees[0]
        return Envelope(
            id=head.metadata.message_id,
            flower_run=head.metadata.run_id,
            expires=head.metadata.created_at + head.metadata.ttl,
            head=head.SerializeToString(),
            tree=tree.SerializeToString(),
        )

    def run(self, flower_run: int) -> FlowerRun:
        """Return what the link says of a run."""
        request = GetRunRequest(node=self._node, run_id=flower_run)
        found = run_from_proto(asked(self._client.GetRun, request).run)
        return FlowerRun(scenario=found.override_config.get("scenario"), bundle=found.fab_hash)

    def bundle(self, flower_run: int, name: str) -> bytes:
        """Return the bytes of a run's bundle."""
        request = GetFabRequest(node=self._node, hash_str=name, run_id=flower_run)
        return bytes(fab_from_proto(asked(self._client.GetFab, request).fab).content)

    def letter(self, envelope: Envelope, *, stop: threading.Event) -> Letter:
        """Return a message's content, or raise WireError for one that does not decode."""
        with _decoding():
            tree = ObjectTree.FromString(envelope.tree)
            names = list(dict.fromkeys(node.object_id for node in iterate_object_tree(tree)))
        if len(names) > MOST_OBJECTS:
            raise WireError(f"message: expected at most {MOST_OBJECTS} objects, got {len(names)}.")
        contents: dict[str, bytes] = {}
        size = 0
        for name in names:
            contents[name] = self._object(envelope.flower_run, name, stop)
            size += len(contents[name])
            if size > MOST_BYTES:
                raise WireError(f"message: expected at most {MOST_BYTES} bytes, got more.")
        with _decoding():
            return _letter(cast(Message, inflate_object_from_contents(tree.object_id, contents)))

    def push(self, envelope: Envelope, reply: Reply) -> None:
        """Send the answer to a message, whole; called again with the same reply, it goes on where it was cut off.

        The coordinator takes an answer's head from the link at once, and the link takes no second one: what is tried
        again must be the same message.
        """
        with no_object_id_recompute():
            if self._parcel is None or self._parcel.reply is not reply:
                self._parcel = _Parcel(envelope, reply)
            parcel = self._parcel
            if parcel.left is None:
                self._announce(parcel)
            while parcel.left:
                self._hand_over(parcel, parcel.left[0])
                parcel.left = parcel.left[1:]
        self._parcel = None

    def confirm(self, envelope: Envelope) -> None:
        """Say that a message is done with: the link may forget it."""
        request = ConfirmMessageReceivedRequest(
            node=self._node, run_id=envelope.flower_run, message_object_id=envelope.id
        )
        asked(self._client.ConfirmMessageReceived, request)

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()

    def _announce(self, parcel: "_Parcel") -> None:
        """Send an answer's head, and learn which of its parts the link wants."""
        is_again = parcel.was_tried(_HEAD)
        request = PushMessagesRequest(node=self._node, messages_list=[parcel.head], message_object_trees=[parcel.tree])
        taken = asked(self._client.PushMessages, request)
        wanted = set(taken.objects_to_push)
        if wanted:
            parcel.session = taken.session_id
            parcel.left = [name for name in parcel.objects if name in wanted]
        elif is_again:  # the first try came through, and was asked for: the link knows by the part where it belongs
            parcel.left = list(parcel.objects)
            parcel.tried.update(parcel.objects)
        else:
            raise RejectedError("nobody waits for it any more")

    def _hand_over(self, parcel: "_Parcel", name: str) -> None:
        """Send one part; one that was sent before, and not answered, the link may have already."""
        is_again = parcel.was_tried(name)
        part = PushObjectRequest(
            node=self._node,
            run_id=parcel.envelope.flower_run,
            object_id=name,
            object_content=parcel.objects[name].deflate(),
            session_id=parcel.session,
        )
        if not asked(self._client.PushObject, part).stored and not is_again:
            raise RejectedError("the link took the answer and not its content")

    def _object(self, flower_run: int, name: str, stop: threading.Event) -> bytes:
        """One object, waited for while its sender is still sending it."""
        request = PullObjectRequest(node=self._node, run_id=flower_run, object_id=name)
        pause, longest = OBJECT_WAIT_S
        waited = 0.0
        while True:
            answer = asked(self._client.PullObject, request)
            if not answer.object_found:
                raise RejectedError("a part of the message is gone")
            if answer.object_available:
                return bytes(answer.object_content)
            if waited > OBJECT_PATIENCE_S or stop.wait(pause):
                raise UnreachableError("a part of the message does not come")
            waited, pause = waited + pause, min(2 * pause, longest)


class _Parcel:
    """An answer on its way: made once, with what is still to be sent, and what was sent at least once."""

    def __init__(self, envelope: Envelope, reply: Reply) -> None:
        question = message_from_proto(ProtoMessage.FromString(envelope.head))
        arrays = {} if reply.update is None else {"update": reply.update}
        answer = Message(letter(reply.records, arrays), reply_to=question)
        answer.metadata.__dict__["_message_id"] = answer.object_id
        self.envelope, self.reply = envelope, reply
        self.objects = get_all_nested_objects(answer)
        self.head = message_to_proto(remove_content_from_message(answer))
        self.tree = get_object_tree(answer)
        self.session = ""
        self.left: list[str] | None = None  # before the link has said what it wants
        self.tried: set[str] = set()

    def was_tried(self, step: str) -> bool:
        """Note that a step is tried; whether it was before."""
        is_again = step in self.tried
        self.tried.add(step)
        return is_again


class _decoding:  # noqa: N801 - used as a function
    """Turn whatever Flower raises over foreign bytes into WireError."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, WireError):
            raise WireError(
                f"message: expected what Flower writes, got other bytes ({type(error).__name__})."
            ) from error


def _letter(message: Message) -> Letter:
    """A message's content as plain records."""
    records, arrays = opened(message.content)
    return Letter(kind=message.metadata.message_type.partition(".")[0], records=records, arrays=arrays)
