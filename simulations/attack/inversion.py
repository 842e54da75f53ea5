"""Gradient inversion: from one update back to the picture that it was made of.

Shapes: P parameters, C channels, H height, W width.

The update is one step of the scenario's own trainer on a single picture, the case in which an attacker sees most. The
attacker knows the model, its first weights and the picture's class, and looks for a picture whose gradient points where
the update does.
"""

from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from client.trainer import Trainer
from common import flat
from common.config import Scenario
from common.messages import FloatArray, Mechanism, Order
from common.model_tables import Cnn
from common.models.registry import model_of
from common.privacy_table import Privacy
from common.seeds import derive
from common.shards import Shard
from common.tasks import task_of

Picture = npt.NDArray[np.float32]

GREY, COLOUR = 1, 3  # channels
STEPS = 300
STEP_SIZE = 0.3
SMOOTHNESS = (0.01, 0.1)  # weights of the total variation; each is tried, and what fits the update best counts
FIRST_SHADE, SPREAD = -2.0, 0.1  # where the search begins: dark, as most of a digit, in logits


@dataclass(frozen=True, kw_only=True)
class PixelRange:
    """From black to white, in a scenario's own scale."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Inverted:
    """One picture, and what was made of its update.

    Args:
        label: its class.
        original_CHW: in the scenario's own scale, as the others.
        found_CHW: what was made of the update as it is.
        error: mean squared error of that, where from black to white is 1.
        private_CHW, private_error: the same of the update under the scenario's noise, or None where it has none.
        blind_error: that of the best even grey, which is what knowing only the brightness costs.
    """

    label: int
    original_CHW: Picture
    found_CHW: Picture
    error: float
    private_CHW: Picture | None
    private_error: float | None
    blind_error: float


def obstacle_to(scenario: Scenario) -> str:
    """Return why a scenario's updates cannot be shown as pictures, or nothing."""
    shape = task_of(scenario.data).image_shape
    if shape is None or shape[0] not in {GREY, COLOUR}:
        return "its records are not pictures"
    if isinstance(scenario.model, Cnn) and scenario.model.normalization == "batch":
        return "its model normalises over a batch, and a batch of one has no spread"
    return ""


def different(test: Shard, *, count: int) -> list[Shard]:
    """Return the first records, each alone, of so many different classes."""
    _, firsts = np.unique(test.labels_N, return_index=True)
    return [
        Shard(features_ND=np.array(test.features_ND[row : row + 1]), labels_N=np.array(test.labels_N[row : row + 1]))
        for row in np.sort(firsts)[:count]
    ]


def range_of(test: Shard) -> PixelRange:
    """Return the range of public pixels."""
    return PixelRange(low=float(test.features_ND.min()), high=float(test.features_ND.max()))


def invert(scenario: Scenario, record: Shard, *, mechanism: Mechanism | None, pixels: PixelRange) -> Inverted:
    """Invert a picture's update as it is, and clipped and noised by `mechanism` where there is one."""
    original_CHW, label = record.features_ND[0], int(record.labels_N[0])

    def found(used: Mechanism | None) -> Picture:
        return matched(scenario, update_of(scenario, record, mechanism=used), like=record, pixels=pixels)

    def error(picture_CHW: Picture) -> float:
        return float(np.mean(((picture_CHW - original_CHW) / (pixels.high - pixels.low)) ** 2))

    found_CHW = found(None)
    private_CHW = None if mechanism is None else found(mechanism)
    return Inverted(
        label=label,
        original_CHW=original_CHW,
        found_CHW=found_CHW,
        error=error(found_CHW),
        private_CHW=private_CHW,
        private_error=None if private_CHW is None else error(private_CHW),
        blind_error=error(np.full_like(original_CHW, original_CHW.mean())),
    )


