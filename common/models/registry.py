"""Models by name.

>>> from common.model_tables import Cnn
>>> from common.tasks import TASKS
>>> model = build(Cnn(name="cnn"), TASKS["mnist"], seed=7)
>>> sum(p.numel() for p in model.parameters())
93322
"""

import torch
from torch import nn

from common.errors import ScenarioError
from common.model_tables import Cnn, CnnOpacus, Transformer
from common.models.convolutional import ConvolutionalNet, OpacusNet
from common.models.transformer import TextTransformer
from common.seeds import derive
from common.tasks import Task


def build(config: Cnn | CnnOpacus | Transformer, task: Task, *, seed: int) -> nn.Module:
    """Return the model with first weights that follow from the run's seed; ScenarioError if it does not fit the data.

    Guarantees:
        The same seed gives bit-equal weights, and the caller's random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "weights"))
        return _build(config, task)


def _build(config: Cnn | CnnOpacus | Transformer, task: Task) -> nn.Module:
    if isinstance(config, Transformer):
        return TextTransformer(config, classes=task.classes)
    if task.image_shape is None:
        raise ScenarioError(f"model.name: expected 'transformer' for a text data set, got '{config.name}'.")
    if isinstance(config, Cnn):
        return ConvolutionalNet(config, image_shape=task.image_shape, classes=task.classes)
    if task.image_shape != (1, 28, 28):
        raise ScenarioError(f"model.name: 'cnn-opacus' expects images of 1x28x28, got {task.image_shape}; use 'cnn'.")
    return OpacusNet(config, classes=task.classes)
