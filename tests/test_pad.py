"""The pad and its canaries: a gradient that is known beforehand, in the same model that trains on records."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from client.gradients.hooks import Hooks
from client.gradients.one_backward import OneBackward, obstacle_in
from common.canaries import IDLE, MARK, canary_rows, has_mark
from common.config import dump, parse
from common.devices import autocast
from common.errors import ScenarioError
from common.models.convolutional import ConvolutionalNet
from common.models.pad import Padded, mixing_layer
from common.models.registry import build, model_of
from common.tasks import task_of

SCENARIO = """
run = {name = "padded", rounds = 2}
data = {dataset = "digits", clients = 2}
model = {name = "cnn", channels = [4, 4, 4], dense = 8}
training = {batch_size = 40, local_steps = 1}
privacy = {epsilon = 8.0, max_grad_norm = 0.5}
"""
AUDITED = SCENARIO + "audit = {canaries = 5}\n"
TEXT = """
run = {name = "padded", rounds = 2}
data = {dataset = "sms-spam", clients = 2}
model = {name = "transformer", d_model = 8, heads = 2, feed_forward = 8, layers = 1, tokens = 6, vocabulary = 16}
training = {batch_size = 40, local_steps = 1}
privacy = {unit = "none"}
audit = {canaries = 5}
"""


def batch(scenario_text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A record, canary 3, an idle canary, and canary 0."""
    scenario = parse(scenario_text)
    task = task_of(scenario.data)
    if task.is_text:
        record, shape, dtype = np.full((1, 6), 4, np.int64), (6,), np.dtype(np.int64)
    else:
        record, shape, dtype = np.full((1, 1, 8, 8), 0.5, np.float32), (1, 8, 8), np.dtype(np.float32)
    rows = canary_rows(np.array([3, 1, 0]), np.array([True, False, True]), shape=shape, dtype=dtype)
    return torch.from_numpy(np.concatenate([record, rows])), torch.tensor([1, 0, 0, 0])


@pytest.mark.parametrize("text", [AUDITED, TEXT])
def test_a_canary_pulls_at_its_own_weight_and_nothing_else_moves(text):
    """The gradient of one row alone: gradient_norm downhill at its weight, zero at all others, 0 when idle."""
    scenario = parse(text)
    model = model_of(scenario).eval()
    features, labels = batch(text)
    norm = scenario.audit.gradient_norm
    for row, expected in ((1, [0, 0, 0, -norm, 0]), (2, [0.0] * 5), (3, [-norm, 0, 0, 0, 0])):
        model.zero_grad(set_to_none=False)
        functional.cross_entropy(model(features[row : row + 1]), labels[row : row + 1]).backward()
        assert model.pad.weight.grad.flatten().tolist() == expected
        assert all(not part.grad.any() for part in model.body.parameters() if part.grad is not None)


def test_a_canarys_gradient_does_not_depend_on_how_far_its_weight_came():
    """The loss is linear: the softmax of a label 10,000 below the others is exactly 0."""
    model = model_of(parse(AUDITED))
    features, labels = batch(AUDITED)
    for weight in (-100.0, 0.0, 100.0):  # within 1e3 / gradient_norm = 200
        with torch.no_grad():
            model.pad.weight.fill_(weight)
        model.zero_grad()
        functional.cross_entropy(model(features[1:2]), labels[1:2]).backward()
        assert model.pad.weight.grad.flatten().tolist() == [0, 0, 0, -5.0, 0]


@pytest.mark.parametrize("text", [AUDITED, TEXT])
def test_a_record_sees_the_body_alone(text):
    """Its logits are the body's, bit for bit, and its gradient in the pad is zero."""
    model = model_of(parse(text)).eval()
    features, labels = batch(text)
    assert torch.equal(model(features[:1]), model.body(features[:1]))
    functional.cross_entropy(model(features[:1]), labels[:1]).backward()
    assert not model.pad.weight.grad.any()


@pytest.mark.parametrize("text", [AUDITED, TEXT])
@pytest.mark.parametrize("way", ["one backward", "hooks"])
def test_both_ways_to_a_clipped_sum_clip_a_canary_to_the_bound(text, way):
    """Norm 5 (or 10), bound 0.5: each canary adds 0.5 downhill at its weight, in a batch with a record."""
    model = model_of(parse(text))
    assert obstacle_in(model) is None
    sums = OneBackward(model, autocast=autocast(torch.device("cpu"), "float32")) if way != "hooks" else Hooks(model)
    features, labels = batch(text)
    *_, pad = sums.clipped_sum(features, labels, None, units=4, max_norm=0.5)
    assert pad.flatten().tolist() == pytest.approx([-0.5, 0, 0, -0.5, 0], abs=1e-6)


