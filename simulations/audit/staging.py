"""What is set up for an audit: the scenario with a pad, and rows that are canaries.

Shapes: K clients, M canaries of each, N units of a client, R rounds, L steps of a round, D a record's own shape.

The trained model, the sampling rate, the noise, the bound, the steps of a round and the engine are the scenario's. What
is computed from noised sums alone is replaced by what hides least: plain SGD at clients and server, no average over
rounds. Records are replaced by synthetic rows, so that nobody's data is needed, and a long run is cut short.

    unit record, person, none   two clients with M canaries each; one has canaries and nothing else, so that noise alone
                                moves its other weights, the other has synthetic records beside them
    unit client                 each client is a canary, all its rows pull at one weight of the pad
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from common.canaries import IDLE, SMALLEST_ROW, canary_rows
from common.config import Audit, Scenario
from common.errors import BadInputError, ModelRefusedError
from common.model_tables import Transformer
from common.privacy.entropy import Entropy
from common.privacy.plan import local_steps
from common.seeds import derive
from common.shards import Shard
from common.tasks import Task, task_of
from simulations.datasets import Dataset
from simulations.partition import declared_records, split

VIEWS = 2
ROWS = 80_000  # that the audited clients are trained on in all: some seconds on two cores
ROUNDS = 120  # that are attacked at most
ORDERS = 1_200  # that canary clients carry out in all, likewise
CANARY_CLIENTS = 400
CLIENT_ROWS = 4
PERSON_ROWS = 2
TEST_ROWS = 32
RECORDS_SHARE = 8  # a client with records has one for each so many canaries
COARSEST = 4  # a sampling rate whose denominator is larger than so many times the units needed is rounded
FARTHEST = 100.0  # that a canary's logit may come, far within what keeps its loss linear

Rows = npt.NDArray[np.intp]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage:
    """An audit, ready to run.

    Args:
        scenario: with its `[audit]` table.
        records: declared units of each client.
        dataset: synthetic records and canaries, and a synthetic test set.
        is_in_KM: each canary's coin; for unit `client` one row, with a canary a client.
        quiet: clients whose body nothing but noise moves.
        rounds: how many the scenario itself has.
    """

    scenario: Scenario
    records: tuple[int, ...]
    dataset: Dataset
    is_in_KM: Bools
    quiet: tuple[int, ...]
    rounds: int


def stage(scenario: Scenario, *, canaries: int) -> Stage:
    """Set an audit up; ModelRefusedError for a model in which a canary would not be alone, ScenarioError as planned.

    Args:
        scenario: what is audited.
        canaries: how many there shall be in all; for unit `client` so many at most.
    """
    refuse_unpaddable(scenario)
    if scenario.audit is not None:
        scenario = scenario.model_copy(update={"audit": None})
    return _clients(scenario, canaries) if scenario.privacy.unit == "client" else _records(scenario, canaries)


def refuse_unpaddable(scenario: Scenario) -> None:
    """Raise ModelRefusedError, which names the layer, for a model to which no pad can be added."""
    from common.models.pad import mixing_layer
    from common.models.registry import build

    task = task_of(scenario.data)
    model = build(scenario.model, task, seed=scenario.run.seed).train()
    if math.prod(_shape(scenario, task)) < SMALLEST_ROW:
        first = next(name for name, layer in model.named_modules() if list(layer.parameters(recurse=False)))
        raise ModelRefusedError(
            f"The pad cannot be added: layer {first} reads records of a single number, a canary needs {SMALLEST_ROW}. "
            f"Audit a scenario with one more feature."
        )
    if scenario.privacy.unit == "client":
        return  # a client's canaries are all its rows: there is nobody beside them
    import torch

    layer = mixing_layer(model, torch.from_numpy(_synthetic(scenario, task, 3)[0]))
    if layer is not None:
        raise ModelRefusedError(
            f"The pad cannot be added: layer {layer} mixes the records of a batch, so that a canary's gradient is not "
            f"its own. Use group or layer normalisation instead."
        )


def _records(scenario: Scenario, canaries: int) -> Stage:
    """Two clients with canaries among their records."""
    pad = -(-canaries // VIEWS)
    fewest = min(declared_records(scenario))
    rate, steps = _rate(scenario, fewest), local_steps(scenario.training, records=fewest)
    units = _units(rate, pad + max(pad // RECORDS_SHARE, 1))
    batch = max(1, round(rate * units))
    steps, rounds = _length(steps, scenario.server.max_participations, orders=VIEWS, rows=batch)
    audited = _changed(scenario, clients=VIEWS, cohort=VIEWS, rounds=rounds, batch=batch, steps=steps, canaries=pad)
    coins = np.stack([_coins(pad) for _ in range(VIEWS)])
    persons = scenario.privacy.unit_column is not None

    def fill(client: int, unit: int) -> int | None:
        """Which weight a unit of a client pulls at; None for a record."""
        if unit < pad:
            return unit if coins[client, unit] else IDLE
        return IDLE if client == 0 else None

    dataset = _dataset(audited, units=units, rows=PERSON_ROWS if persons else 1, fill=fill)
    return Stage(
        scenario=audited, records=(units,) * VIEWS, dataset=dataset, is_in_KM=coins, quiet=(0,),
        rounds=scenario.run.rounds,
    )  # fmt: skip


def _clients(scenario: Scenario, canaries: int) -> Stage:
    """As many clients as there are canaries, with nothing else."""
    rate = Fraction(scenario.server.cohort, scenario.data.clients)
    clients = _units(rate, min(canaries, CANARY_CLIENTS))
    cohort = max(1, round(rate * clients))
    rounds = max(2, min(scenario.run.rounds, ROUNDS, ORDERS // cohort))
    audited = _changed(
        scenario, clients=clients, cohort=cohort, rounds=rounds, batch=CLIENT_ROWS, steps=1, canaries=clients
    )
    coins = _coins(clients)[None]
    dataset = _dataset(
        audited, units=1, rows=CLIENT_ROWS, fill=lambda client, _unit: client if coins[0, client] else IDLE
    )
    return Stage(
        scenario=audited, records=(CLIENT_ROWS,) * clients, dataset=dataset, is_in_KM=coins, quiet=(0,),
        rounds=scenario.run.rounds,
    )  # fmt: skip


def _rate(scenario: Scenario, records: int) -> Fraction:
    """The largest sampling rate of any client."""
    if scenario.privacy.unit == "none":
        return Fraction(min(scenario.training.batch_size, records), records)
    if scenario.training.batch_size > records:
        raise BadInputError(
            f"training.batch_size: expected at most the {records} units of the smallest client, got "
            f"{scenario.training.batch_size}. Lower it, or data.clients."
        )
    return Fraction(scenario.training.batch_size, records)


def _units(rate: Fraction, least: int) -> int:
    """The fewest units, `least` or more, of which the rate is a whole number; nearly so where that were too many.

        >>> _units(Fraction(72, 143), 560), _units(Fraction(64, 5999), 560)
        (572, 560)

    A denominator of 143 divides 572; 5999 units would be ten times what is needed.
    """
    wanted = -(-least // rate.denominator) * rate.denominator
    return wanted if wanted <= COARSEST * least else least


def _length(steps: int, rounds: int, *, orders: int, rows: int) -> tuple[int, int]:
    """Steps of a round and rounds, cut short where the scenario's own would take long."""
    affordable = max(2, ROWS // (orders * rows))
    steps = min(steps, max(1, affordable // 2))
    return steps, max(2, min(rounds, ROUNDS, affordable // steps))


def _changed(
    scenario: Scenario, *, clients: int, cohort: int, rounds: int, batch: int, steps: int, canaries: int
) -> Scenario:
    """The scenario with a pad, for other clients and rounds, and optimisers that hide nothing."""
    norm, is_client = scenario.privacy.max_grad_norm, scenario.privacy.unit == "client"
    # the noise of a step moves the weights no further than in the scenario, and the pad stays where losses are linear
    scaled = scenario.training.learning_rate * min(1.0, batch / scenario.training.batch_size)
    rate = 1.0 if is_client else min(scaled, FARTHEST * batch / (10 * norm**2 * max(rounds * steps, 100)))
    run, data, training, server, privacy = (
        scenario.run, scenario.data, scenario.training, scenario.server, scenario.privacy,
    )  # fmt: skip
    return scenario.model_copy(
        update={
            "run": run.model_copy(update={"name": f"{run.name[:58]}-audit", "rounds": rounds}),
            "data": data.model_copy(update={"partition": "iid", "clients": clients}),
            "training": training.model_copy(
                update={
                    "batch_size": batch, "local_steps": steps, "local_epochs": None, "optimizer": "sgd",
                    "learning_rate": rate,
                }
            ),
            "server": server.model_copy(
                update={
                    "cohort": cohort, "max_participations": rounds, "spare_rounds": 0, "optimizer": "sgd",
                    "learning_rate": 1.0, "weighting": "uniform", "ema_decay": 0.0, "evaluate_every": rounds,
                    "min_replies": 0 if is_client else clients,
                }
            ),
            "privacy": privacy.model_copy(
                update={"budget": privacy.epsilon, "metrics": "none", "metrics_noise_multiplier": None}
            ),
            "audit": Audit(canaries=canaries, gradient_norm=10 * norm),
        }
    )  # fmt: skip


def _coins(count: int) -> Bools:
    """Fair coins of the operating system."""
    is_in_M = np.zeros(count, bool)
    is_in_M[Entropy().bernoulli(count, probability=Fraction(1, 2))] = True
    return is_in_M


def _dataset(scenario: Scenario, *, units: int, rows: int, fill: Callable[[int, int], int | None]) -> Dataset:
    """Rows for each client, laid where the split will find them.

    Args:
        scenario: the audited one.
        units: of each client.
        rows: of each unit.
        fill: which weight a client's unit pulls at, IDLE, or None for a record.
    """
    task, total = task_of(scenario.data), scenario.data.clients * units * rows
    features, labels = _synthetic(scenario, task, total)
    persons = scenario.privacy.unit_column is not None
    owner_N = np.repeat(np.arange(total // rows), rows) if persons else None
    train = Shard(features_ND=features, labels_N=labels, units_N=owner_N)
    test = _synthetic(scenario, task, TEST_ROWS)
    dataset = Dataset(train=train, test=Shard(features_ND=test[0].copy(), labels_N=test[1].copy()))
    for client, mine in enumerate(split(scenario, dataset)):
        weights = [fill(client, unit) for unit in range(units)]
        at = np.array([position for position, weight in enumerate(weights) if weight is not None])
        pulled = np.array([weight for weight in weights if weight is not None], np.int64)
        places = mine.reshape(units, rows)[at].reshape(-1)
        repeated = np.repeat(pulled, rows)
        features[places] = canary_rows(repeated, repeated != IDLE, shape=features.shape[1:], dtype=features.dtype)
        labels[places] = 0
    return dataset


def _synthetic(scenario: Scenario, task: Task, count: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Random records of the scenario's shape and type, and random classes."""
    generator = np.random.default_rng(derive(scenario.run.seed, "audit"))
    labels = generator.integers(task.classes, size=count)
    shape = _shape(scenario, task)
    if isinstance(scenario.model, Transformer):
        return generator.integers(1, scenario.model.vocabulary, size=(count, *shape)), labels
    return generator.normal(size=(count, *shape)).astype(np.float32), labels


def _shape(scenario: Scenario, task: Task) -> tuple[int, ...]:
    if isinstance(scenario.model, Transformer):
        return (scenario.model.tokens,)
    return task.image_shape if task.image_shape is not None else (task.width or 1,)
