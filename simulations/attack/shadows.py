"""Models of random halves of a scenario's records, made by its own trainer.

Shapes: M models, N records, B records of a part, C classes.

    each client's records -> a random half -> schedule -> orders -> trainer -> ordered sum -> model -> confidences

Trainer, optimisers, averaging, clipping and noise are those of a run; only the messages and the ledger between them are
left out. Every model begins with the same weights, which a coordinator knows.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from client.trainer import Trainer
from common import flat
from common.config import Scenario
from common.devices import device
from common.errors import BadInputError, RefusedError, RunFailedError
from common.messages import Mechanism, Order
from common.models.registry import model_of
from common.privacy.plan import Plan
from common.seeds import derive
from common.shards import Shard, open_shard, open_test, write_shards
from server.aggregation import OrderedSum
from server.cohorts import schedule
from server.evaluation import Evaluator
from server.global_model import GlobalModel, float32
from simulations.datasets import Dataset
from simulations.engine import nursery
from simulations.partition import split
from simulations.single_plan import plan_of

PART = 1000  # records in memory at once
NO_NOISE = 1e-9  # of the clipping bound: a mechanism has some


@dataclass(frozen=True, kw_only=True, eq=False)
class Shadows:
    """Models of random halves, and how sure each is of each record's class.

    Args:
        is_in_MN: whether a model was trained on a record.
        confidence_MN: log(p / (1 - p)) of the probability p that a model gives a record's class, float64.
        accuracy: on the public test set, mean over the models.
        plan: what training one of them spends.
    """

    is_in_MN: npt.NDArray[np.bool_]
    confidence_MN: npt.NDArray[np.float64]
    accuracy: float
    plan: Plan


@dataclass(frozen=True, kw_only=True)
class Half:
    """One model to be made: of which scenario and shards, with noise or not, and the number that its half has."""

    scenario: Scenario
    plan: Plan
    is_noised: bool
    folder: Path
    number: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Made:
    """One model's row: which records it was trained on, how sure it is of each, and how good it is."""

    is_in_N: npt.NDArray[np.bool_]
    confidence_N: npt.NDArray[np.float64]
    accuracy: float


