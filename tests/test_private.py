"""DP-SGD against a plain Opacus loop, and what must hold whatever the data are."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import opacus
import pytest
import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import nn
from torch.nn import functional

from client.private import PrivateModel, PrivateOptimizer, refuse_unfit
from common import flat
from common.errors import ModelRefusedError
from common.messages import Mechanism
from common.model_tables import Cnn, CnnOpacus, Transformer
from common.models.registry import build
from common.privacy.entropy import Entropy
from common.shards import Shard
from common.tasks import TASKS

ALL = Fraction(1)
MODELS = {
    "cnn": (Cnn(name="cnn"), "digits"),
    "cnn with group normalisation": (Cnn(name="cnn", normalization="group"), "digits"),
    "cnn-opacus": (CnnOpacus(name="cnn-opacus"), "mnist"),
    "transformer": (Transformer(name="transformer", layers=1, dropout=0.0, vocabulary=64, tokens=8), "sms-spam"),
}


class NoNoise(Entropy):
    """A stream whose normal numbers are 0: what is left of a step is the clipped mean."""

    def normal(self, count: int) -> np.ndarray:
        return np.zeros(count)


class Line(nn.Module):
    """Two logits (w x, 0): the gradient of record (x, class 1) at w = 0 is x / 2."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.weight.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.weight(x)
        return torch.cat([out, torch.zeros_like(out)], dim=1)


def records(name: str, count: int) -> Shard:
    """Random records of a task."""
    generator = np.random.default_rng(0)
    task = TASKS[name]
    labels = generator.integers(0, task.classes, count)
    if task.image_shape is None:
        tokens = generator.integers(1, 64, (count, 8))
        tokens[:, 5:] *= generator.integers(0, 2, (count, 3))  # some padding
        return Shard(features_ND=tokens, labels_N=labels)
    return Shard(features_ND=generator.standard_normal((count, *task.image_shape)).astype(np.float32), labels_N=labels)


def line(*features: float, units: list[int] | None = None) -> Shard:
    """Records of class 1, each a unit of its own or of the person that `units` names."""
    return Shard(
        features_ND=np.array(features, np.float32).reshape(-1, 1),
        labels_N=np.ones(len(features), np.int64),
        units_N=None if units is None else np.array(units),
    )


def take(
    model: nn.Module,
    shard: Shard,
    *,
    steps=1,
    rate=ALL,
    noise=1.0,
    clip=1.0,
    batch_size=1,
    physical_batch=128,
    entropy=None,
) -> torch.Tensor:
    """Take steps of learning rate 1 and return how the parameters moved."""
    before = flat.flatten(model)
    PrivateModel(model).steps(
        torch.optim.SGD(model.parameters(), lr=1.0),
        shard,
        mechanism=Mechanism(sampling_rate=rate, noise_multiplier=noise, max_grad_norm=clip, steps=steps),
        batch_size=batch_size,
        physical_batch=physical_batch,
        entropy=entropy or NoNoise(),
    )
    return flat.flatten(model) - before


@pytest.mark.parametrize("name", MODELS)
def test_a_step_without_noise_equals_a_plain_opacus_loop(name):
    """The clipped sum of every model of the registry is Opacus's own, with clipping active."""
    config, task = MODELS[name]
    shard = records(task, 12)
    model = build(config, TASKS[task], seed=1)
    reference = GradSampleModule(build(config, TASKS[task], seed=1).train(), loss_reduction="sum")
    optimizer = DPOptimizer(
        torch.optim.SGD(reference.parameters(), lr=1.0), noise_multiplier=0.0, max_grad_norm=0.3, expected_batch_size=5
    )
    features, labels = torch.from_numpy(shard.features_ND), torch.from_numpy(shard.labels_N)
    before = flat.flatten(reference)
    functional.cross_entropy(reference(features), labels, reduction="sum").backward()
    per_sample = torch.stack([p.grad_sample.flatten(1).norm(dim=1) for p in reference.parameters()]).norm(dim=0)
    assert (per_sample > 0.3).any(), "clipping is active"
    optimizer.step()
    expected = flat.flatten(reference) - before
    moved = take(model, shard, clip=0.3, batch_size=5)
    torch.testing.assert_close(moved, expected, rtol=1e-5, atol=1e-7)


