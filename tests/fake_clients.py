"""A Flower client app that does as its message tells it; worker processes import it by name."""

import os
import signal
import time

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

SECRET = "the patient of row 17 is ill"  # noqa: S105 - no password: what must not leave a client
MANY = 1 << 20  # bytes, more than a slot for a model of a few numbers holds

app = ClientApp()
not_an_app = object()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Do what the record `config` says under `behaviour`; without one, act like a stock client."""
    behaviour = str(message.content.config_records["config"].get("behaviour", "add"))
    return _BEHAVIOURS[behaviour](message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Report the sum of the weights as the loss."""
    del context
    loss = float(message.content.array_records["arrays"]["weights"].numpy().sum())
    return Message(RecordDict({"metrics": MetricRecord({"loss": loss, "num-examples": 1})}), reply_to=message)


def _reply(message: Message, weights: np.ndarray, **metrics: float) -> Message:
    content = RecordDict(
        {
            "arrays": ArrayRecord({"weights": Array(weights)}),
            "metrics": MetricRecord({"num-examples": 1} | metrics),
        }
    )
    return Message(content, reply_to=message)


def _add(message: Message, context: Context) -> Message:
    """Train: add this client's number to the weights."""
    weights = message.content.array_records["arrays"]["weights"].numpy()
    return _reply(message, weights + np.float32(context.node_config["partition-id"]))


def _die(message: Message, context: Context) -> Message:
    """Be killed in the middle of training, as by the kernel when memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)
    return _add(message, context)


def _raise(message: Message, context: Context) -> Message:
    """Fail with a text that holds data."""
    raise RuntimeError(SECRET)


def _grow(message: Message, context: Context) -> Message:
    """Answer with far more numbers than came."""
    del context
    return _reply(message, np.zeros(MANY, np.float32))


def _sleep(message: Message, context: Context) -> Message:
    """Take a while."""
    time.sleep(float(str(message.content.config_records["config"]["seconds"])))
    return _add(message, context)


def _facts(message: Message, context: Context) -> Message:
    """Tell about the process and its random state."""
    del context
    return _reply(
        message,
        np.zeros(1, np.float32),
        pid=os.getpid(),
        threads=torch.get_num_threads(),
        draw=np.random.random(),  # noqa: NPY002 - the global state is what a fork would inherit
    )


def _scribble(message: Message, context: Context) -> Message:
    """Say whether somebody wrote into the message's records before, then write into each of them."""
    del context
    config = message.content.config_records["config"]
    metrics = message.content.metric_records["numbers"]
    arrays = message.content.array_records["arrays"]
    reply = _reply(
        message,
        np.zeros(1, np.float32),
        config_touched=int("mark" in config),
        list_touched=len(config["list"]) - 1,
        metrics_touched=int("mark" in metrics),
        arrays_touched=int("mark" in arrays),
    )
    config["mark"], metrics["mark"], arrays["mark"] = 1, 1, Array(np.zeros(1))
    config["list"].append(1)
    return reply


_BEHAVIOURS = {
    "add": _add,
    "die": _die,
    "raise": _raise,
    "grow": _grow,
    "sleep": _sleep,
    "facts": _facts,
    "scribble": _scribble,
}


def message_to(node: int, behaviour: str = "add", *, ttl: float | None = None, **told: float) -> Message:
    """Return a training message for a node, with four weights of zero."""
    content = RecordDict(
        {
            "arrays": ArrayRecord({"weights": Array(np.zeros(4, np.float32))}),
            "config": ConfigRecord({"behaviour": behaviour} | told),
        }
    )
    return Message(content, node, "train", ttl=ttl)


def words(replies: dict[int, Message]) -> dict[int, str]:
    """Return for each node its error's word, or the first of the weights that it sent."""
    return {
        node: reply.error.reason
        if reply.has_error()
        else str(reply.content.array_records["arrays"]["weights"].numpy()[0])
        for node, reply in sorted(replies.items())
    }
