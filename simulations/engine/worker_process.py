"""The life of one worker process: take a task, call the app, lay the answer in shared memory."""

import contextlib
import random
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, Message, UserConfig
from flwr.common.constant import ErrorCode

from common.messages import Refusal
from simulations.engine.executors import RUN_ID, call, identify, load_app, warm
from simulations.engine.parcels import Parcel, pack, plain, records, unpack


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
    content: Parcel
    state: dict[str, tuple[str, dict[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a worker says: a parcel, or an error."""

    slot: int
    content: Parcel | None
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
    blocks: dict[str, SharedMemory] = {}
    with contextlib.suppress(EOFError, ConnectionResetError, BrokenPipeError):  # the parent is gone, or done
        pipe.send(None)  # ready
        while True:
            task: Task = pipe.recv()
            if task.content.block not in blocks:
                _detach(blocks)
            content = unpack(task.content, _attach(blocks, task.content.block))
            message = Message(content, task.node_id, task.message_type, ttl=task.ttl_s, group_id=task.group_id)
            message.metadata.__dict__["_message_id"] = task.message_id
            context = Context(RUN_ID, task.node_id, task.node_config, records(task.state), run_config)
            reply = call(app, message, context)
            pipe.send(_answer(reply, task.slot, _attach(blocks, task.slot_block)))
    _detach(blocks)


def _answer(reply: Message, slot: int, block: SharedMemory) -> Answer:
    if reply.has_error():
        return Answer(slot=slot, content=None, error=(reply.error.code, reply.error.reason or ""))
    arrays = {name: record for name, record in reply.content.items() if isinstance(record, ArrayRecord)}
    if sum(len(array.data) for record in arrays.values() for array in record.values()) > block.size:
        return Answer(slot=slot, content=None, error=(int(ErrorCode.UNKNOWN), Refusal.FAILED.value))
    parcel = pack(arrays, block)
    return Answer(slot=slot, content=Parcel(block=block.name, arrays=parcel.arrays, records=plain(reply.content)))


def _attach(blocks: dict[str, SharedMemory], name: str) -> SharedMemory:
    if name not in blocks:
        blocks[name] = SharedMemory(name=name)
    return blocks[name]


def _detach(blocks: dict[str, SharedMemory]) -> None:
    for block in blocks.values():
        block.close()
    blocks.clear()
