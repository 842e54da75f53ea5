"""One scenario, one seed or several: mean, spread, and what all runs together spend.

Every run on the same records counts: several seeds spend more than one, and the figure for all of them is reported
beside that of each.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.config import Scenario
from common.errors import BadInputError, BudgetSpentError
from common.privacy.accounting import epsilon
from common.privacy.plan import Plan
from server.observer import Observer
from simulations import single_run
from simulations.figures import Outcome


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """The outcomes of one scenario's runs.

    Args:
        outcomes: one a seed.
        plan: of the first run.
        epsilon_all_runs: an upper bound for one record (or client) that is in every run; None without privacy.
    """

    outcomes: tuple[Outcome, ...]
    plan: Plan
    epsilon_all_runs: float | None


def run(scenario: Scenario, *, out: Path | None, seeds: int, ledger: Path | None = None, watcher: Observer) -> Campaign:
    """Run a scenario for `seeds` seeds, counted up from its own, each in a folder of its own."""
    if seeds > 1 and ledger is not None:
        raise BadInputError(
            "--ledger: expected it without --seeds, got both. Another seed splits the records anew, so that no account "
            "would know all that a record spent; epsilon of all seeds together is reported without a ledger."
        )
    outcomes, plans = [], []
    for number in range(seeds):
        single = _with_seed(scenario, scenario.run.seed + number) if seeds > 1 else scenario
        folder = out / f"seed-{single.run.seed}" if out is not None and seeds > 1 else out
        outcome = single_run.simulate(single, out=folder, ledger=ledger, watcher=watcher)
        outcomes.append(outcome)
        plans.append(single_run.plan_in(Path(outcome.run_dir)))
    return Campaign(outcomes=tuple(outcomes), plan=plans[0], epsilon_all_runs=_together(plans))


def resume(folder: Path, scenario: Scenario | None, *, watcher: Observer) -> Campaign:
    """Continue the run of a folder; a scenario may be given, and is then compared."""
    outcome = single_run.resume(folder, scenario, watcher=watcher)
    return Campaign(outcomes=(outcome,), plan=single_run.plan_in(folder), epsilon_all_runs=None)


def refuse_stopped(campaign: Campaign) -> None:
    """Raise BudgetSpentError when a run ended before its last round."""
    for outcome in campaign.outcomes:
        if outcome.stopped is not None:
            raise BudgetSpentError(outcome.stopped)


def to_json(campaign: Campaign) -> dict[str, object]:
    """Return what `simulate --json` prints: the run's figures, or those of all seeds with their spread."""
    if len(campaign.outcomes) == 1:
        return campaign.outcomes[0].to_json()
    return {
        "runs": [outcome.to_json() for outcome in campaign.outcomes],
        "metrics": spread(campaign.outcomes),
        "epsilon_all_runs": campaign.epsilon_all_runs,
        "wall_seconds": sum(outcome.wall_seconds for outcome in campaign.outcomes),
    }


def spread(outcomes: Sequence[Outcome]) -> dict[str, dict[str, float]]:
    """Return mean, standard deviation, least and most of each metric over the runs."""
    columns = {name: [outcome.metrics[name] for outcome in outcomes] for name in outcomes[0].metrics}
    return {
        name: {
            "mean": statistics.fmean(column),
            "std": statistics.stdev(column) if len(column) > 1 else 0.0,
            "min": min(column),
            "max": max(column),
        }
        for name, column in columns.items()
    }


def _with_seed(scenario: Scenario, seed: int) -> Scenario:
    return scenario.model_copy(update={"run": scenario.run.model_copy(update={"seed": seed})})


def _together(plans: Sequence[Plan]) -> float | None:
    """Epsilon of the worst account of each run, composed: who is where in which run is not looked up."""
    if not plans[0].accounts:
        return None
    worst = [max(plan.accounts, key=lambda account: account.epsilon_reserved) for plan in plans]
    events = tuple(event for account in worst for event in account.history(account.reserved))
    return epsilon(events, delta=plans[0].delta)