def test_a_model_in_another_memory_layout_gives_the_same_gradients():
    """Opacus reads activations by their strides: channels_last would silently mix numbers of several samples."""
    config, task = MODELS["cnn-opacus"]
    shard, model = records(task, 5), build(config, TASKS[task], seed=1)
    expected = take(build(config, TASKS[task], seed=1), shard, clip=0.3, batch_size=5)
    moved = take(model.to(memory_format=torch.channels_last), shard, clip=0.3, batch_size=5)
    torch.testing.assert_close(moved, expected, rtol=1e-5, atol=1e-7)


def test_a_record_is_clipped_before_it_is_added():
    """Each record moves the sum by at most the bound, a small one by its own gradient."""
    # gradients of (w x, 0) at w = 0 for class 1: x / 2. Records 0.4 and 8 give 0.2 and 4; clipped at 1: 0.2 and 1.
    # SGD with rate 1 moves w by -(0.2 + 1) / 4
    moved = take(Line(), line(0.4, 8.0), clip=1.0, batch_size=4)
    assert moved.item() == pytest.approx(-(0.2 + 1.0) / 4, rel=1e-5)


def test_zeroing_one_record_moves_the_sum_by_at_most_the_bound():
    """The sensitivity that the noise is calibrated to holds for every record."""
    config, task = MODELS["cnn"]
    shard = records(task, 6)
    with_all = take(build(config, TASKS[task], seed=1), shard, clip=0.5, batch_size=1)
    for left_out in range(6):
        keep = [row for row in range(6) if row != left_out]
        others = Shard(features_ND=shard.features_ND[keep], labels_N=shard.labels_N[keep])
        without = take(build(config, TASKS[task], seed=1), others, clip=0.5, batch_size=1)
        assert (with_all - without).norm() <= 0.5 * (1 + 1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_record_that_is_not_finite_adds_nothing(bad):
    """One poisoned record cannot turn the release into NaN, nor reach the others' gradients."""
    clean = take(Line(), line(0.4), clip=1.0, batch_size=1)
    moved = take(Line(), line(0.4, bad), clip=1.0, batch_size=1)
    assert moved.item() == clean.item() == pytest.approx(-0.2, rel=1e-5)


@pytest.mark.parametrize("empty", [0, 3])
def test_an_empty_batch_takes_its_noise_and_its_steps_all_the_same(empty):
    """Skipping an empty Poisson batch would tell that it was empty."""

    class Counting(Entropy):
        calls = 0

        def bernoulli(self, count: int, *, probability: Fraction) -> np.ndarray:
            return np.arange(0)

        def normal(self, count: int) -> np.ndarray:
            self.calls += 1
            return np.full(count, 2.0)

    entropy = Counting()
    moved = take(Line(), line(*[1.0] * (empty or 1)), steps=5, noise=3.0, clip=0.5, batch_size=10, entropy=entropy)
    assert entropy.calls == 5
    # each of 5 steps moves by -(0 + noise) / 10 with noise 2 * 3.0 * 0.5 = 3
    assert moved.item() == pytest.approx(-5 * 3.0 / 10, rel=1e-6)


def test_the_divisor_is_the_plans_batch_size_whatever_was_sampled():
    """The divisor is public: the size of a Poisson batch must not show."""
    # three records of gradient 0.2 each, divisor 7
    assert take(Line(), line(0.4, 0.4, 0.4), batch_size=7).item() == pytest.approx(-0.6 / 7, rel=1e-5)


@pytest.mark.parametrize("physical_batch", [1, 3, 4, 100])
def test_the_physical_batch_changes_nothing_but_speed(physical_batch):
    """A batch in parts is clipped record by record, noised once and divided once."""

    class Once(Entropy):
        calls = 0

        def normal(self, count: int) -> np.ndarray:
            self.calls += 1
            return np.full(count, 1.0)

    entropy = Once()
    moved = take(
        Line(), line(0.4, 8.0, 0.4, 0.2), noise=2.0, batch_size=2, physical_batch=physical_batch, entropy=entropy
    )
    assert entropy.calls == 1
    # sum 0.2 + 1 + 0.2 + 0.1 = 1.5, noise 1 * 2 * 1
    assert moved.item() == pytest.approx(-(1.5 + 2.0) / 2, rel=1e-5)


def test_noise_has_the_standard_deviation_of_the_plan_in_every_coordinate():
    """Noise is noise_multiplier * max_grad_norm on the sum, so that much over batch_size on the mean.

    41,226 coordinates under a fixed key: the test is deterministic.
    """
    config, task = MODELS["cnn"]
    model = build(config, TASKS[task], seed=1)
    entropy = Entropy(bytes(32))
    entropy.bernoulli = lambda count, *, probability: np.arange(0)  # type: ignore[method-assign] # no data: noise alone
    moved = take(model, records(task, 1), noise=1.7, clip=0.6, batch_size=50, entropy=entropy).double()
    expected = 1.7 * 0.6 / 50
    # relative standard error of a standard deviation over n numbers: 1 / sqrt(2 n) = 0.35 %
    assert moved.std().item() == pytest.approx(expected, rel=0.014)
    assert abs(moved.mean().item()) < 4 * expected / len(moved) ** 0.5
    start = 0
    for parameter in model.parameters():  # no layer is left out, none gets another scale
        part = moved[start : start + parameter.numel()]
        start += parameter.numel()
        if len(part) > 500:
            assert part.std().item() == pytest.approx(expected, rel=0.15)


def test_noise_is_fresh_in_every_step_and_every_order():
    """Two orders under the operating system's keys never draw the same noise, nor two steps."""
    first = take(Line(), line(1.0), noise=1.0, entropy=Entropy())
    second = take(Line(), line(1.0), noise=1.0, entropy=Entropy())
    assert first.item() != second.item()


def test_batches_are_poisson_samples_at_the_plans_rate():
    """Each record is in each batch independently: the size of 2,000 batches has the binomial mean and variance.

    Under a fixed key: deterministic.
    """
    entropy, sizes = Entropy(bytes(32)), []
    original = entropy.bernoulli

    def recorded(count: int, *, probability: Fraction) -> np.ndarray:
        rows = original(count, probability=probability)
        sizes.append(len(rows))
        return rows

    entropy.bernoulli = recorded  # type: ignore[method-assign]
    take(Line(), line(*[0.0] * 60), steps=2000, rate=Fraction(1, 5), entropy=entropy)
    # binomial(60, 1/5): mean 12, variance 9.6; standard errors over 2,000 draws 0.069 and 0.30
    assert len(sizes) == 2000
    assert np.mean(sizes) == pytest.approx(12, abs=0.28)
    assert np.var(sizes) == pytest.approx(9.6, abs=1.2)


def test_nothing_of_an_earlier_client_is_left_in_the_resident_model():
    """The same order gives the same step whoever trained before, also after momentum and many gradients."""
    model = build(Cnn(name="cnn"), TASKS["digits"], seed=1)
    start = flat.flatten(model)
    resident = PrivateModel(model)
    shard, other = records("digits", 6), records("digits", 9)

    def order(data: Shard) -> torch.Tensor:
        flat.load(model, start)
        mechanism = Mechanism(sampling_rate=ALL, noise_multiplier=1.0, max_grad_norm=1.0, steps=3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
        resident.steps(optimizer, data, mechanism=mechanism, batch_size=4, physical_batch=4, entropy=NoNoise())
        return flat.flatten(model)

    alone = order(shard)
    order(other)
    assert torch.equal(order(shard), alone)
    assert all(p.grad is None and p.summed_grad is None for p in model.parameters())


# --- persons with several records -------------------------------------------------------------------------------------


def of_persons(shard: Shard, *units: int) -> Shard:
    """The same records, each with its person."""
    return replace(shard, units_N=np.array(units))


@pytest.mark.parametrize("physical_batch", [1, 2, 3, 100])
def test_a_persons_gradients_are_added_up_and_their_sum_is_clipped(physical_batch):
    """Persons with gradients (0.2, 0.3), (4, -3.5) and (1, 1, 1) and bound 1 move the sum by 0.5, 0.5 and 1.

    Clipped record by record the second person would add 1 - 1 = 0, and the third 3.
    """
    shard = line(0.4, 8.0, 2.0, 0.6, 2.0, -7.0, 2.0, units=[5, 9, 7, 5, 7, 9, 7])  # gradients are half of it
    moved = take(Line(), shard, clip=1.0, batch_size=4, physical_batch=physical_batch)
    assert moved.item() == pytest.approx(-(0.5 + 0.5 + 1.0) / 4, rel=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_persons_with_one_record_each_are_records(name):
    """The clipped sum is that of the record-level run, for every model of the registry."""
    config, task = MODELS[name]
    shard = records(task, 12)
    expected = take(build(config, TASKS[task], seed=1), shard, clip=0.3, batch_size=5)
    moved = take(build(config, TASKS[task], seed=1), of_persons(shard, *range(100, 112)), clip=0.3, batch_size=5)
    torch.testing.assert_close(moved, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", MODELS)
def test_the_sum_of_persons_is_that_of_plain_gradients(name):
    """Each person's gradient by ordinary backward, clipped by hand: what every model of the registry releases."""
    config, task = MODELS[name]
    owners = np.array([4, 1, 4, 4, 2, 1, 4, 2, 4, 4, 4, 1])
    shard = of_persons(records(task, 12), *owners)
    model, expected = build(config, TASKS[task], seed=1).train(), 0.0
    for person in (1, 2, 4):
        rows = np.flatnonzero(owners == person)
        loss = functional.cross_entropy(
            model(torch.from_numpy(shard.features_ND[rows])), torch.from_numpy(shard.labels_N[rows]), reduction="sum"
        )
        gradient = torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(model.parameters()))])
        assert gradient.norm() > 0.3, "clipping is active"
        expected = expected - gradient * 0.3 / gradient.norm() / 5
    for physical_batch in (2, 5, 100):
        moved = take(build(config, TASKS[task], seed=1), shard, clip=0.3, batch_size=5, physical_batch=physical_batch)
        torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-6)


