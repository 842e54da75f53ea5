"""Ray actors: virtual clients on the nodes of a Ray cluster, or on a Ray that is started on this machine.

The actors are our own. Flower's simulation runtime has some too, but it puts an actor that died back among the idle
ones, and sends the model anew with every message; here it is stored once, and Ray takes it to each node once. Nothing
of Ray is imported before it is asked for: it is an extra.
"""

import platform
import time
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, Context, Error, Message, RecordDict, UserConfig
from flwr.common.constant import ErrorCode

from common.errors import RunFailedError
from common.messages import Refusal
from simulations.engine import ray_cluster
from simulations.engine.executors import RUN_ID, call, identify, load_app, warm
from simulations.engine.parcels import same_arrays

PATIENCE_S = 120.0  # for the first actor to start
MAX_DEATHS = 3  # of actors in a row, none of which answered anything

Arrays = dict[str, ArrayRecord]
Actor = Any  # Ray is not there when types are checked
Reference = Any


class RayActors:
    """An executor on Ray actors of one core each.

    Guarantees:
        An actor that dies costs the one message it worked on, whose answer is the word `worker-died`; a new actor takes
        its place.
        An actor is asked one message at a time, and none before it is ready: where a cluster is busy, messages wait.
        No actor is asked whose node does not see the shards: RunFailedError says which node that is.
        A Ray that was started here listens on this machine's loopback alone, and ends with `close`; one that was
        joined is left as it was.
    """

    def __init__(self, app: str, run_config: UserConfig, *, address: str, count: int, most: int, on_gpu: bool) -> None:
        """Start or join Ray, and let the actors start while the caller goes on.

        Args:
            app: the client's app, as `module:attribute`.
            run_config: what every client finds in its context.
            address: `local` to start a Ray here, `auto` or `host:port` to join the cluster that this machine is of.
            count: how many actors, or 0 for as many as there are cores.
            most: more than so many are of no use.
            on_gpu: whether an actor needs a GPU, or its share of one where `count` is larger than their number.
        """
        self._app, self._run_config = app, run_config
        self._idle: list[Actor] = []
        self._starting: dict[Reference, Actor] = {}
        self._asked: dict[Reference, tuple[Actor, Message]] = {}
        self._stored: tuple[Arrays, Reference] | None = None
        self._deaths = 0
        self._ray = ray_cluster.joined(address, count=count)
        try:
            share = self._share(count) if on_gpu else 0.0
            self._kind = self._ray.remote(_Client).options(num_cpus=1, num_gpus=share)
            for _ in range(min(self._places(share), count or most, most)):
                self._start()
        except BaseException:
            self.close()
            raise

    def wait(self) -> None:
        """Wait until an actor is ready; the others join as they come."""
        deadline = time.monotonic() + PATIENCE_S
        while not self._idle:
            self._admit(deadline - time.monotonic())
            if time.monotonic() > deadline:
                raise RunFailedError(
                    f"No client could be started on Ray within {PATIENCE_S:.0f} s. Is the cluster busy? "
                    f"`ray status` says what it waits for; then resume the run."
                )

    def has_room(self) -> bool:
        """Whether an actor is idle."""
        return bool(self._idle)

    def submit(self, message: Message, node_config: UserConfig, state: RecordDict) -> None:
        """Hand a message to an idle actor."""
        arrays = {name: record for name, record in message.content.items() if isinstance(record, ArrayRecord)}
        rest = RecordDict({name: record for name, record in message.content.items() if name not in arrays})
        about = message.metadata
        light = Message(rest, about.dst_node_id, about.message_type, ttl=about.ttl, group_id=about.group_id)
        light.metadata.__dict__["_message_id"] = about.message_id
        actor = self._idle.pop()
        self._asked[actor.answer.remote(light, self._store(arrays), node_config, state)] = (actor, message)

    def answers(self, timeout_s: float) -> list[Message]:
        """Return the answers that are there, after waiting for at most `timeout_s` for the first."""
        return [self._receive(reference) for reference in self._admit(timeout_s)]

    def close(self) -> None:
        """End the actors, then Ray, or the connection to it."""
        for actor in [*self._idle, *self._starting.values(), *(actor for actor, _ in self._asked.values())]:
            self._ray.kill(actor)
        self._idle, self._starting, self._asked, self._stored = [], {}, {}, None
        self._ray.shutdown()

    def _share(self, count: int) -> float:
        """Each actor's share of a GPU."""
        gpus = int(self._ray.cluster_resources().get("GPU", 0))
        if not gpus:
            raise RunFailedError("engine.device: expected 'cpu' or 'auto' on a Ray without a GPU, got 'cuda'.")
        return 1 / -(-max(count, 1) // gpus)

    def _places(self, share: float) -> int:
        """How many actors fit on the nodes that are there."""
        found = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        places = [
            min(int(one.get("CPU", 0)), int(one.get("GPU", 0) / share) if share else int(one.get("CPU", 0)))
            for one in found
        ]
        if not sum(places):
            raise RunFailedError(f"No node of the Ray cluster has a core, or the GPU, that a client needs: {found}.")
        return sum(places)

    def _start(self) -> None:
        actor = self._kind.remote(self._app, self._run_config)
        self._starting[actor.ready.remote()] = actor

    def _admit(self, timeout_s: float) -> list[Reference]:
        """Take up the actors that are ready; return the references to answers that are there."""
        waiting = [*self._asked, *self._starting]
        if not waiting:
            return []
        self._ray.wait(waiting, num_returns=1, timeout=max(timeout_s, 0))
        done, _ = self._ray.wait(waiting, num_returns=len(waiting), timeout=0)
        for reference in done:
            if reference in self._starting:
                self._take_up(reference)
        return [reference for reference in done if reference in self._asked]

    def _take_up(self, reference: Reference) -> None:
        """Count an actor among the idle ones, or replace it where it died before it was ready."""
        actor = self._starting.pop(reference)
        try:
            node, sees_shards = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            self._bury(actor, error)
            return
        if not sees_shards:
            raise RunFailedError(
                f"Ray's node {node} does not see {self._run_config['shards']}, where the clients' records lie. Name a "
                f"folder that all nodes see, such as --set engine.scratch=/shared/scratch, and start again."
            )
        self._idle.append(actor)

    def _receive(self, reference: Reference) -> Message:
        actor, message = self._asked.pop(reference)
        try:
            answer: Message = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError:  # it lives: its answer did not travel
            self._idle.append(actor)
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, Refusal.FAILED.value), reply_to=message)
        except self._ray.exceptions.RayError as error:
            self._bury(actor, error)
            return Message(Error(ErrorCode.CLIENT_APP_CRASHED, Refusal.WORKER_DIED.value), reply_to=message)
        self._deaths = 0
        self._idle.append(actor)
        return answer

    def _bury(self, actor: Actor, error: Exception) -> None:
        """Replace an actor that is dead, or that cannot be reached."""
        self._deaths += 1
        self._ray.kill(actor)
        if self._deaths > MAX_DEATHS:
            raise RunFailedError(
                f"{self._deaths} Ray actors died in a row. Has every node the same Discreet and enough memory? The "
                f"last one: {error}"
            ) from error
        self._start()

    def _store(self, arrays: Arrays) -> Reference:
        """Where Ray keeps a message's arrays, stored once for all messages that share them."""
        if self._stored is None or not same_arrays(self._stored[0], arrays):
            self._stored = (arrays, self._ray.put(arrays))
        return self._stored[1]


class _Client:
    """What one actor is: a resident app on one thread."""

    def __init__(self, app: str, run_config: UserConfig) -> None:
        import torch

        torch.set_num_threads(1)  # as in a worker: the number of threads decides the last bits of a sum
        identify()
        self._app, self._run_config = load_app(app), run_config
        warm(app, run_config)

    def ready(self) -> tuple[str, bool]:
        """Name this node, and say whether it sees the shards, where the run has any."""
        shards = self._run_config.get("shards")
        return platform.node(), shards is None or Path(str(shards)).is_dir()

    def answer(self, message: Message, arrays: Arrays, node_config: UserConfig, state: RecordDict) -> Message:
        """Answer a message whose arrays came apart from it."""
        for name, record in arrays.items():
            message.content[name] = record
        context = Context(RUN_ID, message.metadata.dst_node_id, node_config, state, self._run_config)
        return call(self._app, message, context)
