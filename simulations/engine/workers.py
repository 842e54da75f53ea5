"""Worker processes: one single-threaded process a core, one resident model each.

Arrays do not go through the pipes: a cohort's model lies once in shared memory, and each answer comes back through a
slot of its worker. A worker has two slots and up to two messages, so that it never waits for the coordinator. It is a
fork of `nursery`, not of the coordinator: no random state, no lock and no thread is inherited.
"""

import contextlib
import itertools
import selectors
from collections import deque
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.shared_memory import SharedMemory

from flwr.app import ArrayRecord, Error, Message, RecordDict, UserConfig
from flwr.common.constant import ErrorCode

from common.errors import RunFailedError
from common.messages import Refusal
from simulations.engine import nursery
from simulations.engine.parcels import Parcel, Plain, pack, plain, records, same_arrays, size_bytes, unpack
from simulations.engine.worker_process import Answer, Task, work

SLOTS = 2
SPARE_BYTES = 1 << 16
MAX_DEATHS = 3  # of workers in a row, none of which answered anything


@dataclass(kw_only=True)
class _Worker:
    """One process, and what it was asked."""

    process: BaseProcess
    pipe: Connection
    slots: list[SharedMemory]
    free: list[int]
    asked: deque[tuple[int, Message, Task]] = field(default_factory=deque)