def test_zeroing_one_person_moves_the_sum_by_at_most_the_bound():
    """The sensitivity holds for a person with all its records, and one with many records reaches it."""
    config, task = MODELS["cnn"]
    owners = np.array([0, 0, 0, 0, 0, 1, 2, 2])
    shard = records(task, 8)
    with_all = take(build(config, TASKS[task], seed=1), of_persons(shard, *owners), clip=0.5, batch_size=1)
    moves = []
    for person in range(3):
        keep = owners != person
        others = Shard(features_ND=shard.features_ND[keep], labels_N=shard.labels_N[keep], units_N=owners[keep])
        without = take(build(config, TASKS[task], seed=1), others, clip=0.5, batch_size=1)
        moves.append((with_all - without).norm().item())
    assert max(moves) <= 0.5 * (1 + 1e-5)
    assert max(moves) == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("physical_batch", [1, 2, 100])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_person_with_a_record_that_is_not_finite_adds_nothing(bad, physical_batch):
    """Its good records add nothing either, and the others' gradients are untouched."""
    clean = take(Line(), line(0.4, 0.2, units=[3, 3]), batch_size=1)
    shard = line(0.4, 1.0, bad, 0.2, units=[3, 8, 8, 3])
    moved = take(Line(), shard, batch_size=1, physical_batch=physical_batch)
    assert moved.item() == pytest.approx(clean.item(), rel=1e-6)
    assert clean.item() == pytest.approx(-0.3, rel=1e-5)


