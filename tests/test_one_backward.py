"""Clipped sums from one backward pass: equal to Opacus's, and given up where they would not be."""

import logging
from contextlib import nullcontext
from fractions import Fraction
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from client.gradients.hooks import Hooks
from client.gradients.one_backward import NotOnceError, OneBackward, obstacle_in
from client.private import PrivateModel
from common.devices import autocast
from common.messages import Mechanism
from common.model_tables import Cnn, CnnOpacus, Transformer
from common.models.registry import build
from common.privacy.entropy import Entropy
from common.shards import Shard
from common.tasks import TASKS

TEXT = Transformer(name="transformer", layers=2, dropout=0.0, vocabulary=64, tokens=8, d_model=20, feed_forward=24)
MODELS = {
    "cnn": (Cnn(name="cnn"), "mnist"),
    "cnn on small images": (Cnn(name="cnn", activation="relu"), "digits"),
    "cnn with group normalisation": (Cnn(name="cnn", normalization="group"), "mnist"),
    "cnn-opacus": (CnnOpacus(name="cnn-opacus"), "mnist"),
    "transformer": (TEXT, "sms-spam"),
}


def model_of(name: str) -> nn.Module:
    """A fresh model of the registry."""
    config, task = MODELS[name]
    return build(config, TASKS[task], seed=1).train()


def records(name: str, count: int) -> tuple[Tensor, Tensor]:
    """Random records; of texts the ends are padded."""
    task, generator = TASKS[MODELS[name][1]], torch.Generator().manual_seed(2)
    labels_B = torch.randint(0, task.classes, (count,), generator=generator)
    if task.image_shape is not None:
        return torch.randn(count, *task.image_shape, generator=generator), labels_B
    tokens_BT = torch.randint(1, 64, (count, 8), generator=generator)
    lengths_B = torch.randint(1, 9, (count, 1), generator=generator)
    return tokens_BT * (torch.arange(8) < lengths_B), labels_B


