"""Models by name.

>>> from common.model_tables import Cnn
>>> from common.tasks import TASKS
>>> model = build(Cnn(name="cnn"), TASKS["mnist"], seed=7)
>>> sum(p.numel() for p in model.parameters())
93322
"""

import torch
from torch import nn

from common.config import Scenario
from common.errors import ScenarioError
from common.model_tables import Cnn, CnnOpacus, Mlp, Transformer
from common.models.convolutional import ConvolutionalNet, OpacusNet
from common.models.pad import Padded
from common.models.perceptron import Perceptron
from common.models.transformer import TextTransformer
from common.seeds import derive
from common.tasks import Task, task_of


def model_of(scenario: Scenario) -> nn.Module:
    """Return a scenario's model as all its processes have it: with a pad where the scenario is audited.

    Guarantees:
        The weights of the pad come last; all others are those of the same scenario without an audit.
    """
    body = build(scenario.model, task_of(scenario.data), seed=scenario.run.seed)
    if scenario.audit is None:
        return body
    return Padded(body, canaries=scenario.audit.canaries, gradient_norm=scenario.audit.gradient_norm)


def build(config: Cnn | CnnOpacus | Mlp | Transformer, task: Task, *, seed: int) -> nn.Module:
    """Return the model with first weights that follow from the run's seed; ScenarioError if it does not fit the data.

    Guarantees:
        The same seed gives bit-equal weights, and the caller's random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "weights"))
        return _build(config, task)


def _build(config: Cnn | CnnOpacus | Mlp | Transformer, task: Task) -> nn.Module:
    if isinstance(config, Transformer):
        return TextTransformer(config, classes=task.classes)
    if isinstance(config, Mlp):
        if task.width is None:
            raise ScenarioError("model.name: 'mlp' expects flat features, got a data set of images or texts.")
        return Perceptron(config, width=task.width, classes=task.classes)
    if task.image_shape is None:
        expected = "'transformer' for a text data set" if task.is_text else "'mlp' for flat features"
        raise ScenarioError(f"model.name: expected {expected}, got '{config.name}'.")
    if isinstance(config, Cnn):
        return ConvolutionalNet(config, image_shape=task.image_shape, classes=task.classes)
    if task.image_shape != (1, 28, 28):
        raise ScenarioError(f"model.name: 'cnn-opacus' expects images of 1x28x28, got {task.image_shape}; use 'cnn'.")
    return OpacusNet(config, classes=task.classes)