def test_persons_are_sampled_and_not_their_records():
    """A person is in a batch with all its records or with none: 2,000 batches of 20 persons at rate 1/5.

    Under a fixed key: deterministic.
    """
    entropy, asked = Entropy(bytes(32)), []
    original = entropy.bernoulli

    def recorded(count: int, *, probability: Fraction) -> np.ndarray:
        chosen = original(count, probability=probability)
        asked.append((count, len(chosen)))
        return chosen

    entropy.bernoulli = recorded  # type: ignore[method-assign]
    units = [person for person in range(20) for _ in range(3)]
    take(Line(), line(*[0.0] * 60, units=units), steps=2000, rate=Fraction(1, 5), entropy=entropy)
    assert {count for count, _ in asked} == {20}
    # binomial(20, 1/5): mean 4, standard error over 2,000 draws 0.04
    assert np.mean([size for _, size in asked]) == pytest.approx(4, abs=0.16)


def test_a_batch_without_persons_is_noised_all_the_same():
    """An empty batch takes its noise and its step, as for records."""

    class Nobody(Entropy):
        def bernoulli(self, count: int, *, probability: Fraction) -> np.ndarray:
            return np.arange(0)

        def normal(self, count: int) -> np.ndarray:
            return np.full(count, 2.0)

    moved = take(Line(), line(1.0, 1.0, units=[1, 1]), steps=5, noise=3.0, clip=0.5, batch_size=10, entropy=Nobody())
    assert moved.item() == pytest.approx(-5 * 3.0 / 10, rel=1e-6)


