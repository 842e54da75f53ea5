"""The global model: federated averaging, its optimisers, its checkpoint, and the coordinator's noise."""

import math

import numpy as np
import pytest
import torch

from common.config import Server
from common.privacy.entropy import Entropy
from server.global_model import GlobalModel, float32, noised

START = torch.tensor([1.0, -2.0, 3.0])
OPTIMIZERS = ["sgd", "momentum", "adam"]


def server(**keys: object) -> Server:
    return Server(cohort=1, max_participations=1, **keys)  # type: ignore[arg-type]


def walk(model: GlobalModel, *, rounds: range) -> GlobalModel:
    """Move a model by a mean that differs from round to round."""
    for number in rounds:
        model.step(np.array([0.1 * number, -0.3, 0.7 / number]))
    return model


def bits(state: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in state.items()}


def test_sgd_with_rate_one_adds_the_mean():
    """The plain federated average: weights + mean, rounded to float32 as the weights are."""
    model = GlobalModel(START, server())
    mean = np.array([0.1, 0.2, -0.3])
    model.step(mean)
    np.testing.assert_array_equal(model.weights_P.numpy(), START.numpy() + mean.astype(np.float32))


def test_sgd_learning_rate_scales_the_mean():
    """Half the rate, half the way."""
    model = GlobalModel(START, server(learning_rate=0.5))
    model.step(np.array([2.0, 4.0, -8.0]))
    assert model.weights_P.tolist() == [2.0, 0.0, -1.0]  # 1 + 2/2, -2 + 4/2, 3 - 8/2


def test_momentum_carries_earlier_means_on():
    """The velocity is momentum * velocity + mean (Sutskever et al. 2013, as torch has it)."""
    model = GlobalModel(torch.zeros(1), server(optimizer="momentum", momentum=0.5))
    model.step(np.array([1.0]))
    model.step(np.array([1.0]))
    assert model.weights_P.tolist() == [2.5]  # 1, then 0.5 * 1 + 1 = 1.5


def test_first_adam_step_has_the_size_of_the_rate():
    """Bias correction makes the first step rate * mean / (|mean| + eps), with the paper's large eps of 1e-3."""
    model = GlobalModel(torch.zeros(2), server(optimizer="adam", learning_rate=0.1))
    model.step(np.array([4.0, -4.0]))
    assert model.weights_P.tolist() == pytest.approx([0.1 * 4 / 4.001, -0.1 * 4 / 4.001], rel=1e-6)


def test_the_caller_s_weights_are_left_alone():
    """The model moves a copy."""
    start = START.clone()
    walk(GlobalModel(start, server()), rounds=range(1, 3))
    assert torch.equal(start, START)


@pytest.mark.parametrize("decay", [0.0, 0.9])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_model_goes_on_from_its_state_bit_for_bit(optimizer, decay):
    """A new model restored from a state ends where the unbroken one ends, optimiser and average included."""
    keys = {"optimizer": optimizer, "learning_rate": 0.3, "ema_decay": decay}
    unbroken = walk(GlobalModel(START, server(**keys)), rounds=range(1, 6))
    first = walk(GlobalModel(START, server(**keys)), rounds=range(1, 3))
    second = GlobalModel(torch.zeros(3), server(**keys))
    second.restore(first.state())
    walk(second, rounds=range(3, 6))
    assert bits(second.state()) == bits(unbroken.state())
    assert second.result_P.numpy().tobytes() == unbroken.result_P.numpy().tobytes()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_state_of_a_restored_model_is_the_state(optimizer):
    """`state` after `restore` gives back what was put in, from before the first step and from after some."""
    for rounds in (range(0), range(1, 4)):
        saved = walk(GlobalModel(START, server(optimizer=optimizer)), rounds=rounds).state()
        model = GlobalModel(torch.zeros(3), server(optimizer=optimizer))
        model.restore(saved)
        assert bits(model.state()) == bits(saved)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_restoring_forgets_what_the_model_did_since(optimizer):
    """A model that went on is back where it was, also when the state is from before its first step."""
    model = GlobalModel(START, server(optimizer=optimizer))
    saved = model.state()
    walk(model, rounds=range(1, 3))
    model.restore(saved)
    assert bits(model.state()) == bits(saved)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_stepping_leaves_a_saved_state_as_it_was(optimizer):
    """What `state` returned, or `restore` was given, is a copy: training on does not write into it."""
    model = walk(GlobalModel(START, server(optimizer=optimizer)), rounds=range(1, 3))
    saved = model.state()
    before = bits(saved)
    walk(model, rounds=range(3, 5))
    assert bits(saved) == before
    model.restore(saved)
    walk(model, rounds=range(3, 5))
    assert bits(saved) == before