def median_norm(name: str, features_B: Tensor, labels_B: Tensor) -> float:
    """A bound that about half of the records exceed."""
    model = model_of(name)
    norms = []
    for row in range(len(labels_B)):
        loss = functional.cross_entropy(model(features_B[row : row + 1]), labels_B[row : row + 1])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        norms.append(torch.cat([gradient.flatten() for gradient in gradients]).norm().item())
    return sorted(norms)[len(norms) // 2]


def relative(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The distance of two sums, relative to the second."""
    ours_P, theirs_P = (torch.cat([part.flatten() for part in parts]).double() for parts in (ours, theirs))
    return ((ours_P - theirs_P).norm() / theirs_P.norm()).item()


@pytest.mark.parametrize("count", [1, 2, 13])
@pytest.mark.parametrize("name", MODELS)
def test_the_clipped_sum_is_opacus_s_to_1e_5(name, count):
    """Every model of the registry, with clipping active, one record, an even number and an odd one."""
    features_B, labels_B = records(name, count)
    bound = 0.9 * median_norm(name, features_B, labels_B)
    ours = OneBackward(model_of(name), autocast=nullcontext)
    theirs = Hooks(model_of(name))
    sums, expected = (
        way.clipped_sum(features_B, labels_B, None, units=count, max_norm=bound) for way in (ours, theirs)
    )
    assert relative(sums, expected) < 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_the_clipped_sum_of_persons_is_opacus_s_to_1e_5(name):
    """Records of a person are added up before they are clipped."""
    features_B, labels_B = records(name, 9)
    bound = median_norm(name, features_B, labels_B)
    owner_B = torch.tensor([3, 0, 3, 1, 1, 3, 2, 3, 0])
    ours = OneBackward(model_of(name), autocast=nullcontext)
    theirs = Hooks(model_of(name))
    sums, expected = (way.clipped_sum(features_B, labels_B, owner_B, units=4, max_norm=bound) for way in (ours, theirs))
    assert relative(sums, expected) < 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_the_sum_without_clipping_is_autograd_s(name):
    """A bound that nobody reaches leaves the plain gradient of the batch."""
    features_B, labels_B = records(name, 6)
    ours = OneBackward(model_of(name), autocast=nullcontext)
    plain = ours.plain_sum(features_B, labels_B)
    assert relative(ours.clipped_sum(features_B, labels_B, None, units=6, max_norm=1e9), plain) < 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_in_mixed_precision_the_sum_stays_near_and_no_record_exceeds_the_bound(name):
    """bfloat16 has 8 bits: sums agree to some percent, while the sensitivity holds to single precision."""
    features_B, labels_B = records(name, 8)
    bound = 0.5 * median_norm(name, features_B, labels_B)
    bf16 = autocast(torch.device("cpu"), "bf16")
    exact = OneBackward(model_of(name), autocast=nullcontext)
    mixed = OneBackward(model_of(name), autocast=bf16)
    sums, expected = (way.clipped_sum(features_B, labels_B, None, units=8, max_norm=bound) for way in (mixed, exact))
    assert 1e-6 < relative(sums, expected) < 0.05, "another precision, the same sum"
    assert all(part.dtype == torch.float32 for part in sums)
    for row in range(8):
        alone = mixed.clipped_sum(features_B[row : row + 1], labels_B[row : row + 1], None, units=1, max_norm=bound)
        assert torch.cat([part.flatten() for part in alone]).norm() <= bound * (1 + 1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_models_of_the_registry_need_no_hooks(name):
    """Each of them takes the fast way."""
    assert obstacle_in(model_of(name)) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize("name", MODELS)
def test_the_clipped_sum_on_cuda_is_that_of_the_cpu(name):
    """Up to the rounding of another device's matrix products."""
    features_B, labels_B = records(name, 13)
    bound = 0.9 * median_norm(name, features_B, labels_B)
    expected = OneBackward(model_of(name), autocast=nullcontext).clipped_sum(
        features_B, labels_B, None, units=13, max_norm=bound
    )
    sums = OneBackward(model_of(name).cuda(), autocast=nullcontext).clipped_sum(
        features_B.cuda(), labels_B.cuda(), None, units=13, max_norm=bound
    )
    assert relative([part.cpu() for part in sums], expected) < 1e-3


class Twice(nn.Module):
    """A layer that is called twice in one forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, given_BD: Tensor) -> Tensor:
        return self.out(self.inner(self.inner(given_BD).tanh()))


class InPlace(nn.Module):
    """A layer whose output is changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, given_BD: Tensor) -> Tensor:
        return self.out(self.inner(given_BD).mul_(2.0))


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.second, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.second.weight = self.inner.weight

    def forward(self, given_BD: Tensor) -> Tensor:
        return self.out(self.second(self.inner(given_BD).tanh()))


class Grouped(nn.Module):
    """A convolution with groups, which has no rule."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Conv1d(2, 2, 1, groups=2), nn.Linear(4, 3)

    def forward(self, given_BD: Tensor) -> Tensor:
        return self.out(self.inner(given_BD.unflatten(1, (2, 2))).flatten(1))


class Partly(nn.Module):
    """A layer that the forward pass leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.idle, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, given_BD: Tensor) -> Tensor:
        return self.out(given_BD)


class NoNoise(Entropy):
    """A stream whose normal numbers are 0."""

    def normal(self, count: int):
        return torch.zeros(count, dtype=torch.float64).numpy()


def by_hand(model: nn.Module, features_B: Tensor, labels_B: Tensor, bound: float) -> Tensor:
    """The clipped sum, one backward pass a record."""
    total = torch.zeros(sum(parameter.numel() for parameter in model.parameters()))
    for row in range(len(labels_B)):
        loss = functional.cross_entropy(model(features_B[row : row + 1]), labels_B[row : row + 1])
        gradients = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
        gradient_P = torch.cat([gradient.flatten() for gradient in gradients])
        total += gradient_P * min(1.0, bound / (gradient_P.norm().item() + 1e-6))
    return total


