"""The perceptron: dense layers over flat features, whose records never meet."""

from contextlib import nullcontext
from fractions import Fraction

import numpy as np
import pytest
import torch
from opacus import GradSampleModule
from torch.nn import functional

from client.gradients.hooks import Hooks
from client.gradients.one_backward import OneBackward, obstacle_in
from client.private import PrivateModel
from common import flat
from common.config import parse
from common.errors import ScenarioError
from common.messages import Mechanism
from common.model_tables import Cnn, Mlp
from common.models.perceptron import Perceptron
from common.models.registry import build
from common.privacy.entropy import Entropy
from common.shards import Shard
from common.tasks import TASKS, Task

TABLE = Task(image_shape=None, width=7, classes=3, train_records=100)
DEEP = Mlp(name="mlp", layers=(5, 4))
GENERATOR = torch.Generator().manual_seed(0)
FEATURES_B, LABELS_B = torch.randn(9, 7, generator=GENERATOR), torch.arange(9) % 3


def test_its_size_follows_from_the_widths():
    """7 x 5 + 5, 5 x 4 + 4, 4 x 3 + 3."""
    assert flat.size(build(DEEP, TABLE, seed=7)) == 40 + 24 + 15


def test_without_hidden_layers_it_is_logistic_regression():
    """One dense layer: 7 x 3 + 3, and logits are linear in the features."""
    model = build(Mlp(name="mlp", layers=()), TABLE, seed=7)
    assert flat.size(model) == 24
    torch.testing.assert_close(model(2 * FEATURES_B) - model(FEATURES_B), model(FEATURES_B) - model(0 * FEATURES_B))


def test_the_activation_of_the_scenario_is_used():
    """With relu a unit says 0 of half of the line, with tanh it is odd."""
    tanh, relu = (build(Mlp(name="mlp", layers=(5,), activation=name), TABLE, seed=7) for name in ("tanh", "relu"))
    assert isinstance(tanh, Perceptron)
    assert [type(layer).__name__ for layer in tanh.layers] == ["Linear", "Tanh", "Linear"]
    assert not torch.allclose(tanh(FEATURES_B), relu(FEATURES_B))


def test_the_same_seed_gives_the_same_weights():
    """First weights follow from the seed to the last bit, and another seed gives others."""
    first, second, other = (flat.flatten(build(DEEP, TABLE, seed=seed)) for seed in (7, 7, 8))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_records_do_not_meet():
    """The logits of a record do not depend on which other records are in the batch."""
    model = build(DEEP, TABLE, seed=7).train()
    together = model(FEATURES_B)
    for row in range(9):
        torch.testing.assert_close(model(FEATURES_B[row : row + 1])[0], together[row])


def test_gradients_of_records_are_those_of_each_alone():
    """Opacus's hooks find, for every parameter, exactly what a backward pass over one record finds."""
    plain, hooked = build(DEEP, TABLE, seed=7), GradSampleModule(build(DEEP, TABLE, seed=7), loss_reduction="sum")
    functional.cross_entropy(hooked(FEATURES_B), LABELS_B, reduction="sum").backward()
    for row in range(9):
        plain.zero_grad()
        functional.cross_entropy(plain(FEATURES_B[row : row + 1]), LABELS_B[row : row + 1]).backward()
        for sample, parameter in zip(hooked.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(sample.grad_sample[row], parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("layers", [(), (5,), (5, 4)])
@pytest.mark.parametrize("owner_B", [None, torch.tensor([3, 0, 3, 1, 1, 3, 2, 3, 0])])
def test_it_takes_the_fast_way_and_the_sum_is_opacus_s(layers, owner_B):
    """One backward pass gives the clipped sum of records, and of persons, with clipping active."""
    ours, theirs = (build(Mlp(name="mlp", layers=layers), TABLE, seed=1).train() for _ in range(2))
    assert obstacle_in(ours) is None
    units = 9 if owner_B is None else 4
    sums, expected = (
        torch.cat(
            [part.flatten() for part in way.clipped_sum(FEATURES_B, LABELS_B, owner_B, units=units, max_norm=0.5)]
        )
        for way in (OneBackward(ours, autocast=nullcontext), Hooks(theirs))
    )
    assert ((sums - expected).norm() / expected.norm()).item() < 1e-5
    assert expected.norm() <= units * 0.5


def test_it_is_trained_privately():
    """A private step moves it; nothing in it mixes records or keeps buffers."""
    model = build(DEEP, TABLE, seed=1)
    before = flat.flatten(model).clone()
    shard = Shard(features_ND=FEATURES_B.numpy(), labels_N=np.arange(9) % 3)
    PrivateModel(model).steps(
        torch.optim.SGD(model.parameters(), lr=1.0),
        shard,
        mechanism=Mechanism(sampling_rate=Fraction(1), noise_multiplier=1.0, max_grad_norm=1.0, steps=2),
        batch_size=9,
        physical_batch=4,
        entropy=Entropy(),
    )
    moved = flat.flatten(model) - before
    assert torch.isfinite(moved).all()
    assert moved.norm() > 0


@pytest.mark.parametrize("task", ["digits", "sms-spam"])
def test_it_fits_flat_features_only(task):
    """Images and texts have models of their own, and flat features no other."""
    with pytest.raises(ScenarioError, match="'mlp' expects flat features"):
        build(DEEP, TASKS[task], seed=7)
    with pytest.raises(ScenarioError, match="expected 'mlp' for flat features, got 'cnn'"):
        build(Cnn(name="cnn"), TABLE, seed=7)


def test_a_scenario_names_it():
    """`layers` is a list of widths, which may be empty."""
    text = 'run = {name = "x", rounds = 1}\ntraining = {batch_size = 4}\nprivacy = {unit = "none"}\n'
    table = '[data.table]\nlabel = "y"\nclasses = [0, 1]\ncolumns = [{name = "x"}]\n'
    scenario = parse(f'{text}[model]\nname = "mlp"\nlayers = []\n[data]\ndataset = "csv"\nclients = 1\n{table}')
    assert scenario.model == Mlp(name="mlp", layers=())
