"""`discreet audit`: does the claimed epsilon survive an attack?

    stage (pad, canaries, coins) -> simulate, as any run, with an eavesdropper at the grid -> what moved, and what the
    ledger charged -> judge -> audit.json, AUDIT in the ledger

Nothing inside what is audited is hooked: the canaries are rows, the pad is a part of the model, and the eavesdropper
stands where the coordinator stands.
"""

import json
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.audit.noting import noted
from common.audit.verdict import Findings, judge, refuse_too_few
from common.config import Scenario
from common.files import write_whole
from common.ledger import Ledger
from common.privacy.accounts import account_names
from common.privacy.plan import Plan
from common.transparency.provenance import provenance
from server.observer import Observer
from server.run_folder import LEDGER, LEDGER_SEEN
from simulations.audit.staging import Stage, stage
from simulations.single_plan import plan_of
from simulations.single_run import new_folder, simulate_planned

CANARIES = 1_000
FILE = "audit.json"


@dataclass(frozen=True, kw_only=True)
class Audit:
    """An audit that was made.

    Args:
        run_dir: the run's folder.
        unit: what is protected: record, person, client, or none.
        rounds: that were attacked.
        scenario_rounds: that the scenario has; its epsilon was planned anew for those attacked.
        plan: of the attacked run.
        findings: the verdict and what it rests on.
        way: how the gradients of units were had.
        seconds: from start to end.
    """

    run_dir: Path
    unit: str
    rounds: int
    scenario_rounds: int
    plan: Plan
    findings: Findings
    way: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        origin = provenance()
        event = self.plan.accounts[0].event if self.plan.accounts else None
        return self.findings.to_json() | {
            "unit": self.unit,
            "rounds": self.rounds,
            "scenario_rounds": self.scenario_rounds,
            "sampling_rate": None if event is None else str(event.sampling_rate),
            "noise_multiplier": None if event is None else event.noise_multiplier,
            "steps_per_round": None if event is None else event.steps,
            "max_grad_norm": self.plan.max_grad_norm,
            "gradients": self.way,
            "code": origin.code,
            "libraries": dict(origin.libraries),
            "rng": origin.rng,
            "run_dir": str(self.run_dir),
            "seconds": self.seconds,
        }


def audit(
    scenario: Scenario, *, canaries: int = CANARIES, out: Path | None, ledger: Path | None = None, watcher: Observer
) -> Audit:
    """Attack a scenario's training, and note the verdict in the run's own ledger.

    Guarantees:
        What is said does not depend on any private record: there is none.
        An honest run is refuted with a probability of at most 1e-4.

    Args:
        scenario: whose model, mechanism and engine are attacked.
        canaries: how many.
        out: the run's folder; default runs/NAME-audit-DATE.
        ledger: an owner's, or a simulation's, in whose accounts the verdict is noted too.
        watcher: is told of the rounds.

    Raises:
        BadInputError: too few canaries for the claim; it says how many would do.
        ModelRefusedError: a model to which no pad can be added; it names the layer.
    """
    started = time.monotonic()
    set_up = stage(scenario, canaries=canaries)
    plan = plan_of(set_up.scenario, records=set_up.records)
    _refuse_too_few(plan, set_up)
    folder = out or new_folder(set_up.scenario)
    findings = _attacked(set_up, plan, folder, watcher)
    made = Audit(
        run_dir=folder,
        unit=plan.accounts[0].event.unit if plan.accounts else "none",
        rounds=set_up.scenario.run.rounds,
        scenario_rounds=set_up.rounds,
        plan=plan,
        findings=findings,
        way=_way(set_up.scenario),
        seconds=time.monotonic() - started,
    )
    write_whole(folder / FILE, json.dumps(made.to_json(), indent=2) + "\n")
    _note(made, set_up, ledger)
    return made


def _refuse_too_few(plan: Plan, set_up: Stage) -> None:
    """Before anything is trained."""
    if plan.accounts:
        account = plan.accounts[0]
        refuse_too_few(account.history(account.participations), canaries=set_up.is_in_KM.size)


def _attacked(set_up: Stage, plan: Plan, folder: Path, watcher: Observer) -> Findings:
    """Run the stage as any run, and judge what was seen."""
    from simulations.audit.eavesdropper import listening
    from simulations.audit.evidence import claimed, coordinates, observed

    where = coordinates(set_up.scenario)
    connect, heard = listening(kept_D=where.kept_D, size=where.size)
    outcome = simulate_planned(set_up.scenario, plan, set_up.dataset, folder=folder, watcher=watcher, connect=connect)
    epsilon = None if outcome.epsilon is None else outcome.epsilon["max"]
    (seen,) = heard
    return judge(observed(set_up, plan, seen, where, folder), claimed(set_up, plan, seen, folder, epsilon=epsilon))


def _way(scenario: Scenario) -> str:
    """How the gradients of units were had, in words."""
    if scenario.privacy.unit != "record":
        return "whole batches"
    from client.gradients.one_backward import obstacle_in
    from common.models.registry import model_of

    obstacle = obstacle_in(model_of(scenario))
    return "one backward pass" if obstacle is None else f"Opacus's hooks ({obstacle})"


def _note(made: Audit, set_up: Stage, ledger: Path | None) -> None:
    """Put the verdict into the ledgers: the run's own, and one that was named, on the accounts of the same data."""
    if made.plan.unit == "none":
        return
    found = noted(made.findings, kind="offline", rounds=made.rounds)
    with closing(Ledger(made.run_dir / LEDGER, memory=made.run_dir / LEDGER_SEEN)) as own:
        for account in account_names(set_up.scenario, made.plan):
            own.audited(account, made.plan.run, found)
    if ledger is not None:
        with closing(Ledger(ledger)) as named:
            for account in named.books.accounts:
                named.audited(account, made.plan.run, found)