class Workers:
    """An executor on `count` processes.

    Guarantees:
        A worker that dies costs the one message it worked on, whose answer is the word `worker-died`; the message that
        waited behind it goes to another worker, and a new worker takes the dead one's place.
        When the parent dies, however it does, the workers end.
    """

    def __init__(self, app: str, run_config: UserConfig, *, count: int) -> None:
        """Start the workers; they import their libraries while the parent goes on."""
        self._app, self._run_config = app, run_config
        self._laid_out: tuple[dict[str, ArrayRecord], Parcel] | None = None
        self._blocks: dict[str, SharedMemory] = {}
        self._numbers = itertools.count(1)
        self._deaths = 0
        self._selector = selectors.DefaultSelector()
        self._workers = [self._start() for _ in range(count)]

    def wait(self) -> None:
        """Wait until each worker is ready, or has died, which `answers` finds out."""
        for worker in self._workers:
            connection.wait([worker.pipe, worker.process.sentinel])

    def has_room(self) -> bool:
        """Whether some worker has a free slot."""
        return any(worker.free for worker in self._workers)

    def submit(self, message: Message, node_config: UserConfig, state: RecordDict) -> None:
        """Hand a message to the worker that has the least to do."""
        worker = max(self._workers, key=lambda worker: len(worker.free))
        self._ask(worker, message, self._lay_out(message.content), node_config, plain(state))

    def answers(self, timeout_s: float) -> list[Message]:
        """Return the answers that are there, after waiting for at most `timeout_s` for the first."""
        ready: dict[int, tuple[_Worker, set[int]]] = {}
        for key, _ in self._selector.select(timeout_s):
            ready.setdefault(id(key.data), (key.data, set()))[1].add(key.fd)
        came: list[Message] = []
        for worker, sources in ready.values():
            came += self._receive(worker) if worker.pipe.fileno() in sources else self._bury(worker)
        return came

    def close(self) -> None:
        """End the workers and free the shared memory."""
        for worker in self._workers:
            worker.pipe.close()
        for worker in self._workers:
            worker.process.join(timeout=2)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            _free(worker.slots)
        _free(list(self._blocks.values()))
        self._selector.close()
        self._workers, self._blocks = [], {}

    def _start(self) -> _Worker:
        context = nursery.context(self._app.partition(":")[0])
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, self._app, self._run_config), daemon=True)
        process.start()
        theirs.close()
        worker = _Worker(process=process, pipe=ours, slots=[], free=list(range(SLOTS)))
        for source in (ours, process.sentinel):
            self._selector.register(source, selectors.EVENT_READ, worker)
        return worker

    def _ask(self, worker: _Worker, message: Message, arrays: Parcel, node_config: UserConfig, state: Plain) -> None:
        needed = sum(length for record in arrays.arrays.values() for *_, length in record) + SPARE_BYTES
        if not worker.asked and (not worker.slots or worker.slots[0].size < needed):
            _free(worker.slots)
            worker.slots = [SharedMemory(create=True, size=needed) for _ in range(SLOTS)]
        slot = worker.free.pop()
        task = Task(
            slot=slot,
            slot_block=worker.slots[slot].name,
            message_type=message.metadata.message_type,
            message_id=message.metadata.message_id,
            group_id=message.metadata.group_id,
            ttl_s=message.metadata.ttl,
            node_id=message.metadata.dst_node_id,
            node_config=node_config,
            arrays=arrays,
            others=plain(message.content),
            state=state,
        )
        worker.asked.append((slot, message, task))
        with contextlib.suppress(BrokenPipeError):  # it died: `answers` finds out
            worker.pipe.send(task)

    def _receive(self, worker: _Worker) -> list[Message]:
        """Read one thing that a worker says, or bury it."""
        try:
            answer: Answer | None = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            return self._bury(worker)
        if answer is None:  # it is ready
            return []
        _, message, _ = worker.asked.popleft()
        worker.free.append(answer.slot)
        self._deaths = 0
        return [_reply(message, answer, worker.slots[answer.slot])]

    def _bury(self, worker: _Worker) -> list[Message]:
        """Replace a dead worker; its first message is lost, the one behind it is asked again."""
        self._deaths += 1
        for source in (worker.pipe, worker.process.sentinel):
            self._selector.unregister(source)
        worker.pipe.close()
        worker.process.join()
        if self._deaths > MAX_DEATHS:
            raise RunFailedError(
                f"{self._deaths} worker processes died in a row (exit code {worker.process.exitcode}). Is there enough "
                f"memory? Lower engine.workers or engine.physical_batch."
            )
        _free(worker.slots)
        fresh = self._start()
        self._workers[self._workers.index(worker)] = fresh
        if not worker.asked:
            return []
        _, lost, _ = worker.asked.popleft()
        for _, message, task in worker.asked:
            self._ask(fresh, message, task.arrays, task.node_config, task.state)
        return [Message(Error(ErrorCode.CLIENT_APP_CRASHED, Refusal.WORKER_DIED.value), reply_to=lost)]

    def _lay_out(self, content: RecordDict) -> Parcel:
        """Put a message's arrays into shared memory, once for all messages that share them."""
        arrays = {name: record for name, record in content.items() if isinstance(record, ArrayRecord)}
        if self._laid_out is None or not same_arrays(self._laid_out[0], arrays):
            block = self._idle_block(size_bytes(arrays))
            self._laid_out = (arrays, pack(arrays, block, number=next(self._numbers)))
        return self._laid_out[1]

    def _idle_block(self, size: int) -> SharedMemory:
        """A block that no task in flight reads from: one that is there, or a new one; idle ones too small are freed."""
        in_use = {task.arrays.block for worker in self._workers for *_, task in worker.asked}
        for name in self._blocks.keys() - in_use:
            if self._blocks[name].size >= size:
                return self._blocks[name]
            _free([self._blocks.pop(name)])
        block = SharedMemory(create=True, size=max(size, 1))
        self._blocks[block.name] = block
        return block


def _reply(message: Message, answer: Answer, slot: SharedMemory) -> Message:
    if answer.arrays is None:
        code, reason = answer.error or (int(ErrorCode.UNKNOWN), Refusal.FAILED.value)
        return Message(Error(code, reason), reply_to=message)
    return Message(records(answer.others, unpack(answer.arrays, slot)), reply_to=message)


def _free(blocks: list[SharedMemory]) -> None:
    for block in blocks:
        block.close()
        block.unlink()
