"""One worker's training: the same order gives the same report, whoever was there before."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.nn import functional

from client.trainer import Trainer
from common import flat
from common.config import Scenario, parse
from common.errors import ModelRefusedError, RefusedError
from common.messages import Mechanism, Order, Refusal, Report
from common.models.registry import build
from common.shards import Shard
from common.tasks import TASKS

BASE = """
run = {name = "x", rounds = 2}
data = {dataset = "digits", clients = 4}
"""
PLAIN = 'training = {batch_size = 8, local_steps = 3}\nprivacy = {unit = "none"}\n'
PRIVATE = "training = {batch_size = 8, local_steps = 3}\nprivacy = {epsilon = 8.0}\n"
CLIENT = 'training = {batch_size = 8, local_steps = 3}\nprivacy = {unit = "client", epsilon = 8.0, delta = 0.1}\n'
MECHANISM = Mechanism(sampling_rate=Fraction(1, 2), noise_multiplier=1.0, max_grad_norm=1.0, steps=3)


def scenario(text: str) -> Scenario:
    return parse(BASE + text)


def shard(seed: int, count: int = 30) -> Shard:
    generator = np.random.default_rng(seed)
    features = generator.random((count, 1, 8, 8), dtype=np.float32)
    return Shard(features_ND=features, labels_N=generator.integers(0, 10, count))


def weights(of: Scenario) -> np.ndarray:
    return flat.flatten(build(of.model, TASKS["digits"], seed=of.run.seed)).numpy()


def order(of: Scenario, client: int = 0, **changes: object) -> Order:
    values: dict[str, object] = {"run": "r", "round": 1, "attempt": 1, "client": client, "weights_P": weights(of)}
    return Order(**(values | changes))  # type: ignore[arg-type]


def train(of: Scenario, trainer: Trainer, asked: Order, data: Shard) -> Report:
    del of
    return trainer.train(asked, data)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_a_report_does_not_depend_on_who_trained_before(optimizer):
    """Weights, gradients, optimiser state and dropout of one client leave no trace in the next one's report."""
    plain = scenario(PLAIN.replace("local_steps = 3", f'local_steps = 3, optimizer = "{optimizer}"'))
    alone = Trainer(plain).train(order(plain, client=1), shard(1))
    worker = Trainer(plain)
    worker.train(order(plain, client=0), shard(0, count=77))
    np.testing.assert_array_equal(worker.train(order(plain, client=1), shard(1)).update_P, alone.update_P)


def test_dropout_follows_from_the_seed_and_not_from_the_client_before():
    """The transformer's dropout is seeded anew for each order."""
    text = parse(
        'run = {name = "x", rounds = 2}\ndata = {dataset = "sms-spam", clients = 4}\n'
        'model = {name = "transformer", layers = 1, vocabulary = 64, tokens = 8, dropout = 0.5}\n' + PLAIN
    )
    start = flat.flatten(build(text.model, TASKS["sms-spam"], seed=7)).numpy()
    generator = np.random.default_rng(0)
    data = Shard(features_ND=generator.integers(1, 64, (20, 8)), labels_N=generator.integers(0, 2, 20))
    alone = Trainer(text).train(order(scenario(PLAIN), weights_P=start), data)
    worker = Trainer(text)
    other = worker.train(order(scenario(PLAIN), client=3, weights_P=start), data)
    again = worker.train(order(scenario(PLAIN), weights_P=start), data)
    np.testing.assert_array_equal(again.update_P, alone.update_P)
    assert not np.array_equal(other.update_P, alone.update_P)


def test_two_private_reports_of_the_same_order_differ_by_their_noise():
    """Noise never comes from the seed: a repeated order draws anew."""
    private = scenario(PRIVATE)
    worker = Trainer(private)
    asked = order(private, mechanism=MECHANISM)
    assert not np.array_equal(worker.train(asked, shard(0)).update_P, worker.train(asked, shard(0)).update_P)


def test_private_training_reads_no_global_random_state():
    """A coordinator that knows torch's and numpy's seeds learns nothing of noise or batches."""
    private = scenario(PRIVATE)
    worker, reports = Trainer(private), []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 - the global state is what is under test
        reports.append(worker.train(order(private, mechanism=MECHANISM), shard(0)).update_P)
    assert not np.array_equal(*reports)