def take_a_step(model: nn.Module, features_B: Tensor, labels_B: Tensor, *, precision="float32") -> None:
    """Move a model by the clipped sum of all records at a bound of 0.5, in parts of four."""
    PrivateModel(model, precision=precision).steps(
        torch.optim.SGD(model.parameters(), lr=1.0),
        Shard(features_ND=features_B.numpy(), labels_N=labels_B.numpy()),
        mechanism=Mechanism(sampling_rate=Fraction(1), noise_multiplier=1.0, max_grad_norm=0.5, steps=1),
        batch_size=1,
        physical_batch=4,
        entropy=NoNoise(),
    )


@pytest.mark.parametrize("kind", [Twice, Tied, Grouped])
def test_a_model_that_does_not_fit_falls_back_to_hooks_with_one_line(kind, caplog):
    """Layers used twice, shared, or without a rule: Opacus's hooks give the sum, and the log says it once."""
    torch.manual_seed(0)
    model, features_B, labels_B = kind(), torch.randn(6, 4), torch.randint(0, 3, (6,))
    before = torch.cat([parameter.detach().flatten().clone() for parameter in model.parameters()])
    expected = by_hand(model, features_B, labels_B, 0.5)
    with caplog.at_level(logging.INFO, logger="discreet.client"):
        take_a_step(model, features_B, labels_B)
    moved = before - torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-5)
    assert [record.message for record in caplog.records if "hooks" in record.message] == [
        record.message for record in caplog.records
    ]
    assert len(caplog.records) == 1


def test_hooks_stay_in_single_precision_where_the_plan_names_another():
    """Opacus under autocast would clip in bfloat16: the fallback computes, and clips, as without."""
    torch.manual_seed(0)
    features_B, labels_B, moved = torch.randn(6, 4), torch.randint(0, 3, (6,)), []
    start = Grouped().state_dict()
    for precision in ("float32", "bf16"):
        model = Grouped()
        model.load_state_dict(start)
        take_a_step(model, features_B, labels_B, precision=precision)
        moved.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert torch.equal(*moved)


class Idle(nn.Module):
    """A layer whose output goes nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.idle, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, given_BD: Tensor) -> Tensor:
        self.idle(given_BD)
        return self.out(given_BD)


@pytest.mark.parametrize("kind", [Twice, InPlace])
def test_what_only_a_forward_pass_shows_is_found_out_before_anything_is_computed(kind):
    """A second call, or a change in place, would give another gradient without a word."""
    sums = OneBackward(kind(), autocast=nullcontext)
    with pytest.raises(NotOnceError):
        sums.clipped_sum(torch.randn(2, 4), torch.tensor([0, 1]), None, units=2, max_norm=1.0)


@pytest.mark.parametrize("kind", [Partly, Idle])
def test_a_layer_that_is_left_out_has_a_gradient_of_zero(kind):
    """As autograd has it."""
    model = kind()
    sums = OneBackward(model, autocast=nullcontext).clipped_sum(
        torch.randn(2, 4), torch.tensor([0, 1]), None, units=2, max_norm=1.0
    )
    assert [part.abs().sum().item() > 0 for part in sums] == [False, False, True, True]
    assert [part.shape for part in sums] == [parameter.shape for parameter in model.parameters()]


@pytest.mark.parametrize("way", [partial(OneBackward, autocast=nullcontext), Hooks])
def test_nothing_is_left_in_the_model(way):
    """No gradient, and no activation once the sum is there."""
    model = model_of("cnn")
    sums = way(model)
    features_B, labels_B = records("cnn", 3)
    sums.clipped_sum(features_B, labels_B, None, units=3, max_norm=1.0)
    sums.plain_sum(features_B, labels_B)
    assert all(part.grad is None and getattr(part, "grad_sample", None) is None for part in model.parameters())
    for layer in model.modules():
        assert not getattr(layer, "activations", None)


def test_an_evaluation_in_between_is_not_noted():
    """Listening begins and ends with a clipped sum."""
    model = model_of("cnn")
    sums = OneBackward(model, autocast=nullcontext)
    features_B, labels_B = records("cnn", 3)
    model(features_B)
    model(features_B)
    first = sums.clipped_sum(features_B, labels_B, None, units=3, max_norm=1.0)
    model(features_B)
    second = sums.clipped_sum(features_B, labels_B, None, units=3, max_norm=1.0)
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
