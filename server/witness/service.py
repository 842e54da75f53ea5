"""The witness's gRPC service: mutual TLS, members only, two methods and a health check.

Each handler takes its request as a stream, which on the wire is the same as one message: so who calls, and for how
long, is checked before a byte of the request is read, and no call can hold a thread for longer than its deadline.
"""

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2

from common import witness_wire as wire
from common.consortium import keys
from common.consortium.identity import Identity
from common.consortium.members import Member
from common.errors import ConsortiumError, WireError, WitnessError
from common.transparency.cosignatures import cosign
from common.transparency.notes import VerifierKey
from server.witness.callers import Callers
from server.witness.store import Store

log = logging.getLogger("discreet.witness")

THREADS = 8
_OPTIONS = (
    ("grpc.max_receive_message_length", wire.LARGEST_MESSAGE),
    ("grpc.max_send_message_length", wire.LARGEST_MESSAGE),
    ("grpc.max_metadata_size", 8_192),
    ("grpc.max_concurrent_streams", THREADS),
    ("grpc.max_connection_idle_ms", 600_000),
    ("grpc.so_reuseport", 0),  # a second witness on this port is an error, and not half of the calls
)

Handler = Callable[[bytes, Member], bytes]


class _RefusedError(Exception):
    """What a caller is answered instead."""

    def __init__(self, code: grpc.StatusCode, words: str) -> None:
        super().__init__(words)
        self.code, self.words = code, words


@dataclass(frozen=True, kw_only=True)
class Running:
    """A witness that answers.

    Args:
        address: host:port where it listens.
        server: gRPC's.
        store: its memory.
    """

    address: str
    server: grpc.Server
    store: Store

    def stop(self, *, grace_s: float = 2.0) -> None:
        """Let calls under way end, then stop and let go of the memory."""
        self.server.stop(grace_s).wait()
        self.store.close()


def start(own: Identity, *, store: Store, host: str, port: int) -> Running:
    """Listen and answer, in threads of its own.

    Args:
        own: the witness's identity.
        store: its memory.
        host: where to listen.
        port: where to listen; 0 for any.

    Raises:
        ConsortiumError: the identity, its certificate or its roster is not valid, or it is no witness.
        WitnessError: the port is taken.
    """
    if own.role != "witness":
        raise ConsortiumError(f"{own.folder}: expected the identity of a witness, got one of {own.role}. Name another.")
    service = Service(own, Callers(own), store)
    server = grpc.server(
        ThreadPoolExecutor(THREADS, thread_name_prefix="witness"), options=_OPTIONS, maximum_concurrent_rpcs=2 * THREADS
    )
    server.add_generic_rpc_handlers(service.handlers())
    shown = f"[{host}]" if ":" in host else host
    try:
        bound = server.add_secure_port(f"{shown}:{port}", _credentials(own))
    except RuntimeError as error:
        raise WitnessError(f"{shown}:{port}: the witness cannot listen there ({error}). Is the port taken?") from error
    server.start()
    return Running(address=f"{shown}:{bound}", server=server, store=store)


