"""The link as Flower speaks it: start and stop runs, name the nodes, take a run's task.

The only module of the coordinator that knows Flower's control and runtime calls. Every call carries the link's token. A
link that restarts is waited for; one that stays away raises LinkError.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
from flwr.common.constant import Status
from flwr.common.serde import run_from_proto, user_config_to_proto
from flwr.proto.control_pb2 import ListNodesRequest, ListRunsRequest, StartRunRequest, StopRunRequest
from flwr.proto.fab_pb2 import Fab
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.retry.retry_invoker import RetryInvoker, exponential
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity

from common import bundle
from common.errors import LinkError, RunFailedError
from server.link.settings import LinkAddress

log = logging.getLogger("discreet.server")

OUTAGE_S = 300.0  # a link that is away for longer is given up
RETRY_AT_MOST_S = 1
HEARTBEAT_S = 10.0  # Flower forgets a task after 60
SERVER_APP = "flwr-serverapp"
_NO_TASK = '"code":1008'  # Flower's AUTHENTICATION_FAILED


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node that the link knows."""

    id: int
    public_key: bytes
    status: str


@dataclass(frozen=True, kw_only=True)
class FlowerRun:
    """A run that the link knows, and its state: pending, starting or running, or how it ended."""

    id: int
    state: str
    is_over: bool


class _LinkToken:
    """Puts the link's token on each request."""

    def __init__(self, address: LinkAddress) -> None:
        self._header = address.bearer()

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        context.request.headers.update(self._header)
        return call_next(context)


class FlowerLink:
    """The control port of a link on this machine."""

    def __init__(self, address: LinkAddress) -> None:
        self._address = address
        self._url = f"http://{address.control}"
        self._token = _LinkToken(address)
        self._control = ControlHttpClient(self._url, interceptors=[self._token], retry_invoker=patient())

    def start_run(self, scenario: str) -> int:
        """Start a Flower run of our bundle that carries a scenario's text, and return its number."""
        fab = Fab(hash_str=bundle.SHA256, content=bundle.shim())
        request = StartRunRequest(fab=fab, override_config=user_config_to_proto({"scenario": scenario}))
        with reached():
            answer = self._control.StartRun(request)
        return int(answer.run_id)

    def runs(self) -> list[FlowerRun]:
        """Return the newest runs, the last one first."""
        with reached():
            found = [
                run_from_proto(run) for run in self._control.ListRuns(ListRunsRequest(limit=100)).run_dict.values()
            ]
        newest = sorted(found, key=lambda run: run.pending_at, reverse=True)
        return [_flower_run(run) for run in newest]

    def stop_run(self, run: FlowerRun) -> None:
        """End a run that goes on."""
        with reached():
            self._control.StopRun(StopRunRequest(run_id=run.id))

    def end_orphans(self) -> None:
        """End the runs whose coordinator is gone: it was killed, and the link would wait a minute for its heartbeat."""
        for run in self.runs():
            if not run.is_over:
                log.warning("Flower run %d was left by a coordinator that is gone; it is ended", run.id)
                self.stop_run(run)

    def nodes(self) -> list[Node]:
        """Return the nodes that are registered."""
        with reached():
            found = self._control.ListNodes(ListNodesRequest()).nodes_info
        return [Node(id=node.node_id, public_key=bytes(node.public_key), status=node.status) for node in found]

    @contextmanager
    def task(self, flower_run: int) -> "Iterator[Task]":
        """Hold the server's task of a run, and say at its end whether it failed."""
        secret = SuperExecAuthHttpInterceptor(
            master_secret=self._address.secret.read_bytes(), protected_methods={"/flwr.proto.Runtime/AcquireTask"}
        )
        version = RuntimeVersionHttpInterceptor(component_name=SERVER_APP)
        with reached(), RuntimeHttpClient(self._url, interceptors=[self._token, version, secret]) as client:
            answer = client.AcquireTask(AcquireTaskRequest(supported_task_types=[SERVER_APP]))
        if not answer.token or answer.task.run_id != flower_run:
            raise LinkError(
                f"The link gave the task of another run, or none (expected run {flower_run}). `discreet status` shows "
                f"what is going on; `discreet stop` ends it."
            )
        task = Task(self, str(answer.token))
        with task.alive():
            yield task

    def runtime(self, token: str, *, is_patient: bool = True) -> RuntimeHttpClient:
        """Return a client for the calls of a task; one that is patient waits for a link that restarts."""
        version, task = RuntimeVersionHttpInterceptor(component_name=SERVER_APP), RuntimeTokenHttpInterceptor(token)
        return RuntimeHttpClient(
            self._url, interceptors=[self._token, version, task], retry_invoker=patient() if is_patient else None
        )


