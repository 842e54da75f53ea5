"""Flower's client app: one epoch, as the message's `protection` says.

none       plain SGD; model and records stay in the actor
opacus     record-level DP-SGD by Opacus's hooks, a PrivacyEngine for each message as in Flower's own example
epsilon    the same, and epsilon is asked for each message
"""

from functools import cache
from typing import Any

import torch
from cnn import BATCH, LEARNING_RATE, network, records
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

DELTA = 1e-5

app = ClientApp()


@cache
def resident_network() -> nn.Module:
    """Return the actor's network; an actor has one thread."""
    torch.set_num_threads(1)
    return network()


resident_records = cache(records)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train one client from the message's weights."""
    images, labels = resident_records()[int(context.node_config["partition-id"])]
    model = resident_network()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    metrics: dict[str, Any] = {"num-examples": len(labels)}
    protection = message.content["config"]["protection"]
    if protection == "none":
        plain_epoch(model, images, labels)
    else:
        metrics |= private_epoch(model, images, labels, asks_epsilon=protection == "epsilon")
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord(metrics)})
    return Message(content, reply_to=message)


def plain_epoch(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Train on each record once."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    for rows in torch.randperm(len(labels)).split(BATCH):
        optimizer.zero_grad()
        cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()


def private_epoch(model: nn.Module, images: Tensor, labels: Tensor, *, asks_epsilon: bool) -> dict[str, float]:
    """Train on Poisson batches; return what it cost where that is asked."""
    from opacus import PrivacyEngine

    engine = PrivacyEngine()
    private, optimizer, batches = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=LEARNING_RATE),
        data_loader=DataLoader(TensorDataset(images, labels), batch_size=BATCH),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )
    for image_B, label_B in batches:
        optimizer.zero_grad()
        cross_entropy(private(image_B), label_B).backward()
        optimizer.step()
    private.to_standard_module()  # the hooks are off again: the model stays for the next message
    return {"epsilon": engine.get_epsilon(DELTA)} if asks_epsilon else {}