def test_client_level_batches_do_not_follow_from_the_seed():
    """What is sampled from private data is as secret as noise."""
    level = scenario(CLIENT)
    asked = order(level, max_update_norm=100.0)
    worker = Trainer(level)
    assert not np.array_equal(worker.train(asked, shard(0)).update_P, worker.train(asked, shard(0)).update_P)


def test_a_client_level_update_is_clipped_before_it_leaves():
    """The L2 norm of what leaves is at most the order's bound."""
    level = scenario(CLIENT)
    free = Trainer(level).train(order(level, max_update_norm=1e9), shard(0)).update_P
    bound = float(np.linalg.norm(free)) / 10
    clipped = Trainer(level).train(order(level, max_update_norm=bound), shard(0)).update_P
    assert np.linalg.norm(clipped.astype(np.float64)) <= bound * (1 + 1e-6)


def test_a_full_batch_step_is_gradient_descent():
    """With a batch of the whole shard the update is -learning_rate times the mean gradient."""
    plain = scenario('training = {batch_size = 30, local_steps = 1, learning_rate = 0.5}\nprivacy = {unit = "none"}\n')
    data = shard(0)
    update = Trainer(plain).train(order(plain), data).update_P
    model = build(plain.model, TASKS["digits"], seed=7)
    functional.cross_entropy(model(torch.from_numpy(data.features_ND)), torch.from_numpy(data.labels_N)).backward()
    gradient = torch.cat([p.grad.reshape(-1) for p in model.parameters()]).numpy()
    np.testing.assert_allclose(update, -0.5 * gradient, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "changes", "data", "word"),
    [
        (PLAIN, {"weights_P": np.zeros(3, np.float32)}, shard(0), Refusal.MALFORMED),
        (PLAIN, {"weights_P": None}, shard(0), Refusal.MALFORMED),
        (PLAIN, {}, shard(0, count=0), Refusal.DATA_UNFIT),
        (PRIVATE, {}, shard(0), Refusal.NOT_IN_PLAN),
        (PLAIN, {"mechanism": MECHANISM}, shard(0), Refusal.NOT_IN_PLAN),
        (CLIENT, {}, shard(0), Refusal.NOT_IN_PLAN),
        (PLAIN, {"max_update_norm": 1.0}, shard(0), Refusal.NOT_IN_PLAN),
    ],
    ids=["wrong size", "not finite", "no records", "no mechanism", "unasked mechanism", "no bound", "unasked bound"],
)
def test_an_order_that_does_not_fit_is_refused(text, changes, data, word):
    """A client carries an order out as its scenario says, or refuses it; it never alters one."""
    given = scenario(text)
    if changes.get("weights_P", 0) is None:
        changes = {"weights_P": np.full_like(weights(given), np.nan)}
    with pytest.raises(RefusedError) as refused:
        Trainer(given).train(order(given, **changes), data)
    assert refused.value.word is word


def test_an_update_that_is_not_finite_does_not_leave():
    """Training that a bad record or a wild learning rate blew up is refused, not sent."""
    plain, bad = scenario(PLAIN), shard(0)
    bad.features_ND[:] = np.nan
    with pytest.raises(RefusedError) as refused:
        Trainer(plain).train(order(plain), bad)
    assert refused.value.word is Refusal.FAILED


def test_a_private_model_that_mixes_samples_is_refused():
    """The trainer's own validator stands behind the scenario's check."""
    bad = scenario(PRIVATE)
    model = bad.model.model_copy(update={"normalization": "batch"})
    with pytest.raises(ModelRefusedError):
        Trainer(bad.model_copy(update={"model": model}))


# --- persons and metrics ----------------------------------------------------------------------------------------------

PERSONS = 'training = {batch_size = 8, local_steps = 3}\nprivacy = {epsilon = 8.0, unit_column = "writer"}\n'
METERED = PRIVATE.replace("epsilon = 8.0", 'epsilon = 8.0, metrics = "noisy", metrics_noise_multiplier = 1e-6')


def of_writers() -> Scenario:
    return parse('run = {name = "x", rounds = 2}\ndata = {dataset = "mnist", clients = 4}\n' + PERSONS)


def writers(*units: int | None) -> Shard:
    """Records of 28x28 with their persons."""
    generator = np.random.default_rng(0)
    features = generator.random((len(units), 1, 28, 28), dtype=np.float32)
    named = None if None in units else np.array(units)
    return Shard(features_ND=features, labels_N=generator.integers(0, 10, len(units)), units_N=named)