def test_nothing_of_an_earlier_person_is_left_in_the_resident_model():
    """After persons that came alone, in chunks and together, the hooks are on and no gradient is left."""
    model = build(Cnn(name="cnn"), TASKS["digits"], seed=1)
    start, resident = flat.flatten(model), PrivateModel(model)
    plain, persons = records("digits", 6), of_persons(records("digits", 9), 1, 1, 1, 1, 1, 2, 2, 3, 3)

    def order(data: Shard) -> torch.Tensor:
        flat.load(model, start)
        mechanism = Mechanism(sampling_rate=ALL, noise_multiplier=1.0, max_grad_norm=1.0, steps=2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
        resident.steps(optimizer, data, mechanism=mechanism, batch_size=4, physical_batch=4, entropy=NoNoise())
        return flat.flatten(model)

    alone, first = order(plain), order(persons)
    assert torch.equal(order(plain), alone)
    assert torch.equal(order(persons), first)
    assert all(p.grad is None and p.summed_grad is None for p in model.parameters())


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False), nn.BatchNorm2d(4, affine=False)]
)
def test_batch_normalisation_is_refused(layer):
    """Whatever its options, it mixes the samples of a batch."""
    with pytest.raises(ModelRefusedError, match="cannot be trained privately"):
        refuse_unfit(nn.Sequential(nn.Conv2d(1, 4, 3), layer))


def test_a_model_that_keeps_buffers_is_refused():
    """A buffer would be copied raw into what leaves."""

    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(1))
            self.linear = nn.Linear(1, 2)

    with pytest.raises(ModelRefusedError, match="seen"):
        refuse_unfit(Counter())


@pytest.mark.parametrize("name", MODELS)
def test_every_model_of_the_registry_is_fit(name):
    """The models that a scenario can name are accepted, batch normalisation aside."""
    config, task = MODELS[name]
    model = build(config, TASKS[task], seed=1)
    refuse_unfit(model)
    assert model.training


def test_opacus_is_the_version_whose_internals_this_rests_on():
    """`PrivateOptimizer` overrides methods of Opacus 1.6: another version must be read first."""
    assert opacus.__version__.startswith("1.6.")
    overridden = {"pre_step", "add_noise", "accumulated_iterations"}
    assert overridden <= vars(DPOptimizer).keys() & vars(PrivateOptimizer).keys()
