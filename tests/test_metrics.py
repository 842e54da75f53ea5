"""One noised count of a client's own records: exact under the noise, and the noise that was planned."""

import numpy as np
import pytest
import torch
from torch import nn

from client.metrics import correct, noised_correct
from client.private import PrivateModel
from common import flat
from common.model_tables import Cnn, Transformer
from common.models.registry import build
from common.privacy.entropy import Entropy
from common.shards import Shard
from common.tasks import TASKS


class Sign(nn.Module):
    """Class 1 for a positive number, else class 0."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros_like(x), self.scale * x], dim=1)


def numbers(*values: float, units: list[int] | None = None) -> Shard:
    """Records of class 1: a positive number is right."""
    return Shard(
        features_ND=np.array(values, np.float32).reshape(-1, 1),
        labels_N=np.ones(len(values), np.int64),
        units_N=None if units is None else np.array(units),
    )


@pytest.mark.parametrize("physical_batch", [1, 2, 3, 100])
def test_records_are_counted_one_by_one(physical_batch):
    """Three of five are right, however many are in memory at once."""
    assert correct(Sign(), numbers(1, -1, 2, -3, 4), physical_batch=physical_batch) == 3.0


def test_a_person_counts_the_share_of_its_records():
    """2 of 3, 1 of 1 and 0 of 1 right: 2/3 + 1 + 0 persons."""
    shard = numbers(1, -1, 2, -3, 4, units=[7, 7, 5, 9, 7])
    assert correct(Sign(), shard, physical_batch=2) == pytest.approx(2 / 3 + 1, rel=1e-12)


@pytest.mark.parametrize("by_person", [False, True])
def test_zeroing_one_unit_moves_the_count_by_at_most_one(by_person):
    """The sensitivity that the noise is calibrated to, whatever the records are, NaN included."""
    generator = np.random.default_rng(0)
    values = generator.standard_normal(60).astype(np.float32)
    values[7] = np.nan
    units = np.sort(generator.integers(0, 9, 60)) if by_person else np.arange(60)
    whole = numbers(*values, units=units.tolist() if by_person else None)
    everything, moves = correct(Sign(), whole, physical_batch=16), []
    for unit in np.unique(units):
        keep = units != unit
        others = numbers(*values[keep], units=units[keep].tolist() if by_person else None)
        moves.append(everything - correct(Sign(), others, physical_batch=16))
    assert min(moves) >= 0
    assert max(moves) <= 1 + 1e-12
    assert max(moves) == pytest.approx(1.0) or by_person


def test_noise_has_the_mean_and_the_deviation_of_the_plan():
    """20,000 counts of 3 right records at noise 5, each under a key of its own that is fixed: deterministic.

    The mean is 3 with standard error 5/sqrt(20,000) = 0.035, the deviation 5 with 5/sqrt(40,000) = 0.025; a bound of
    4.4 standard errors would fail with probability 1e-5 under other keys.
    """
    model, shard = Sign(), numbers(1, -1, 2, -3, 4)
    counts = [
        noised_correct(
            model, shard, noise_multiplier=5.0, physical_batch=8, entropy=Entropy(number.to_bytes(32, "big"))
        )
        for number in range(20_000)
    ]
    assert np.mean(counts) == pytest.approx(3.0, abs=4.4 * 5 / 20_000**0.5)
    assert np.std(counts) == pytest.approx(5.0, abs=4.4 * 5 / 40_000**0.5)
    # not only its first two moments: 31.7 % lie beyond one deviation, standard error 0.33 %
    assert np.mean(np.abs(np.array(counts) - 3) > 5) == pytest.approx(0.3173, abs=4.4 * 0.0033)


def test_noise_comes_from_the_secret_stream():
    """The count is that of the records plus the stream's first normal number times the noise, rounded once."""
    noise = Entropy(bytes(32)).normal(1)[0] * 7.0
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - the global state is what is under test
    count = noised_correct(
        Sign(), numbers(1, -1, 2), noise_multiplier=7.0, physical_batch=8, entropy=Entropy(bytes(32))
    )
    assert count == np.float32(2 + noise)
    fresh = [
        noised_correct(Sign(), numbers(1), noise_multiplier=7.0, physical_batch=8, entropy=Entropy()) for _ in range(2)
    ]
    assert fresh[0] != fresh[1]


@pytest.mark.parametrize("private", [False, True])
def test_a_model_comes_back_as_it_was(private):
    """Weights, mode, gradients and random state are untouched, and dropout is off while it counts."""
    config = Transformer(name="transformer", layers=1, dropout=0.5, vocabulary=64, tokens=8)
    model = build(config, TASKS["sms-spam"], seed=1).train()
    if private:
        PrivateModel(model)
    generator = np.random.default_rng(0)
    shard = Shard(features_ND=generator.integers(1, 64, (40, 8)), labels_N=generator.integers(0, 2, 40))
    before, state = flat.flatten(model), torch.get_rng_state()
    counts = {correct(model, shard, physical_batch=size) for size in (7, 40, 40)}
    assert len(counts) == 1
    assert model.training
    assert torch.equal(flat.flatten(model), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None and getattr(p, "grad_sample", None) is None for p in model.parameters())


def test_a_count_is_that_of_plain_evaluation():
    """The first choice of a model of the registry, as anybody would compute it."""
    model = build(Cnn(name="cnn"), TASKS["digits"], seed=1)
    generator = np.random.default_rng(0)
    features = generator.standard_normal((50, 1, 8, 8)).astype(np.float32)
    shard = Shard(features_ND=features, labels_N=generator.integers(0, 10, 50))
    expected = (model.eval()(torch.from_numpy(features)).argmax(dim=1).numpy() == shard.labels_N).sum()
    assert correct(model, shard, physical_batch=50) == expected
    assert not model.training
