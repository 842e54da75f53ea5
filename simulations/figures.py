"""The figures of a run: what its rounds add up to, and what each client spent."""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from client.budget import account_name
from common.files import write_whole
from common.privacy import accounting
from common.privacy.event_log import read_entries
from common.privacy.plan import POPULATION, Plan
from server.observer import Observer, RoundRecord

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
        epsilon: largest and median over the accounts, or None without privacy.
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
    delta: float
    unit: str
    client_updates: int
    client_updates_per_second: float
    wall_seconds: float

    def to_json(self) -> dict[str, object]:
        """Return plain values."""
        return asdict(self)


def write_clients(plan: Plan, folder: Path, refusals: Counter[int]) -> list[float]:
    """Write clients.csv from the events on disk, and return each account's epsilon."""
    events = folder / "events.jsonl"
    taken = Counter(entry.account for entry in read_entries(events)) if events.exists() else Counter[str]()
    rows = []
    for client, records in enumerate(plan.records):
        row: dict[str, object] = {"client": client, "records": records, "refusals": refusals[client]}
        if plan.unit != "none":
            event = plan.account(client).event
            times = taken[POPULATION if plan.unit == "client" else account_name(client)]
            row |= {
                "sampling_rate": float(event.sampling_rate),
                "noise_multiplier": event.noise_multiplier,
                "steps": event.steps * times,
                "participations": times,
                "epsilon": accounting.epsilon((event.times(times),), delta=plan.delta) if times else 0.0,
                "delta": plan.delta,
            }
        rows.append(row)
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    write_whole(folder / "clients.csv", table.to_csv(index=False))
    return [] if plan.unit == "none" else table["epsilon"].astype(float).tolist()


def last_metrics(folder: Path) -> dict[str, float]:
    """The metrics of a run that was done before."""
    last = pd.read_csv(folder / "rounds.csv").iloc[-1]
    return {"accuracy": float(last["accuracy"]), "loss": float(last["loss"])}


class Tally(Observer):
    """Adds up what the figures need, and passes all on."""

    def __init__(self, watcher: Observer) -> None:
        self._watcher = watcher
        self.updates, self.seconds = 0, 0.0
        self.refusals: Counter[int] = Counter()
        self.metrics: dict[str, float] = {}

    def run_started(self, *, rounds: int, done: int) -> None:
        """Pass it on."""
        self._watcher.run_started(rounds=rounds, done=done)

    def round_started(self, *, round_number: int, cohort: int) -> None:
        """Pass it on."""
        self._watcher.round_started(round_number=round_number, cohort=cohort)

    def client_done(self) -> None:
        """Pass it on."""
        self._watcher.client_done()

    def round_done(self, record: RoundRecord) -> None:
        """Add the round up, and pass it on."""
        self.updates += record.replies
        self.seconds += record.seconds
        self.refusals.update(client for client, _ in record.refused)
        self.metrics = dict(record.metrics)
        self._watcher.round_done(record)
