"""The figures of a run: what its rounds add up to, and what each client spent."""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from common.config import Scenario
from common.files import write_whole
from common.privacy import accounting
from common.privacy.accounts import client_account, population_account
from common.privacy.events import merged
from common.privacy.plan import Account, Plan
from common.transparency.entries import PLAN_ROUND, Reserve
from common.transparency.export import Statement, read
from server.run_folder import LEDGER

COLUMNS = (
    "client", "records", "sampling_rate", "noise_multiplier", "steps", "participations", "epsilon", "delta", "refusals",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What `simulate --json` prints.

    Args:
        run_dir: the run's folder.
        rounds: how many are done, those before a resume included.
        metrics: on the public test set after the last round.
        epsilon: of this run, largest and median over the accounts, or None without privacy.
        lifetime_epsilon: the same for all runs in the ledger, at the ledger's delta.
        stopped: why the run ended before its last round, or None.
        delta: of epsilon.
        unit: record, client or none.
        client_updates: used in this process.
        client_updates_per_second: of the rounds' own time.
        wall_seconds: from start to end of this process's run.
    """

    run_dir: str
    rounds: int
    metrics: dict[str, float]
    epsilon: dict[str, float] | None
    lifetime_epsilon: dict[str, float] | None
    stopped: str | None
    delta: float
    unit: str
    client_updates: int
    client_updates_per_second: float
    wall_seconds: float

    def to_json(self) -> dict[str, object]:
        """Return plain values."""
        return asdict(self)


def write_clients(
    scenario: Scenario, plan: Plan, folder: Path, refusals: Counter[int]
) -> tuple[list[float], list[float]]:
    """Write clients.csv and events.jsonl from the ledger; return each account's epsilon, of this run and in all."""
    if plan.unit == "none":
        plain = (
            {"client": client, "records": n, "refusals": refusals[client]} for client, n in enumerate(plan.records)
        )
        write_whole(folder / "clients.csv", _table(plain))
        return [], []
    statement = read(folder / LEDGER)
    _write_events(statement, plan.run, folder / "events.jsonl")
    rows: list[dict[str, object]] = []
    epsilons: list[float] = []
    lifetime: list[float] = []
    spent: dict[str, tuple[int, float, float]] = {}  # by account, which for unit `client` all clients share
    for client, records in enumerate(plan.records):
        name = population_account(scenario) if plan.unit == "client" else client_account(scenario, client)
        planned = plan.account(client)
        if name not in spent:
            spent[name] = _spent(statement, plan, planned, name)
        times, of_run, in_all = spent[name]
        rows.append(
            {
                "client": client,
                "records": records,
                "sampling_rate": float(planned.event.sampling_rate),
                "noise_multiplier": planned.event.noise_multiplier,
                "steps": planned.event.steps * times,
                "participations": times,
                "epsilon": of_run,
                "delta": plan.delta,
                "refusals": refusals[client],
            }
        )
        epsilons.append(of_run)
        lifetime.append(in_all)
    write_whole(folder / "clients.csv", _table(rows))
    return epsilons, lifetime


def _spent(statement: Statement, plan: Plan, planned: Account, name: str) -> tuple[int, float, float]:
    """An account's participations in a run, their epsilon, and that of all its runs at the ledger's delta."""
    account = statement.books.accounts[name]
    times = account.runs[plan.run].charged if plan.run in account.runs else 0
    of_run = accounting.epsilon(planned.history(times), delta=plan.delta)
    return times, of_run, accounting.epsilon(merged(account.spent()), delta=account.terms[-1].delta)


def _table(rows: Iterable[Mapping[str, object]]) -> str:
    """Rows as comma-separated text; a figure that a row does not have is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _write_events(statement: Statement, run: str, path: Path) -> None:
    """Write what a run was charged, a line a charge, for those who read tables rather than ledgers."""
    lines = [
        json.dumps(
            {
                "run": entry.run,
                "round": entry.round,
                "attempt": entry.attempt,
                "account": entry.account,
                "events": [event.to_json() for event in entry.events],
            }
        )
        for entry in statement.entries
        if isinstance(entry, Reserve) and entry.run == run and entry.round != PLAN_ROUND
    ]
    write_whole(path, "".join(f"{line}\n" for line in lines))
