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
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from client.live.room import record_shape
from common.canaries import IDLE, SMALLEST_ROW
from common.config import Audit, Scenario
from common.errors import BadInputError, ModelRefusedError
from common.privacy.plan import local_steps
from common.tasks import task_of
from simulations.audit.rows import Bools, coins, laid_out, synthetic
from simulations.datasets import Dataset
from simulations.partition import declared_records

VIEWS = 2
ROWS = 50_000  # that the audited clients are trained on in all: some seconds on two cores
ROUNDS = 60  # that are attacked at most
ORDERS = 800  # that canary clients carry out in all, likewise
CANARY_CLIENTS = 400
CLIENT_ROWS = 4
PERSON_ROWS = 2
RECORDS_SHARE = 8  # a client with records has one for each so many canaries
COARSEST = 4  # a sampling rate whose denominator is larger than so many times the units needed is rounded
FARTHEST = 100.0  # that a canary's logit may come, far within what keeps its loss linear


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

    model = build(scenario.model, task_of(scenario.data), seed=scenario.run.seed).train()
    if math.prod(record_shape(scenario)) < SMALLEST_ROW:
        first = next(name for name, layer in model.named_modules() if list(layer.parameters(recurse=False)))
        raise ModelRefusedError(
            f"The pad cannot be added: layer {first} reads records of a single number, a canary needs {SMALLEST_ROW}. "
            f"Audit a scenario with one more feature."
        )
    if scenario.privacy.unit == "client":
        return  # a client's canaries are all its rows: there is nobody beside them
    import torch

    layer = mixing_layer(model, torch.from_numpy(synthetic(scenario, 3).features_ND))
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
    is_in_KM = np.stack([coins(pad) for _ in range(VIEWS)])
    persons = scenario.privacy.unit_column is not None

    def fill(client: int, unit: int) -> int | None:
        """Which weight a unit of a client pulls at; None for a record."""
        if unit < pad:
            return unit if is_in_KM[client, unit] else IDLE
        return IDLE if client == 0 else None

    dataset = laid_out(audited, units=units, rows=PERSON_ROWS if persons else 1, fill=fill)
    return Stage(
        scenario=audited, records=(units,) * VIEWS, dataset=dataset, is_in_KM=is_in_KM, quiet=(0,),
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
    is_in_KM = coins(clients)[None]
    dataset = laid_out(
        audited, units=1, rows=CLIENT_ROWS, fill=lambda client, _unit: client if is_in_KM[0, client] else IDLE
    )
    return Stage(
        scenario=audited, records=(CLIENT_ROWS,) * clients, dataset=dataset, is_in_KM=is_in_KM, quiet=(0,),
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