class Service:
    """What a witness answers.

    Guarantees:
        Nobody but an active member of the roster gets any other answer than PERMISSION_DENIED.
        Only the owner of a ledger has it cosigned; whatever else is in a ledger is never asked for.
        What leaves is said in words of ours: no exception's text.
    """

    def __init__(self, own: Identity, callers: Callers, store: Store) -> None:
        self._own, self._callers, self._store = own, callers, store

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """Return what gRPC needs to know: no reflection."""
        witness = {"AddCheckpoint": self._handler(self._add_checkpoint), "Latest": self._handler(self._latest)}
        check = {"Check": self._handler(self._check)}
        return (
            grpc.method_handlers_generic_handler(wire.SERVICE, witness),
            grpc.method_handlers_generic_handler(health.SERVICE_NAME, check),
        )

    def _handler(self, answer: Handler) -> grpc.RpcMethodHandler:
        def handle(requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            try:
                return self._answered(answer, requests, context)
            except _RefusedError as error:
                code, words = error.code, error.words
            except WireError as error:
                log.warning("%s: refused: %s", context.peer(), error)
                code, words = grpc.StatusCode.INVALID_ARGUMENT, "malformed, or not signed by the ledger"
            except WitnessError as error:
                log.error("%s", error)  # noqa: TRY400 - it is expected: no traceback
                code, words = grpc.StatusCode.UNAVAILABLE, "the witness cannot answer now"
            except grpc.RpcError:
                code, words = grpc.StatusCode.CANCELLED, "the call is over"
            except Exception:
                log.exception("a call failed")
                code, words = grpc.StatusCode.INTERNAL, "the witness failed"
            context.abort(code, words)
            raise AssertionError  # abort never returns

        return grpc.stream_unary_rpc_method_handler(handle)

    def _answered(self, answer: Handler, requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        """Check who calls and for how long, and only then read what is asked."""
        member = self._caller(context)
        remaining = context.time_remaining()
        if remaining is None or remaining > wire.LONGEST_CALL_S:
            raise _RefusedError(grpc.StatusCode.INVALID_ARGUMENT, f"deadline: at most {wire.LONGEST_CALL_S:.0f} s")
        request = next(requests, None)
        if request is None:
            raise _RefusedError(grpc.StatusCode.INVALID_ARGUMENT, "expected a message")
        return answer(request, member)

    def _caller(self, context: grpc.ServicerContext) -> Member:
        pems = context.auth_context().get("x509_pem_cert", ())
        try:
            if len(pems) != 1:
                raise ConsortiumError("certificate: expected one, got none.")  # noqa: TRY301 - one way out for all
            return self._callers.member(pems[0])
        except ConsortiumError as error:
            log.warning("%s: turned away: %s", context.peer(), error)
            words = "expected an active member of the roster"
            raise _RefusedError(grpc.StatusCode.PERMISSION_DENIED, words) from error

    def _add_checkpoint(self, data: bytes, member: Member) -> bytes:
        addition = wire.decode_addition(data)
        if not member.ledger:
            raise _RefusedError(grpc.StatusCode.NOT_FOUND, "the roster names no ledger of this member")
        answer = self._store.add(VerifierKey.parse(member.ledger), addition, self._cosigned)
        if isinstance(answer, wire.Conflict):
            log.warning("%s: %s, cosigned last was size %d", member.name, answer.word, answer.size)
            raise _RefusedError(grpc.StatusCode.FAILED_PRECONDITION, wire.encode(answer).decode())
        return wire.encode(wire.Cosigning(line=answer))

    def _latest(self, data: bytes, member: Member) -> bytes:
        del member  # any active one: an auditor too
        question = wire.decode_question(data)
        if not self._callers.knows(question.ledger):
            raise _RefusedError(grpc.StatusCode.NOT_FOUND, "the roster names no such ledger")
        return wire.encode(self._store.newest(question.ledger))

    def _check(self, data: bytes, member: Member) -> bytes:
        del member
        try:
            asked = health_pb2.HealthCheckRequest.FromString(data).service
        except Exception as error:
            raise WireError("health: expected a HealthCheckRequest") from error
        if asked not in {"", wire.SERVICE}:
            raise _RefusedError(grpc.StatusCode.NOT_FOUND, "no such service")
        answer: bytes = health_pb2.HealthCheckResponse(
            status=health_pb2.HealthCheckResponse.SERVING
        ).SerializeToString()
        return answer

    def _cosigned(self, note: str) -> str:
        return cosign(note, self._own.signer, time_s=int(time.time()))


def _credentials(own: Identity) -> Any:
    """Mutual TLS with the consortium's authority alone."""
    pair = (keys.read_private(own.tls_key), own.tls_certificate.read_bytes())
    return grpc.ssl_server_credentials([pair], root_certificates=own.authority.read_bytes(), require_client_auth=True)
