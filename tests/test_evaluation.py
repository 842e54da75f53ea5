"""The global model on public test data: figures by hand, and nothing left behind."""

import math

import numpy as np
import pytest
import torch

from common import flat
from common.config import Scenario, parse
from common.models.registry import build
from common.shards import Shard
from common.tasks import TASKS
from server.evaluation import BATCH, Evaluator

DIGITS = parse(
    'run = {name = "x", rounds = 1}\ndata = {dataset = "digits", clients = 2}\n'
    'model = {name = "cnn", channels = [2, 2, 2], dense = 4}\n'
    'training = {batch_size = 8}\nprivacy = {unit = "none"}\nengine = {device = "cpu"}'
)
TEXT = parse(
    'run = {name = "x", rounds = 1}\ndata = {dataset = "sms-spam", clients = 2}\n'
    'model = {name = "transformer", d_model = 8, heads = 2, feed_forward = 8, layers = 1, tokens = 6, '
    "vocabulary = 16, dropout = 0.5}\n"
    'training = {batch_size = 8}\nprivacy = {unit = "none"}\nengine = {device = "cpu"}'
)


def weights(of: Scenario) -> torch.Tensor:
    return flat.flatten(build(of.model, TASKS[of.data.dataset], seed=of.run.seed))


def constant(of: Scenario, *logits: float) -> torch.Tensor:
    """Return weights with which the model answers `logits` to everything: zeros, but for the last bias."""
    flat_P = torch.zeros_like(weights(of))
    flat_P[-len(logits) :] = torch.tensor(logits)
    return flat_P


def images(labels: list[int]) -> Shard:
    features = np.random.default_rng(0).random((len(labels), 1, 8, 8), dtype=np.float32)
    return Shard(features_ND=features, labels_N=np.array(labels, np.int64))


def texts(labels: list[int]) -> Shard:
    tokens = np.random.default_rng(0).integers(2, 16, (len(labels), 6))
    tokens[:, 0] = 1
    return Shard(features_ND=tokens, labels_N=np.array(labels, np.int64))


def test_accuracy_and_loss_of_a_model_that_always_says_three():
    """Two of five labels are 3; the logit of 3 is ln 11, so that its probability is 11 / (11 + 9) = 0.55."""
    measured = Evaluator(DIGITS, images([3, 0, 3, 1, 9])).measure(
        constant(DIGITS, 0, 0, 0, math.log(11), 0, 0, 0, 0, 0, 0)
    )
    # three records of another class have probability 1/20 each
    expected = -(2 * math.log(11 / 20) + 3 * math.log(1 / 20)) / 5
    assert measured == {"accuracy": 2 / 5, "loss": pytest.approx(expected, rel=1e-6)}


def test_untrained_zero_model_has_the_loss_of_guessing():
    """Ten equal logits: ln 10, and the first class is said."""
    measured = Evaluator(DIGITS, images([0, 1])).measure(constant(DIGITS, *[0.0] * 10))
    assert measured == {"accuracy": 0.5, "loss": pytest.approx(math.log(10), rel=1e-6)}


def test_every_record_counts_beyond_one_batch():
    """1,001 records in two batches, the last of which is right: 1/1001."""
    measured = Evaluator(DIGITS, images([1] * BATCH + [0])).measure(constant(DIGITS, *[0.0] * 10))
    assert measured["accuracy"] == 1 / (BATCH + 1)


def test_two_classes_have_f1_and_auc_of_the_positive_one():
    """Always spam: precision 2/5, recall 1, so F1 = 2 * 0.4 * 1 / 1.4 = 4/7; equal scores rank nothing, so AUC 1/2."""
    measured = Evaluator(TEXT, texts([1, 0, 0, 1, 0])).measure(constant(TEXT, 0.0, 1.0))
    assert measured.keys() == {"accuracy", "loss", "f1", "auc"}
    assert measured["accuracy"] == 0.4
    assert measured["f1"] == pytest.approx(4 / 7)
    assert measured["auc"] == 0.5


def test_f1_is_zero_when_the_positive_class_is_never_said():
    """No division by zero, and no warning."""
    measured = Evaluator(TEXT, texts([1, 0])).measure(constant(TEXT, 1.0, 0.0))
    assert measured["f1"] == 0.0


@pytest.mark.parametrize(("scenario", "test"), [(DIGITS, images([1, 2])), (TEXT, texts([0, 1]))])
def test_weights_that_are_not_finite_are_measured(scenario, test):
    """A model that diverged has figures, and a loss that says so; the run goes on."""
    measured = Evaluator(scenario, test).measure(torch.full_like(weights(scenario), torch.nan))
    assert math.isnan(measured["loss"])
    assert 0 <= measured["accuracy"] <= 1


def test_dropout_is_off():
    """Two measurements of a model with dropout 0.5 are equal."""
    evaluator = Evaluator(TEXT, texts([0, 1, 1]))
    assert evaluator.measure(weights(TEXT)) == evaluator.measure(weights(TEXT))


def test_measuring_leaves_weights_and_random_state_alone():
    """Evaluation changes nothing that training goes on from."""
    mine = weights(DIGITS)
    before, state = mine.clone(), torch.random.get_rng_state()
    Evaluator(DIGITS, images([1, 2])).measure(mine)
    assert torch.equal(mine, before)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_threads_are_as_before_afterwards():
    """Evaluation takes every core and gives them back, also when it fails."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        Evaluator(DIGITS, images([1])).measure(weights(DIGITS))
        assert torch.get_num_threads() == 1
        broken = Shard(features_ND=np.zeros((1, 3, 8, 8), np.float32), labels_N=np.zeros(1, np.int64))
        with pytest.raises(RuntimeError):
            Evaluator(DIGITS, broken).measure(weights(DIGITS))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_test_set_of_one_class_has_no_auc():
    """A consortium's public test set may be of one class: what cannot be said is left out, and nothing warns."""
    measured = Evaluator(TEXT, texts([1, 1])).measure(constant(TEXT, 0, 1))
    assert measured["f1"] == 1.0
    assert "auc" not in measured