def test_without_decay_the_result_is_the_weights():
    """No average unless asked for: the result is the last weights themselves."""
    model = walk(GlobalModel(START, server()), rounds=range(1, 4))
    assert model.result_P.numpy().tobytes() == model.weights_P.numpy().tobytes()


def test_average_begins_at_two_elevenths():
    """After one round the result is 2/11 of the first weights and 9/11 of the new ones."""
    model = GlobalModel(torch.zeros(1), server(ema_decay=0.99))
    model.step(np.array([11.0]))
    assert model.result_P.tolist() == pytest.approx([9.0], rel=1e-6)  # 11 * 9/11
    model.step(np.array([0.0]))
    assert model.result_P.tolist() == pytest.approx([9 * 3 / 12 + 11 * 9 / 12], rel=1e-6)  # then (1 + 2) / (10 + 2)


def test_decay_of_the_average_rises_to_the_scenario_s():
    """A small decay is reached at once: 0.1 is below 2/11."""
    model = GlobalModel(torch.zeros(1), server(ema_decay=0.1))
    model.step(np.array([10.0]))
    assert model.result_P.tolist() == pytest.approx([9.0], rel=1e-6)  # 0.1 * 0 + 0.9 * 10


def test_average_does_not_touch_training():
    """The weights move as they would without an average."""
    plain, averaged = (
        walk(GlobalModel(START, server(ema_decay=decay)), rounds=range(1, 6)).weights_P for decay in (0.0, 0.9)
    )
    assert torch.equal(plain, averaged)


def test_float32_shares_the_weights_memory():
    """The order's array is made from the weights without a copy in between."""
    weights = torch.zeros(2)
    array = float32(weights)
    weights[0] = 5
    assert array.dtype == np.float32
    assert array.tolist() == [5.0, 0.0]


def test_noise_has_the_standard_deviation_of_multiplier_times_norm():
    """0.5 * 4 = 2 in each coordinate, with mean 0; a false alarm has a chance below 1e-6."""
    count = 100_000
    noise = noised(np.full(count, 7.0), noise_multiplier=0.5, max_norm=4.0, entropy=Entropy(bytes(32))) - 7.0
    # standard errors: of the deviation 2 / sqrt(2 n), of the mean 2 / sqrt(n); 5.5 of each: 4e-8 a test
    assert abs(noise.std() - 2) < 5.5 * 2 / math.sqrt(2 * count)
    assert abs(noise.mean()) < 5.5 * 2 / math.sqrt(count)


def test_noise_is_added_in_double_precision_and_leaves_the_sum_alone():
    """The caller's sum is not written to, and the result is float64."""
    total = np.zeros(3)
    result = noised(total, noise_multiplier=1.0, max_norm=1.0, entropy=Entropy())
    assert total.tolist() == [0.0, 0.0, 0.0]
    assert result.dtype == np.float64
    assert (result != 0).all()


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["noise_multiplier", "max_norm"])
def test_noise_without_a_scale_is_refused(name, value):
    """No noise, or noise of an unknown scale, must not pass for private."""
    scale = {"noise_multiplier": 1.0, "max_norm": 1.0} | {name: value}
    with pytest.raises(ValueError, match=name):
        noised(np.zeros(1), **scale, entropy=Entropy())
