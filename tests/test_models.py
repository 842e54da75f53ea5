"""The models that a scenario can name: sizes, shapes, seeds, and gradients of single samples."""

import pytest
import torch
from opacus import GradSampleModule
from torch.nn import functional

from common import flat
from common.errors import ScenarioError
from common.model_tables import Cnn, CnnOpacus, Transformer
from common.models.convolutional import ConvolutionalNet
from common.models.registry import build
from common.models.transformer import positions
from common.tasks import TASKS, Task
from common.text import tokenize

TEXTS = ["WIN a prize now", "see you at home", "ok"]
SMALL = Transformer(name="transformer", d_model=16, heads=2, feed_forward=24, layers=2, dropout=0.0, vocabulary=64)


def task_of(shape, classes=10):
    """A data set of images of this shape."""
    return Task(image_shape=shape, classes=classes, train_records=100)


def inputs(model, count, shape=(1, 8, 8)):
    """Some records of the kind that a model takes."""
    if isinstance(model, Transformer):
        return torch.from_numpy(tokenize((TEXTS * count)[:count], length=8, vocabulary=model.vocabulary))
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))


def test_the_cnn_has_93322_parameters_on_mnist():
    """As published: 320 + 18,496 + 36,928 of the convolutions, 36,928 + 650 of the dense layers."""
    # 9 x 1 x 32 + 32; 9 x 32 x 64 + 64; 9 x 64 x 64 + 64; sides 28 -> 26 -> 13 -> 11 -> 5 -> 3, so 9 x 64 x 64 + 64;
    # 64 x 10 + 10
    assert flat.size(build(Cnn(name="cnn"), TASKS["mnist"], seed=7)) == 93_322


