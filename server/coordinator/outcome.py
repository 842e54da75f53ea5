"""What a deployed run reached, as the coordinator knows it.

What was spent is in the organisations' own ledgers; the figures here are of what they were asked.
"""

import statistics
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from common.config import Scenario
from common.errors import BudgetSpentError
from common.privacy.accounting import epsilon
from common.privacy.plan import Plan
from server.cohorts import schedule
from server.coordinator.run_record import Organisation
from server.run_folder import RunFolder
from server.tally import Tally, last_metrics, rounds_done


@dataclass(frozen=True, kw_only=True)
class Times:
    """On a clock that only goes forward, in seconds: this process began, the link had the run, it was over."""

    begun: float
    started: float = 0.0
    over: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What `run --json` prints.

    Args:
        run: the run's identifier.
        run_dir: the run's folder.
        rounds: how many are done, those before a resume included.
        metrics: on the public test set after the last round.
        epsilon: of what the organisations were asked to do, largest and median, or None without privacy; each
            organisation's own ledger says what it spent.
        stopped: why the run ended before its last round, or None.
        delta: of epsilon.
        unit: record or none.
        client_updates: used in this process.
        client_updates_per_second: of the rounds' own time.
        wall_seconds: from start to end of this process's run.
        run_seconds: from the start of the run at the link to its end.
        organisations: name, records, digests, participations asked, refusals by word.
    """

    run: str
    run_dir: str
    rounds: int
    metrics: dict[str, float]
    epsilon: dict[str, float] | None
    stopped: str | None
    delta: float
    unit: str
    client_updates: int
    client_updates_per_second: float
    wall_seconds: float
    run_seconds: float
    organisations: list[dict[str, object]]

    def to_json(self) -> dict[str, object]:
        """Return plain values."""
        return asdict(self)


def refuse_unsuccessful(outcome: Outcome) -> None:
    """Raise BudgetSpentError when a run ended before its last round."""
    if outcome.stopped is not None:
        raise BudgetSpentError(outcome.stopped)


def outcome(
    scenario: Scenario,
    plan: Plan,
    folder: Path,
    tally: Tally,
    organisations: Sequence[Organisation],
    *,
    stopped: str | None,
    times: Times,
) -> Outcome:
    """Add a run up."""
    asked = _asked(folder, scenario)
    epsilons = [
        epsilon(plan.account(party).history(times), delta=plan.delta) for party, times in asked.items() if plan.accounts
    ]
    return Outcome(
        run=plan.run,
        run_dir=str(folder),
        rounds=rounds_done(folder),
        metrics=dict(tally.metrics) or last_metrics(folder),
        epsilon={"max": max(epsilons), "median": statistics.median(epsilons)} if epsilons else None,
        stopped=stopped,
        delta=plan.delta,
        unit=plan.unit,
        client_updates=tally.updates,
        client_updates_per_second=tally.updates / tally.seconds if tally.seconds else 0.0,
        wall_seconds=times.over - times.begun,
        run_seconds=times.over - times.started,
        organisations=[
            asdict(one) | {"asked": asked[party], "refusals": tally.refusals[party]}
            for party, one in enumerate(organisations)
        ],
    )


def _asked(folder: Path, scenario: Scenario) -> Counter[int]:
    """How often each organisation was asked, lost attempts included."""
    cohorts, asked = schedule(scenario), Counter(dict.fromkeys(range(scenario.data.clients), 0))
    with closing(RunFolder(folder)) as opened:
        for number, times in opened.attempts().items():
            asked.update({int(party): times for party in cohorts[number - 1]})
    return asked