def halved(scenario: Scenario) -> Scenario:
    """Return the scenario by which a model of half of the records is trained.

    Half as many clients have as many records each as before, so that batches, sampling rates and noise stay what they
    are. One client alone has half of its records and half a batch.
    """
    clients, server = scenario.data.clients, scenario.server
    if clients == 1:
        batch = max(1, scenario.training.batch_size // 2)
        training = scenario.training.model_copy(update={"batch_size": batch})
        return scenario.model_copy(update={"training": training, "audit": None})
    fewer = {"clients": clients // 2}
    asked = {"cohort": max(1, server.cohort * fewer["clients"] // clients)}
    data, server = scenario.data.model_copy(update=fewer), server.model_copy(update=asked)
    return scenario.model_copy(update={"data": data, "server": server, "audit": None})


def cast(
    scenario: Scenario,
    dataset: Dataset,
    *,
    models: int,
    is_noised: bool,
    workers: int,
    is_done: Callable[[], None],
) -> Shadows:
    """Train so many models, each on a random half of the records.

    Guarantees:
        Halves are drawn independently of each other: what one model was trained on says nothing of another's half.
        With unit `none` the result follows from the scenario's seed, bit for bit, with any number of workers.

    Args:
        scenario: whose training it is.
        dataset: its records.
        models: how many.
        is_noised: False leaves out the noise of unit `record`, and nothing else.
        workers: processes that train; with 1 they are trained here.
        is_done: called when a model is done.

    Raises:
        BadInputError: a client with a single record.
        RunFailedError: training came to nothing.
    """
    parts = split(scenario, dataset)
    smaller = halved(scenario)
    groups = [np.concatenate(parts[first :: smaller.data.clients]) for first in range(smaller.data.clients)]
    if min(len(rows) for rows in groups) < 2:  # noqa: PLR2004 - a half of it would be empty
        raise BadInputError("data.clients: expected two records or more with each, got a client with one. Lower it.")
    plan = plan_of(smaller, records=[len(rows) // 2 for rows in groups])
    with tempfile.TemporaryDirectory(prefix="discreet-attack-") as name:
        folder = Path(name)
        write_shards(folder, train=dataset.train, test=dataset.test, indices=groups)
        halves = [
            Half(scenario=smaller, plan=plan, is_noised=is_noised, folder=folder, number=model)
            for model in range(models)
        ]
        made = _all(halves, workers=workers, is_done=is_done)
    return Shadows(
        is_in_MN=np.stack([one.is_in_N for one in made]),
        confidence_MN=np.stack([one.confidence_N for one in made]),
        accuracy=float(np.mean([one.accuracy for one in made])),
        plan=plan,
    )


def make(half: Half) -> Made:
    """Train one model and ask it for every record."""
    scenario, clients = half.scenario, range(half.scenario.data.clients)
    shards = [open_shard(half.folder, client) for client in clients]
    generator = np.random.default_rng(derive(scenario.run.seed, "attack", half.number))
    masks = [_half(len(shard), generator) for shard in shards]
    with one_thread():
        weights_P = _trained(half, [_part(shard, mask) for shard, mask in zip(shards, masks, strict=True)])
        measured = Evaluator(scenario, open_test(half.folder)).measure(weights_P)
        model = model_of(scenario).to(device(scenario.engine)).eval()
        flat.load(model, weights_P)
        confidence_N = np.concatenate([confidences(model, shard) for shard in shards])
    return Made(is_in_N=np.concatenate(masks), confidence_N=confidence_N, accuracy=measured["accuracy"])


def confidences(model: torch.nn.Module, shard: Shard) -> npt.NDArray[np.float64]:
    """Return log(p / (1 - p)) of each record's class, from the logits, so that p near 1 loses no digits.

    Source: Carlini et al. 2022, section IV-B, https://arxiv.org/abs/2112.03570.
    """
    place, parts = next(model.parameters()).device, []
    for start in range(0, len(shard), PART):
        features_B = torch.from_numpy(np.array(shard.features_ND[start : start + PART])).to(place)
        label_B1 = torch.from_numpy(np.array(shard.labels_N[start : start + PART])).to(place)[:, None]
        with torch.no_grad():
            logits_BC = model(features_B).double()
        others_BC = logits_BC.scatter(1, label_B1, -torch.inf)
        parts.append((logits_BC.gather(1, label_B1)[:, 0] - others_BC.logsumexp(1)).cpu().numpy())
    return np.concatenate(parts)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread: how many decides the last bits of a sum, and other processes want the other cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _all(halves: Sequence[Half], *, workers: int, is_done: Callable[[], None]) -> list[Made]:
    """All models, in their order, whichever is done first."""
    if workers == 1:
        return [_then(make(half), is_done) for half in halves]
    private = ["client.private"] if halves[0].scenario.privacy.unit == "record" else []
    with ProcessPoolExecutor(workers, mp_context=nursery.context("client.app", *private)) as pool:
        waiting = [pool.submit(make, half) for half in halves]
        try:
            for one in as_completed(waiting):
                _then(one.result(), is_done)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        return [one.result() for one in waiting]


def _then(made: Made, is_done: Callable[[], None]) -> Made:
    is_done()
    return made


def _half(records: int, generator: np.random.Generator) -> npt.NDArray[np.bool_]:
    """A random half, rounded down."""
    mask = np.zeros(records, np.bool_)
    mask[generator.permutation(records)[: records // 2]] = True
    return mask


def _part(shard: Shard, mask_N: npt.NDArray[np.bool_]) -> Shard:
    return Shard(features_ND=np.array(shard.features_ND[mask_N]), labels_N=np.array(shard.labels_N[mask_N]))


def _trained(half: Half, shards: Sequence[Shard]) -> Tensor:
    """The result of all rounds, as the server keeps it."""
    scenario, plan = half.scenario, half.plan
    trainer, model = Trainer(scenario), GlobalModel(flat.flatten(model_of(scenario)), scenario.server)
    weights = dict(enumerate(map(float, plan.records))) if scenario.server.weighting == "records" else None
    for number, cohort in enumerate(schedule(scenario), 1):
        total = OrderedSum(cohort.tolist(), size=len(model.weights_P), weights=weights)
        for client in cohort.tolist():
            order = Order(
                run=plan.run,
                round=number,
                attempt=1,
                client=client,
                weights_P=float32(model.weights_P),
                mechanism=_mechanism(half, client),
                metrics_noise_multiplier=plan.metrics_noise_multiplier(client),
            )
            try:
                total.add(client, trainer.train(order, shards[client]).update_P)
            except RefusedError as error:
                raise RunFailedError(f"Round {number}, client {client}: {error}.") from error
        model.step(total.result() / total.total_weight)
    return model.result_P


def _mechanism(half: Half, client: int) -> Mechanism | None:
    """What the plan says, or the same with next to no noise."""
    planned = half.plan.mechanism(client)
    return planned if half.is_noised or planned is None else replace(planned, noise_multiplier=NO_NOISE)
