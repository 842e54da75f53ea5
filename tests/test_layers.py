"""What one unit adds to a layer's gradient, against plain autograd, record by record."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from client.gradients.layers import layer_shares, obstacle

LAYERS = {
    "dense on one position": (lambda: nn.Linear(5, 3), (5,)),
    "dense without bias": (lambda: nn.Linear(5, 3, bias=False), (5,)),
    "dense on four positions": (lambda: nn.Linear(5, 3), (4, 5)),
    "dense on a plane of positions": (lambda: nn.Linear(5, 3), (2, 3, 5)),
    "convolution": (lambda: nn.Conv2d(2, 3, 3), (2, 6, 5)),
    "convolution of one channel": (lambda: nn.Conv2d(1, 4, 3), (1, 7, 7)),
    "convolution, strides, padding, dilation": (
        lambda: nn.Conv2d(2, 3, (2, 3), stride=(2, 1), padding=(1, 2), dilation=(2, 1)),
        (2, 7, 6),
    ),
    "convolution without bias": (lambda: nn.Conv2d(2, 3, 3, bias=False), (2, 5, 5)),
    "convolution of the whole image": (lambda: nn.Conv2d(2, 3, 4), (2, 4, 4)),
    "convolution of a sequence": (lambda: nn.Conv1d(2, 3, 3, stride=2, padding=1, dilation=2), (2, 9)),
    "layer normalisation": (lambda: nn.LayerNorm(5), (4, 5)),
    "layer normalisation of a plane": (lambda: nn.LayerNorm((4, 5)), (3, 4, 5)),
    "layer normalisation without bias": (lambda: nn.LayerNorm(5, bias=False), (5,)),
    "group normalisation": (lambda: nn.GroupNorm(2, 6), (6, 3, 4)),
    "group normalisation of a vector": (lambda: nn.GroupNorm(3, 6), (6,)),
}
EMBEDDINGS = {
    "embedding": lambda: nn.Embedding(7, 4),
    "embedding with padding": lambda: nn.Embedding(7, 4, padding_idx=0),
}


def shares_of(layer: nn.Module, given_B: Tensor, owner_B: Tensor | None = None, units: int | None = None):
    """The shares after a forward pass whose losses are weighted sums of outputs, and the weights of that sum."""
    output = layer(given_B)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(3))
    return layer_shares(layer, given_B, weights, owner_B, units=units or len(given_B)), weights


def by_autograd(layer: nn.Module, given_B: Tensor, weights_B: Tensor) -> list[list[Tensor]]:
    """For each record the gradient of each parameter, one backward pass a record.

    The input's gradient is asked for too: without it PyTorch 2.13 dies in group normalisation in channels_last.
    """
    parameters, gradients = list(layer.parameters()), []
    for row in range(len(given_B)):
        given = given_B[row : row + 1].clone()
        wanted = [*parameters, given.requires_grad_()] if given.is_floating_point() else parameters
        loss = (layer(given) * weights_B[row : row + 1]).sum()
        gradients.append(list(torch.autograd.grad(loss, wanted))[: len(parameters)])
    return gradients


def batch_for(name: str, records: int) -> tuple[nn.Module, Tensor]:
    """A layer with fresh weights and random records for it."""
    torch.manual_seed(1)
    if name in EMBEDDINGS:
        return EMBEDDINGS[name](), torch.randint(0, 7, (records, 6))
    make, shape = LAYERS[name]
    layer = make()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer, torch.randn(records, *shape)


def check(layer: nn.Module, given_B: Tensor, owners: list[int] | None) -> None:
    """Norms and weighted sums of every unit agree with those of gradients that were had one by one."""
    owner_B = None if owners is None else torch.tensor(owners)
    units = len(given_B) if owners is None else max(owners) + 1
    shares, weights = shares_of(layer, given_B, owner_B, units)
    single = by_autograd(layer, given_B, weights)
    factors_U = torch.rand(units, generator=torch.Generator().manual_seed(4)) + 0.1
    assert {id(share.parameter) for share in shares} == {id(parameter) for parameter in layer.parameters()}
    order = {id(parameter): position for position, parameter in enumerate(layer.parameters())}
    for share in shares:
        of_unit = torch.zeros(units, *share.parameter.shape)
        for row, gradients in enumerate(single):
            of_unit[row if owners is None else owners[row]] += gradients[order[id(share.parameter)]]
        torch.testing.assert_close(share.norms_U(), of_unit.flatten(1).norm(dim=1), rtol=1e-5, atol=1e-6)
        expected = torch.einsum("u,u...", factors_U, of_unit)
        torch.testing.assert_close(share.weighted(factors_U), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("records", [1, 2, 7])
@pytest.mark.parametrize("name", [*LAYERS, *EMBEDDINGS])
def test_every_record_has_the_norm_and_the_gradient_that_autograd_gives_it(name, records):
    """For each kind of layer that is known."""
    layer, given_B = batch_for(name, records)
    check(layer, given_B, None)


@pytest.mark.parametrize("name", [*LAYERS, *EMBEDDINGS])
def test_the_records_of_a_person_are_added_up_before_they_are_squared(name):
    """Seven records of three persons, in no order."""
    layer, given_B = batch_for(name, 7)
    check(layer, given_B, [2, 0, 2, 1, 2, 0, 2])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["convolution", "convolution, strides, padding, dilation", "group normalisation"])
def test_the_memory_layout_changes_nothing(name, layout):
    """Opacus's convolutions read other numbers in channels_last; these do not."""
    layer, given_B = batch_for(name, 5)
    check(layer.to(memory_format=layout), given_B.to(memory_format=layout), None)