def update_of(scenario: Scenario, record: Shard, *, mechanism: Mechanism | None) -> FloatArray:
    """Return the real trainer's update of one step on one record, flat; it points against the gradient.

    Args:
        scenario: whose model, with its first weights.
        record: the whole batch.
        mechanism: whose clipping bound and noise it gets; the record is in the batch for certain. None leaves the
            update as it is.
    """
    training = {"batch_size": 1, "local_steps": 1, "local_epochs": None, "optimizer": "sgd", "learning_rate": 1.0}
    certain = None if mechanism is None else replace(mechanism, sampling_rate=Fraction(1), steps=1)
    privacy = Privacy(unit="none") if certain is None else Privacy(noise_multiplier=certain.noise_multiplier)
    alone = _unaudited(scenario).model_copy(
        update={"training": scenario.training.model_copy(update=training), "privacy": privacy}
    )
    weights_P = flat.flatten(model_of(alone)).numpy()
    order = Order(run="attack", round=1, attempt=1, client=0, weights_P=weights_P, mechanism=certain)
    return Trainer(alone).train(order, record).update_P


def matched(scenario: Scenario, update_P: FloatArray, *, like: Shard, pixels: PixelRange) -> Picture:
    """Return a picture whose gradient points against the update.

    Guarantees:
        Every pixel is between black and white.
        The same update gives the same picture.

    Args:
        scenario: whose model.
        update_P: what was seen.
        like: its shape and class are known.
        pixels: their range is known.

    Source: Zhu et al. 2019, https://arxiv.org/abs/1906.08935; cosine distance, total variation and Adam on signs:
    Geiping et al. 2020, section 4, https://arxiv.org/abs/2003.14053.
    """
    model = model_of(_unaudited(scenario)).eval()
    wanted_P, label = -torch.from_numpy(update_P), torch.from_numpy(like.labels_N)
    generator = torch.Generator().manual_seed(derive(scenario.run.seed, "inversion"))
    start = FIRST_SHADE + SPREAD * torch.randn(like.features_ND.shape, generator=generator)
    found = [_descend(model, start, label, wanted_P, pixels, smoothness=weight) for weight in SMOOTHNESS]
    picture_CHW: Picture = min(found, key=lambda pair: pair[0])[1][0].numpy()
    return picture_CHW


def _descend(
    model: nn.Module, start_1CHW: Tensor, label: Tensor, wanted_P: Tensor, pixels: PixelRange, *, smoothness: float
) -> tuple[float, Tensor]:
    """How far the picture at the end is, and the picture."""
    free_1CHW = start_1CHW.clone().requires_grad_()
    optimizer = torch.optim.Adam([free_1CHW], lr=STEP_SIZE)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        shade_1CHW = torch.sigmoid(free_1CHW)
        distance = _distance(model, _scaled(shade_1CHW, pixels), label, wanted_P)
        loss = distance + smoothness * _total_variation(shade_1CHW)
        (gradient_1CHW,) = torch.autograd.grad(loss, [free_1CHW])
        free_1CHW.grad = gradient_1CHW.sign()
        optimizer.step()
        slower.step()
    picture_1CHW = _scaled(torch.sigmoid(free_1CHW.detach()), pixels)
    return _distance(model, picture_1CHW, label, wanted_P).item(), picture_1CHW


def _scaled(shade_1CHW: Tensor, pixels: PixelRange) -> Tensor:
    return pixels.low + (pixels.high - pixels.low) * shade_1CHW


def _distance(model: nn.Module, picture_1CHW: Tensor, label: Tensor, wanted_P: Tensor) -> Tensor:
    """1 minus the cosine between the picture's gradient and the one wanted."""
    loss = functional.cross_entropy(model(picture_1CHW), label)
    gradients = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    gradient_P = torch.cat([gradient.reshape(-1) for gradient in gradients])
    return 1 - functional.cosine_similarity(gradient_P, wanted_P, dim=0)


def _total_variation(shade_1CHW: Tensor) -> Tensor:
    down, right = shade_1CHW.diff(dim=-2), shade_1CHW.diff(dim=-1)
    return down.abs().mean() + right.abs().mean()


def _unaudited(scenario: Scenario) -> Scenario:
    """Without a pad: no picture moves it."""
    return scenario.model_copy(update={"audit": None})