class Task:
    """The server's side of a Flower run, which this process has taken."""

    def __init__(self, link: FlowerLink, token: str) -> None:
        self._link, self.token = link, token
        self._over = threading.Event()

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Keep the task alive within, and report its end."""
        with self._link.runtime(self.token) as client:
            with reached():
                given = client.PullTaskInput(PullTaskInputRequest())
            self.run: Run = run_from_proto(given.run)
            TaskIdentity.task_id, TaskIdentity.run_id = given.task_id, self.run.run_id
            TaskIdentity.node_id = given.context.node_id
            beating = threading.Thread(target=self._beat, daemon=True)
            beating.start()
            ending, why = "failed", "the coordinator ended it"
            try:
                yield
                ending, why = "completed", ""
            except RunNotRunningException as error:
                raise RunFailedError(
                    "The run was stopped, or the link gave it up. It can be resumed: discreet run --resume DIR"
                ) from error
            finally:
                self._over.set()
                beating.join()
                self._report(ending, why)

    def _beat(self) -> None:
        """Tell the link now and then that the task lives; what fails is tried again at the next beat."""
        with self._link.runtime(self.token, is_patient=False) as client:
            while not self._over.wait(HEARTBEAT_S):
                try:
                    client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
                except (httpx.HTTPError, RunNotRunningException):
                    continue  # the link restarts; the calls of the run itself say so when it stays away

    def _report(self, ending: str, why: str) -> None:
        """Say how the run ended; a link that has gone learns it from the silence."""
        with self._link.runtime(self.token, is_patient=False) as client:
            try:
                client.PushTaskOutput(PushTaskOutputRequest(sub_status=ending, details=why))
            except (httpx.HTTPError, RunNotRunningException):
                return


def _flower_run(run: Run) -> FlowerRun:
    is_over = run.status.status == Status.FINISHED
    return FlowerRun(id=run.run_id, state=run.status.sub_status if is_over else run.status.status, is_over=is_over)


@contextmanager
def reached() -> Iterator[None]:
    """Turn what HTTP says into LinkError."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        raise LinkError(f"The link refused: {error.response.status_code} {error.response.text[:200]}.") from error
    except httpx.HTTPError as error:
        raise LinkError(f"The link cannot be reached ({error}). Is `discreet serve` running here?") from error


def patient() -> RetryInvoker:
    """Return a way to repeat calls while the link restarts; what it refuses is not repeated."""
    return RetryInvoker(
        wait_gen_factory=lambda: exponential(base_delay=0.1, max_delay=RETRY_AT_MOST_S),
        recoverable_exceptions=(httpx.TransportError, httpx.HTTPStatusError),
        max_tries=None,
        max_time=OUTAGE_S,
        should_giveup=_is_an_answer,
    )


def _is_an_answer(error: Exception) -> bool:
    """Whether the link itself answered; RunNotRunningException where it says that the run is over."""
    if not isinstance(error, httpx.HTTPStatusError):
        return False
    if error.response.status_code == httpx.codes.FORBIDDEN or _is_without_task(error.response):
        raise RunNotRunningException
    return error.response.status_code not in {502, 503, 504}


def _is_without_task(response: httpx.Response) -> bool:
    """Whether the link has forgotten the task of a run: it was stopped. Our own gate's 401 says `token`."""
    return response.status_code == httpx.codes.UNAUTHORIZED and _NO_TASK in response.text
