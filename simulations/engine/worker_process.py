"""The life of one worker process: take a task, call the app, lay the answer in shared memory."""

import contextlib
import gc
import random
import signal
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory

import numpy as np
from flwr.app import ArrayRecord, Context, Message, UserConfig
from flwr.common.constant import ErrorCode

from common.messages import Refusal
from simulations.engine.executors import RUN_ID, call, identify, load_app, warm
from simulations.engine.parcels import Parcel, Plain, pack, plain, records, size_bytes, unpack


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a worker is asked."""

    slot: int
    slot_block: str
    message_type: str
    message_id: str
    group_id: str
    ttl_s: float
    node_id: int
    node_config: UserConfig
    arrays: Parcel
    others: Plain
    state: Plain


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a worker says: records, or an error."""

    slot: int
    arrays: Parcel | None = None
    others: Plain = field(default_factory=dict)
    error: tuple[int, str] | None = None


def work(pipe: Connection, app_name: str, run_config: UserConfig) -> None:
    """A worker's life: answer until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    import torch

    torch.set_num_threads(1)
    random.seed()  # from the operating system: forks of one process would otherwise draw alike
    np.random.seed()  # noqa: NPY002 - whoever draws from the global state
    identify()
    app = load_app(app_name)
    warm(app_name, run_config)
    gc.freeze()  # what was imported stays: nothing of it need be looked at again
    blocks: dict[str, SharedMemory] = {}
    number, arrays = 0, dict[str, ArrayRecord]()
    with contextlib.suppress(EOFError, ConnectionResetError, BrokenPipeError):  # the parent is gone, or done
        pipe.send(None)  # ready
        while True:
            task: Task = pipe.recv()
            if task.arrays.number != number:  # the next round's
                if task.arrays.block not in blocks:
                    _detach(blocks)
                number, arrays = task.arrays.number, unpack(task.arrays, _attach(blocks, task.arrays.block))
            content = records(task.others, arrays)
            message = Message(content, task.node_id, task.message_type, ttl=task.ttl_s, group_id=task.group_id)
            message.metadata.__dict__["_message_id"] = task.message_id
            context = Context(RUN_ID, task.node_id, task.node_config, records(task.state), run_config)
            reply = call(app, message, context)
            pipe.send(_answer(reply, task.slot, _attach(blocks, task.slot_block)))
    _detach(blocks)


def _answer(reply: Message, slot: int, block: SharedMemory) -> Answer:
    if reply.has_error():
        return Answer(slot=slot, error=(reply.error.code, reply.error.reason or ""))
    arrays = {name: record for name, record in reply.content.items() if isinstance(record, ArrayRecord)}
    if size_bytes(arrays) > block.size:
        return Answer(slot=slot, error=(int(ErrorCode.UNKNOWN), Refusal.FAILED.value))
    return Answer(slot=slot, arrays=pack(arrays, block, number=0), others=plain(reply.content))


def _attach(blocks: dict[str, SharedMemory], name: str) -> SharedMemory:
    if name not in blocks:
        blocks[name] = SharedMemory(name=name)
    return blocks[name]


def _detach(blocks: dict[str, SharedMemory]) -> None:
    for block in blocks.values():
        block.close()
    blocks.clear()