def test_a_shard_that_names_no_persons_is_refused_where_they_are_the_unit():
    """Records would be protected in place of persons: the client trains nothing."""
    of = of_writers()
    asked = Order(
        run="r", round=1, attempt=1, client=0, mechanism=MECHANISM,
        weights_P=flat.flatten(build(of.model, TASKS["mnist"], seed=7)).numpy(),
    )  # fmt: skip
    assert len(Trainer(of).train(asked, writers(3, 3, 4)).update_P) == len(asked.weights_P)
    for data in (writers(None, None), replace(writers(3, 3, 4), units_N=np.array([3, 3]))):
        with pytest.raises(RefusedError) as refused:
            Trainer(of).train(asked, data)
        assert refused.value.word is Refusal.DATA_UNFIT


def test_persons_that_a_shard_names_do_not_matter_where_records_are_the_unit():
    """Each record is sampled and counted, whoever it belongs to."""
    metered = scenario(METERED)
    named = replace(shard(0), units_N=np.zeros(30, np.int64))
    asked = order(metered, mechanism=MECHANISM, metrics_noise_multiplier=1e-6)
    plain, of_one = (Trainer(metered).train(asked, data).correct for data in (shard(0), named))
    assert plain == pytest.approx(of_one, abs=1e-4)
    assert of_one > 1


def test_metrics_are_withheld_by_default():
    """A report has no count, whatever the unit."""
    for text, changes in ((PLAIN, {}), (PRIVATE, {"mechanism": MECHANISM}), (CLIENT, {"max_update_norm": 1.0})):
        given = scenario(text)
        assert Trainer(given).train(order(given, **changes), shard(0)).correct is None


def test_the_count_is_of_the_order_s_weights_before_training():
    """With hardly any noise the count is what the incoming model gets right, whatever the steps did."""
    metered, data = scenario(METERED), shard(0)
    model = build(metered.model, TASKS["digits"], seed=7)
    expected = (model(torch.from_numpy(data.features_ND)).argmax(dim=1).numpy() == data.labels_N).sum()
    trainer = Trainer(metered)
    for _ in range(2):  # the second time the resident model has moved
        report = trainer.train(order(metered, mechanism=MECHANISM, metrics_noise_multiplier=1e-6), data)
        assert report.correct == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        (PRIVATE, {"mechanism": MECHANISM, "metrics_noise_multiplier": 1e-6}),
        (METERED, {"mechanism": MECHANISM, "metrics_noise_multiplier": 1e-7}),
        (METERED, {"mechanism": MECHANISM}),
        (PLAIN, {"metrics_noise_multiplier": 1e-6}),
        (CLIENT, {"max_update_norm": 1.0, "metrics_noise_multiplier": 1e-6}),
    ],
    ids=["unplanned", "less noise", "planned and unasked", "without privacy", "unit client"],
)
def test_an_order_for_other_metrics_than_the_scenario_s_is_refused(text, changes):
    """No count leaves with less noise than was planned, nor where none was."""
    given = scenario(text)
    with pytest.raises(RefusedError) as refused:
        Trainer(given).train(order(given, **changes), shard(0))
    assert refused.value.word is Refusal.NOT_IN_PLAN


def test_half_precision_gives_nearly_the_same_update():
    """bfloat16 has 8 bits: the update is another one, some percent away, and in single precision."""
    updates = []
    for precision in ("float32", "bf16"):
        given = scenario(PLAIN.replace("local_steps = 3", f'local_steps = 3, precision = "{precision}"'))
        updates.append(Trainer(given).train(order(given), shard(0)).update_P)
    distance = np.linalg.norm(updates[1] - updates[0]) / np.linalg.norm(updates[0])
    assert 0 < distance < 0.1
    assert updates[1].dtype == np.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_cuda_trains_to_what_the_cpu_trains_to():
    """The same order gives the same update on either device, up to rounding."""
    on = {device: parse(BASE + PLAIN + f'engine = {{device = "{device}"}}\n') for device in ("cpu", "cuda")}
    updates = {device: Trainer(given).train(order(given), shard(0)).update_P for device, given in on.items()}
    np.testing.assert_allclose(updates["cuda"], updates["cpu"], atol=1e-4)
