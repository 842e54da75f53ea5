"""Parameters as one flat vector, and back."""

import pytest
import torch
from torch import nn

from common import flat


def network():
    """A small network with a buffer: 2 x 1 x 2 x 2 + 2 + (2 + 2) + 3 x 2 + 3 = 23 parameters."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3))


def test_size_counts_parameters_and_no_buffers():
    """8 + 2 of the convolution, 2 + 2 of the normalisation, 6 + 3 of the dense layer."""
    assert flat.size(network()) == 23


def test_parameters_come_back_bit_for_bit():
    """`load` of `flatten` restores every bit, those of -0.0, NaN and the smallest numbers included."""
    source, target = network(), network()
    with torch.no_grad():
        source[0].weight.view(-1)[:4] = torch.tensor([-0.0, float("nan"), float("inf"), 1e-45])
    flat_P = flat.flatten(source)
    flat.load(target, flat_P)
    for one, other in zip(source.parameters(), target.parameters(), strict=True):
        assert torch.equal(one.detach().view(torch.int32), other.detach().view(torch.int32))
    assert torch.equal(flat.flatten(target).view(torch.int32), flat_P.view(torch.int32))


def test_the_order_is_that_of_the_parameters():
    """A vector 0, 1, 2, ... fills parameter after parameter, each row by row."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(1, 2, bias=False))
    flat.load(model, torch.arange(8.0))
    assert [parameter.tolist() for parameter in model.parameters()] == [[[0, 1], [2, 3]], [4, 5], [[6], [7]]]
    assert flat.flatten(model).tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


def test_the_order_does_not_depend_on_the_memory_format():
    """A model kept channels-last flattens as the same model kept contiguous, and loads alike."""
    usual, last = network(), network().to(memory_format=torch.channels_last)
    assert torch.equal(flat.flatten(usual), flat.flatten(last))
    flat.load(last, torch.arange(23.0))
    assert flat.flatten(last).tolist() == list(range(23))
    assert last[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_flatten_returns_flat_float32_on_the_cpu():
    """The vector has one dimension, needs no gradient, and is what NumPy can view."""
    flat_P = flat.flatten(network())
    assert flat_P.shape == (23,)
    assert flat_P.dtype == torch.float32
    assert flat_P.device.type == "cpu"
    assert not flat_P.requires_grad


@pytest.mark.parametrize(
    "make", [network, lambda: nn.Linear(3, 1, bias=False)], ids=["many parameters", "one parameter"]
)
def test_flatten_returns_a_copy(make):
    """Writing to the vector changes no weight of the model."""
    model = make()
    flat_P = flat.flatten(model)
    before = flat_P.clone()
    flat_P.zero_()
    assert torch.equal(flat.flatten(model), before)


def test_load_copies():
    """Writing to the vector after loading changes no weight, and the parameters stay the same objects."""
    model = network()
    parameters = list(model.parameters())
    flat_P = torch.ones(23)
    flat.load(model, flat_P)
    flat_P.zero_()
    assert flat.flatten(model).tolist() == [1] * 23
    assert all(one is other for one, other in zip(parameters, model.parameters(), strict=True))


def test_buffers_do_not_travel():
    """Statistics of a normalisation are neither in the vector nor touched by loading one."""
    model = network()
    model[1].running_mean.fill_(5.0)
    flat.load(model, torch.zeros(23))
    assert model[1].running_mean.tolist() == [5.0, 5.0]


@pytest.mark.parametrize("size", [0, 22, 24])
def test_a_vector_that_does_not_fit_is_refused_whole(size):
    """A vector of another size raises ValueError with both sizes, and no weight has changed."""
    model = network()
    before = flat.flatten(model)
    with pytest.raises(ValueError, match=rf"^weights: expected 23 numbers, got {size}$"):
        flat.load(model, torch.zeros(size))
    assert torch.equal(flat.flatten(model), before)