def test_the_network_of_opacus_has_26010_parameters():
    """As published: 1,040 + 8,224 of the convolutions, 16,416 + 330 of the dense layers."""
    # 64 x 16 + 16; 16 x 16 x 32 + 32; 512 x 32 + 32; 32 x 10 + 10
    assert flat.size(build(CnnOpacus(name="cnn-opacus"), TASKS["mnist"], seed=7)) == 26_010


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (1, 28, 28), (3, 32, 32), (1, 4, 4), (1, 17, 18), (2, 5, 40)])
def test_the_cnn_adapts_to_images(shape):
    """Any channels and sides of at least 4 give one logit per class."""
    model = build(Cnn(name="cnn"), task_of(shape, classes=7), seed=7)
    assert model(torch.zeros(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("shape", [(1, 2, 2), (1, 3, 28), (3, 28, 1)])
def test_the_cnn_refuses_images_that_are_too_small(shape):
    """Below 4 pixels a side nothing is left after two poolings."""
    with pytest.raises(ScenarioError, match=r"^model\.name: 'cnn' expects images of at least 4x4 pixels, got \("):
        build(Cnn(name="cnn"), task_of(shape), seed=7)


def test_the_widths_of_the_cnn_are_those_of_the_scenario():
    """Channels 2, 3, 4 and a dense layer of 5 on 1x8x8: 2 x 9 + 2, 3 x 18 + 3, 4 x 27 + 4, 5 x 16 + 5, 10 x 5 + 10."""
    config = Cnn(name="cnn", channels=(2, 3, 4), dense=5)
    assert flat.size(build(config, TASKS["digits"], seed=7)) == 20 + 57 + 112 + 85 + 60  # padded: 8 -> 4 -> 2


@pytest.mark.parametrize("normalization", ["none", "group", "batch"])
def test_no_normalisation_keeps_a_buffer(normalization):
    """Statistics of the data are in no model, so that none can travel."""
    model = build(Cnn(name="cnn", normalization=normalization), TASKS["digits"], seed=7)
    assert list(model.buffers()) == []
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("shape", [(1, 27, 28), (3, 28, 28), (1, 8, 8)])
def test_the_network_of_opacus_is_for_mnist_only(shape):
    """Another image is refused with the model that adapts."""
    with pytest.raises(ScenarioError, match=r"^model\.name: 'cnn-opacus' expects images of 1x28x28, got .*; use 'cnn'"):
        build(CnnOpacus(name="cnn-opacus"), task_of(shape), seed=7)


@pytest.mark.parametrize("config", [Cnn(name="cnn"), CnnOpacus(name="cnn-opacus")])
def test_texts_are_for_the_transformer(config):
    """A network for images is refused for a data set of texts."""
    with pytest.raises(ScenarioError, match=r"^model\.name: expected 'transformer' for a text data set, got 'cnn"):
        build(config, TASKS["sms-spam"], seed=7)


def test_the_activation_is_that_of_the_scenario():
    """The bounded tanh and the unbounded relu give different logits from the same weights."""
    tanh, relu = (build(Cnn(name="cnn", activation=name), TASKS["digits"], seed=7) for name in ("tanh", "relu"))
    images = inputs(None, 2)
    assert torch.equal(flat.flatten(tanh), flat.flatten(relu))
    assert not torch.allclose(tanh(images), relu(images))


MODELS = {
    "cnn": (Cnn(name="cnn"), "digits"),
    "cnn relu": (Cnn(name="cnn", activation="relu"), "digits"),
    "cnn group": (Cnn(name="cnn", normalization="group"), "digits"),
    "cnn mnist": (Cnn(name="cnn", channels=(4, 4, 4)), "mnist"),
    "cnn-opacus": (CnnOpacus(name="cnn-opacus"), "mnist"),
    "transformer": (SMALL, "sms-spam"),
}
every_model = pytest.mark.parametrize(("config", "task"), MODELS.values(), ids=MODELS)


@every_model
def test_the_same_seed_gives_the_same_weights(config, task):
    """First weights follow from the seed to the last bit, and another seed gives others."""
    first, second, other = (flat.flatten(build(config, TASKS[task], seed=seed)) for seed in (7, 7, 8))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@every_model
def test_building_leaves_the_callers_randomness_alone(config, task):
    """The global generator goes on where it was, and its state decides no weight."""
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    built = flat.flatten(build(config, TASKS[task], seed=7))
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(2)
    assert torch.equal(flat.flatten(build(config, TASKS[task], seed=7)), built)


@every_model
def test_gradients_of_samples_are_those_of_each_sample_alone(config, task):
    """Opacus's hooks find, for every parameter, exactly what a backward pass over one sample finds."""
    shape = TASKS[task].image_shape
    plain = build(config, TASKS[task], seed=7)
    hooked = GradSampleModule(build(config, TASKS[task], seed=7).train(), batch_first=True, loss_reduction="sum")
    features, labels = inputs(config, 3, shape), torch.tensor([0, 1, 1])
    functional.cross_entropy(hooked(features), labels, reduction="sum").backward()
    found = [parameter.grad_sample for parameter in hooked.parameters()]
    for row in range(3):
        plain.zero_grad()
        functional.cross_entropy(plain(features[row : row + 1]), labels[row : row + 1]).backward()
        for sample, parameter in zip(found, plain.parameters(), strict=True):
            torch.testing.assert_close(sample[row], parameter.grad, rtol=1e-4, atol=1e-6)
    assert all(parameter.grad.abs().sum() > 0 for parameter in plain.parameters())  # every parameter is used


@every_model
def test_samples_do_not_meet(config, task):
    """The logits of a record do not depend on which other records are in the batch."""
    model = build(config, TASKS[task], seed=7).train()
    features = inputs(config, 3, TASKS[task].image_shape)
    together = model(features)
    for row in range(3):
        torch.testing.assert_close(model(features[row : row + 1])[0], together[row], rtol=1e-4, atol=1e-5)


def test_batch_normalisation_lets_samples_meet():
    """The counter-example, by which the test above can fail: a record's logits change with its neighbours."""
    model = ConvolutionalNet(Cnn(name="cnn", normalization="batch"), image_shape=(1, 8, 8), classes=10).train()
    features = inputs(None, 3)
    assert not torch.allclose(model(features[:2])[0], model(features)[0], rtol=1e-4, atol=1e-5)


def test_padding_does_not_change_the_logits_of_a_text():
    """The same text with more padding has the same logits: padding is neither attended to nor averaged."""
    model = build(SMALL, TASKS["sms-spam"], seed=7).eval()
    short, long = (torch.from_numpy(tokenize(TEXTS, length=length, vocabulary=64)) for length in (5, 32))
    torch.testing.assert_close(model(long), model(short), rtol=1e-4, atol=1e-6)


def test_a_text_without_words_has_finite_logits():
    """An empty text is its start token, so that the mean has something to divide by."""
    model = build(SMALL, TASKS["sms-spam"], seed=7).eval()
    assert model(torch.from_numpy(tokenize([""], length=8, vocabulary=64))).isfinite().all()


def test_the_order_of_words_matters():
    """Positions reach the logits: the same words the other way round are another text."""
    model = build(SMALL, TASKS["sms-spam"], seed=7).eval()
    forth, back = (torch.from_numpy(tokenize([text], length=8, vocabulary=64)) for text in ("you win", "win you"))
    assert not torch.allclose(model(forth), model(back), rtol=1e-4, atol=1e-5)


def test_evaluation_is_deterministic_and_training_drops_out():
    """In evaluation mode two passes agree to the last bit; in training mode dropout makes them differ."""
    config = SMALL.model_copy(update={"dropout": 0.5})
    model = build(config, TASKS["sms-spam"], seed=7)
    tokens_BT = inputs(config, 3)
    assert torch.equal(model.eval()(tokens_BT), model(tokens_BT))
    assert not torch.equal(model.train()(tokens_BT), model(tokens_BT))


def test_dropout_follows_the_global_seed():
    """Dropout repeats when torch is seeded alike, so that a run without privacy repeats."""
    config = SMALL.model_copy(update={"dropout": 0.5})
    model = build(config, TASKS["sms-spam"], seed=7).train()
    logits = []
    for _ in range(2):
        torch.manual_seed(3)
        logits.append(model(inputs(config, 3)))
    assert torch.equal(*logits)


def test_tokens_beyond_the_vocabulary_are_its_last_one():
    """An error would tell who chose the vocabulary which tokens there are."""
    model = build(SMALL, TASKS["sms-spam"], seed=0).eval()
    assert model(torch.tensor([[1, 5, 2047, -3]])).isfinite().all()
    assert torch.equal(model(torch.tensor([[1, 5, 63]])), model(torch.tensor([[1, 5, 2047]])))


def test_the_transformer_has_the_sizes_of_the_scenario():
    """Of width 16: 64 x 16 of the embedding, 2 layers, a norm of 2 x 16, and 2 x 16 + 2 to classify."""
    # attention 4 x (16 x 16 + 16) = 1088; feed-forward 16 x 24 + 24 = 408 and 24 x 16 + 16 = 400; two norms of 2 x 16
    assert flat.size(build(SMALL, TASKS["sms-spam"], seed=7)) == 1024 + 2 * (1088 + 408 + 400 + 64) + 32 + 34


def test_positions_are_sines_and_cosines():
    """Position t has sin(t) and cos(t) first, and waves of 10,000^(-i / width) after."""
    waves = positions(3, 4)
    t = torch.arange(3.0)
    torch.testing.assert_close(waves[:, 0], t.sin())
    torch.testing.assert_close(waves[:, 1], t.cos())
    torch.testing.assert_close(waves[:, 2], (t / 100).sin())  # 10,000^(-2 / 4) = 1 / 100
    torch.testing.assert_close(waves[:, 3], (t / 100).cos())
