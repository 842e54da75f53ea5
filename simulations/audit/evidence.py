"""What an audit goes by: the movements that an eavesdropper saw, and what the ledger says was charged.

Shapes: K views, R rounds, M canaries of a view, D kept coordinates, L steps of a round.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from common.audit.observations import Claim, Observations
from common.config import Scenario
from common.errors import RunFailedError
from common.models.registry import model_of
from common.privacy.accounts import account_names
from common.privacy.plan import Plan
from common.transparency.entries import PLAN_ROUND, Reserve
from common.transparency.export import read
from server.run_folder import LEDGER
from simulations.audit.staging import Stage

if TYPE_CHECKING:
    from simulations.audit.eavesdropper import Eavesdropper

KEPT = 2_000  # coordinates of each parameter of the body

Movements = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Coordinates:
    """Which coordinates of the flat weights are kept.

    Args:
        size: how many there are in all.
        kept_D: the kept ones, the pad's last.
        body: by parameter, where its coordinates are among the kept ones.
        pad: where the pad's are.
    """

    size: int
    kept_D: npt.NDArray[np.intp]
    body: Mapping[str, slice]
    pad: slice


def coordinates(scenario: Scenario) -> Coordinates:
    """Return the whole pad, and of each other parameter up to `KEPT` coordinates, evenly spread."""
    begin, kept, parts = 0, [], {}
    found = 0
    for name, parameter in model_of(scenario).named_parameters():
        size = parameter.numel()
        count = size if name == "pad.weight" else min(size, KEPT)
        kept.append(begin + np.linspace(0, size - 1, count).astype(np.intp))
        parts[name.removeprefix("body.")] = slice(found, found + count)
        begin, found = begin + size, found + count
    pad = parts.pop("pad.weight")
    return Coordinates(size=begin, kept_D=np.concatenate(kept), body=parts, pad=pad)


def observed(stage: Stage, plan: Plan, seen: "Eavesdropper", where: Coordinates, folder: Path) -> Observations:
    """Return what was seen, in units of what one unit may add to a step.

    Raises:
        RunFailedError: an update is missing: nobody was killed, so that something else is wrong.
    """
    scenario = stage.scenario
    if scenario.privacy.unit == "client":
        moves_KRD = _of_the_model(scenario, plan, seen, where, folder)
        steps, cohorts = 1, (len(seen.orders), moves_KRD.shape[1] * scenario.data.clients)
    else:
        moves_KRD = _of_clients(scenario, seen)
        steps, cohorts = scenario.training.local_steps or 1, None
    quiet = moves_KRD[list(stage.quiet)] if scenario.privacy.unit != "none" else moves_KRD[:0]
    return Observations(
        moves_KRM=moves_KRD[:, :, where.pad],
        is_in_KM=stage.is_in_KM,
        body_KRD={name: quiet[:, :, part] for name, part in where.body.items()},
        steps=steps,
        cohorts=cohorts,
    )


def claimed(stage: Stage, plan: Plan, seen: "Eavesdropper", folder: Path, *, epsilon: float | None) -> Claim:
    """Return what the run says of itself: its figure, its plan, and the ledger's entries of the account charged least.

    Args:
        stage: what was audited.
        plan: of the run.
        seen: who counted the orders.
        folder: the run's.
        epsilon: that the run reported.
    """
    rounds = len({order.round for order in seen.orders})
    if plan.unit == "none":
        return Claim(epsilon=None, delta=plan.delta, events=(), mechanism=None, orders=rounds)
    names = account_names(stage.scenario, plan)
    charged = {name: [event for entry in _charges(folder, plan.run, name) for event in entry.events] for name in names}
    fewest = min(charged.values(), key=lambda events: sum(event.steps for event in events))
    return Claim(
        epsilon=epsilon, delta=plan.delta, events=tuple(fewest), mechanism=plan.accounts[0].event, orders=rounds
    )


def _charges(folder: Path, run: str, account: str) -> list[Reserve]:
    entries = read(folder / LEDGER).entries
    return [
        entry
        for entry in entries
        if isinstance(entry, Reserve) and (entry.run, entry.account) == (run, account) and entry.round != PLAN_ROUND
    ]


def _of_clients(scenario: Scenario, seen: "Eavesdropper") -> Movements:
    """Each client's updates: the sum of its steps, each divided by the batch size and scaled by the learning rate."""
    training = scenario.training
    one = training.learning_rate * scenario.privacy.max_grad_norm / training.batch_size
    views = []
    for client in range(scenario.data.clients):
        missing = [number for number in range(1, scenario.run.rounds + 1) if (client, number) not in seen.updates]
        if missing:
            raise RunFailedError(
                f"The audit saw no update of client {client} in round {missing[0]}. See the log above."
            )
        views.append([seen.updates[client, number] for number in range(1, scenario.run.rounds + 1)])
    moves_KRD: Movements = np.array(views, np.float64) / one
    return moves_KRD


def _of_the_model(scenario: Scenario, plan: Plan, seen: "Eavesdropper", where: Coordinates, folder: Path) -> Movements:
    """The model's own movement from round to round: the noised sum, divided by the expected cohort."""
    one = plan.max_grad_norm / float(plan.accounts[0].event.sampling_rate * len(plan.records))
    last = load_file(folder / "checkpoint" / "state.safetensors")["weights"][where.kept_D]
    weights_RD = [*(seen.weights[number] for number in sorted(seen.weights)), last]
    moves_RD: Movements = np.diff(np.array(weights_RD, np.float64), axis=0) / one
    if len(moves_RD) != scenario.run.rounds:
        raise RunFailedError(f"The audit saw {len(moves_RD)} of {scenario.run.rounds} rounds. See the log above.")
    return moves_RD[None]