def test_a_person_with_two_canary_rows_is_clipped_as_one():
    """Two rows of one person at the same weight: gradient 10, clipped to 0.5."""
    model = model_of(parse(AUDITED))
    sums = OneBackward(model, autocast=autocast(torch.device("cpu"), "float32"))
    rows = torch.from_numpy(
        canary_rows(np.array([2, 2]), np.array([True, True]), shape=(1, 8, 8), dtype=np.dtype(np.float32))
    )
    owner = torch.tensor([0, 0])
    *_, pad = sums.clipped_sum(rows, torch.zeros(2, dtype=torch.long), owner, units=1, max_norm=0.5)
    assert pad.flatten().tolist() == pytest.approx([0, 0, -0.5, 0, 0], abs=1e-6)


def test_the_pad_comes_last_and_changes_no_other_first_weight():
    """The body's weights are those of the scenario without an audit, bit for bit; the pad begins at zero."""
    plain, padded = build(parse(SCENARIO).model, task_of(parse(SCENARIO).data), seed=7), model_of(parse(AUDITED))
    names = [name for name, _ in padded.named_parameters()]
    assert names == [*(f"body.{name}" for name, _ in plain.named_parameters()), "pad.weight"]
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), padded.body.parameters(), strict=True))
    assert not padded.pad.weight.any()


def test_the_table_says_how_many_and_its_norm_is_ten_bounds():
    """A canary's gradient is ten times what it is clipped to, unless the table says otherwise; the file comes back."""
    audited = parse(AUDITED)
    assert (audited.audit.canaries, audited.audit.gradient_norm) == (5, 5.0)
    assert parse(dump(audited)) == audited
    assert "audit" not in dump(parse(SCENARIO))
    with pytest.raises(ScenarioError, match=r"audit\.canaries"):
        parse(SCENARIO + "audit = {canaries = 0}\n")


def test_a_row_holds_the_mark_and_the_weight_or_says_that_it_is_idle():
    """Two numbers are all that a canary needs; with one there is no room."""
    rows = canary_rows(np.array([4, 2]), np.array([True, False]), shape=(3,), dtype=np.dtype(np.int64))
    assert rows.tolist() == [[MARK, 4, 0], [MARK, IDLE, 0]]
    assert has_mark(np.concatenate([rows, [[1, 4, 0]]])).tolist() == [True, True, False]
    with pytest.raises(ValueError, match="2 numbers"):
        canary_rows(np.array([0]), np.array([True]), shape=(1,), dtype=np.dtype(np.float32))


def test_every_weight_of_a_large_pad_can_be_named_in_single_precision():
    """The largest pad has 2^20 weights, and float32 holds whole numbers up to 2^24."""
    last = 2**20 - 1
    rows = canary_rows(np.array([last]), np.array([True]), shape=(2,), dtype=np.dtype(np.float32))
    assert int(rows[0, 1]) == last
    assert rows[0, 0] == MARK


def test_a_layer_that_looks_at_other_records_is_named():
    """Batch normalisation answers a record differently beside another one; group normalisation and dropout do not."""
    config = parse(SCENARIO).model
    features = torch.from_numpy(np.random.default_rng(1).normal(size=(3, 1, 8, 8)).astype(np.float32))
    for normalization, layer in (("none", None), ("group", None), ("batch", "features.1 (BatchNorm2d)")):
        model = ConvolutionalNet(
            config.model_copy(update={"normalization": normalization}), image_shape=(1, 8, 8), classes=10
        )
        assert mixing_layer(model.train(), features) == layer
    dropping = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 2)).train()
    assert mixing_layer(dropping, features) is None
    assert all(layer.training for layer in dropping.modules())


def test_a_body_of_two_classes_is_enough():
    """The label is class 0, the other logit is 0."""
    model = Padded(nn.Sequential(nn.Linear(3, 2)), canaries=1, gradient_norm=4.0)
    rows = torch.from_numpy(canary_rows(np.array([0]), np.array([True]), shape=(3,), dtype=np.dtype(np.float32)))
    assert model(rows).tolist() == [[-1e4, 0.0]]


def test_dropout_within_attention_is_not_taken_for_mixing():
    """The transformer drops inside attention too; words of one text look at each other, never at another text."""
    text = TEXT.replace("layers = 1", "layers = 1, dropout = 0.5")
    body = model_of(parse(text)).body.train()
    assert mixing_layer(body, torch.tensor([[1, 3, 4, 5, 0, 0], [1, 6, 7, 8, 9, 2], [1, 2, 0, 0, 0, 0]])) is None