@settings(max_examples=60, deadline=None)
@given(
    sides=st.tuples(st.integers(4, 9), st.integers(4, 9)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
def test_convolutions_of_any_shape_agree_with_autograd(sides, kernel, stride, padding, channels):
    """Kernels, strides, paddings and channels at random."""
    torch.manual_seed(0)
    layer = nn.Conv2d(*channels, kernel, stride=stride, padding=padding)
    check(layer, torch.randn(3, channels[0], *sides), None)


def test_tokens_that_a_record_repeats_count_together():
    """Two equal tokens with gradients 3 and 1 make one row of 4, whose norm is 4, not sqrt(9 + 1)."""
    layer = nn.Embedding(3, 1)
    shares = layer_shares(layer, torch.tensor([[2, 2]]), torch.tensor([[[3.0], [1.0]]]), None, units=1)
    assert shares[0].norms_U().tolist() == [4.0]
    assert shares[0].weighted(torch.tensor([0.5])).tolist() == [[0.0], [0.0], [2.0]]


def test_gradients_that_cancel_leave_their_true_norm():
    """Positions of 1e4, -1e4 and 1: the norm is 1, which a difference of squares in single precision loses."""
    layer = nn.Linear(1, 1, bias=False)
    given_BTD = torch.tensor([[[1e4], [1e4], [1.0]]])
    gradient_BTE = torch.tensor([[[1.0], [-1.0], [1.0]]])
    shares = layer_shares(layer, given_BTD, gradient_BTE, None, units=1)
    assert shares[0].norms_U().item() == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("name", "side"),
    [*((name, "input") for name in LAYERS), *((name, "output gradient") for name in (*LAYERS, *EMBEDDINGS))],
)
def test_without_a_unit_the_others_sum_is_what_it_was_even_where_it_is_not_finite(name, side, bad):
    """0 times infinity would be NaN."""
    layer, given_B = batch_for(name, 3)
    _, weights = shares_of(layer, given_B)
    factors_U = torch.tensor([0.7, 0.0, 1.0])
    clean = [share.weighted(factors_U) for share in layer_shares(layer, given_B, weights, None, units=3)]
    (given_B if side == "input" else weights)[1] = bad
    poisoned = layer_shares(layer, given_B, weights, None, units=3)
    norms = torch.stack([share.norms_U() for share in poisoned]).norm(dim=0)
    if side == "output gradient" or "norm" not in name:  # a normalised constant may be finite again
        assert not norms[1].isfinite()
    assert norms[[0, 2]].isfinite().all()
    for share, expected in zip(poisoned, clean, strict=True):
        rest = share.without(torch.tensor([False, True, False]))
        torch.testing.assert_close(rest.weighted(factors_U), expected)


@pytest.mark.parametrize("name", [*LAYERS, *EMBEDDINGS])
def test_half_precision_is_added_up_in_single_precision(name):
    """What autocast hands over in bfloat16 is squared and summed in float32."""
    layer, given_B = batch_for(name, 3)
    _, weights = shares_of(layer, given_B)
    short = given_B.bfloat16() if given_B.is_floating_point() else given_B
    shares = layer_shares(layer, short, weights.bfloat16(), None, units=3)
    expected = layer_shares(
        layer, short.float() if given_B.is_floating_point() else short, weights.bfloat16().float(), None, units=3
    )
    for share, same in zip(shares, expected, strict=True):
        assert share.norms_U().dtype == torch.float32
        assert torch.equal(share.weighted(torch.ones(3)), same.weighted(torch.ones(3)))


def test_frozen_parameters_have_no_share():
    """Only what is trained is summed."""
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(requires_grad=False)
    shares, _ = shares_of(layer, torch.randn(3, 2))
    assert [share.parameter is layer.weight for share in shares] == [True]


class Scaled(nn.Linear):
    """A dense layer that computes something else."""

    def forward(self, given_B: Tensor) -> Tensor:
        return 2 * super().forward(given_B)


@pytest.mark.parametrize(
    ("layer", "word"),
    [
        (nn.Conv2d(4, 4, 3, groups=2), "groups"),
        (nn.Conv2d(2, 2, 3, padding="same"), "padding"),
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), "padding"),
        (nn.ConvTranspose2d(2, 2, 3), "no rule"),
        (nn.Conv3d(2, 2, 3), "no rule"),
        (nn.Embedding(5, 2, max_norm=1.0), "max_norm"),
        (nn.Embedding(5, 2, scale_grad_by_freq=True), "scale_grad_by_freq"),
        (nn.Embedding(5, 2, sparse=True), "sparse"),
        (nn.LSTM(2, 2), "no rule"),
        (nn.PReLU(), "no rule"),
        (Scaled(2, 2), "Scaled has no rule"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), "no rule"),
    ],
)
def test_a_layer_without_a_rule_is_named(layer, word):
    """It is an obstacle, never computed by a rule that nearly fits."""
    assert word in obstacle(layer)


@pytest.mark.parametrize("layer", [nn.ReLU(), nn.Dropout(), nn.Sequential(nn.Conv3d(1, 1, 1)), nn.LayerNorm(3)])
def test_a_layer_with_a_rule_or_without_parameters_of_its_own_is_no_obstacle(layer):
    """Containers are asked for themselves; their layers are asked one by one."""
    assert obstacle(layer) is None
