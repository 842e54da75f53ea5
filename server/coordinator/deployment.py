"""A whole run across organisations: offers, plan, rounds, end.

The identifier of a run is on disk before anybody is asked: an organisation whose officer approves a run approves this
one, also when it is resumed as another Flower run.
"""

import fcntl
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from common.config import Scenario, dump, load
from common.consortium import identity, roster
from common.consortium.members import Roster
from common.errors import BadInputError, BudgetSpentError, LinkError, ScenarioError
from common.files import write_whole
from common.privacy.plan import Plan, make_plan
from common.privacy.plan_file import from_json_text, to_json
from common.shards import Shard, write_test
from server.coordinator import run_record
from server.coordinator.interruption import interruptible
from server.coordinator.organisations import taking_part
from server.coordinator.outcome import Outcome, Times, outcome
from server.coordinator.parties import Parties
from server.coordinator.run_record import Organisation
from server.link.settings import LinkFolder, read_link
from server.observer import Observer, observer
from server.tally import Tally

if TYPE_CHECKING:
    from flwr.serverapp import Grid

END_S = 10.0  # in which organisations are told that a run is over


@dataclass(frozen=True, kw_only=True)
class Coordinator:
    """Who runs: the consortium's folder on this machine, and how long organisations may take to answer an offer."""

    folder: Path
    watcher: Observer
    wait_s: float

    @property
    def roster(self) -> Roster:
        """The consortium's roster, signed by all, or ConsortiumError."""
        return roster.load(self.folder / "roster.json")


@dataclass(frozen=True, kw_only=True)
class _Work:
    """A run: its scenario, its folder, and the folder of the public test set."""

    scenario: Scenario
    folder: Path
    test: Path

    @property
    def text(self) -> str:
        """The scenario as all sides see it."""
        return dump(self.scenario)


def run(coordinator: Coordinator, scenario: Scenario, *, test: Shard, out: Path | None) -> Outcome:
    """Run a scenario across a consortium's organisations, in a new folder."""
    known = coordinator.roster
    _refuse_unfit(scenario, known)
    folder = out or Path("runs") / f"{scenario.run.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInputError(f"{folder}: expected a folder that is new or empty. Name another with --out.")
    with _alone(coordinator):  # before anything is written
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "scenario.toml", dump(scenario))
        run_record.begin(folder, scenario, run=uuid.uuid4().hex, consortium=known.consortium)
        return _run(coordinator, scenario, folder, test)


def resume(coordinator: Coordinator, folder: Path, *, test: Shard) -> Outcome:
    """Continue a folder's run, as a new Flower run of the same identifier."""
    scenario = scenario_in(folder)
    with _alone(coordinator):
        return _run(coordinator, scenario, folder, test)


def scenario_in(folder: Path) -> Scenario:
    """Return the scenario of a folder's run, or raise BadInputError."""
    run_record.run_in(folder)
    try:
        return load(folder / "scenario.toml")
    except ScenarioError as error:
        raise BadInputError(f"{folder}: the run's scenario does not read ({error}).") from error


def _refuse_unfit(scenario: Scenario, known: Roster) -> None:
    if scenario.privacy.unit == "client":
        raise ScenarioError(
            "privacy.unit: expected 'record' (or 'none' for public data) across organisations, got 'client': each one "
            "adds its own noise, and trusts nobody to add it later."
        )
    count = len(known.owners)
    if scenario.data.clients != count:
        names = ", ".join(owner.name for owner in known.owners)
        raise ScenarioError(
            f"data.clients: expected {count}, the organisations of the roster ({names}), got {scenario.data.clients}. "
            f"Say --set data.clients={count} --set server.cohort={count}."
        )
    if not scenario.run.purpose.strip():
        raise ScenarioError(
            "run.purpose: expected a sentence that says what the run is for, got none. Organisations decide by it, and "
            "keep it in their ledgers: --set 'run.purpose=...'."
        )


def _run(coordinator: Coordinator, scenario: Scenario, folder: Path, test: Shard) -> Outcome:
    import server.app  # noqa: F401 - with torch, which takes seconds: before the run begins
    from server.coordinator.flower_link import FlowerLink
    from server.coordinator.link_grid import LinkGrid

    times, tally = Times(begun=time.monotonic()), Tally(coordinator.watcher)
    place = LinkFolder(coordinator.folder)
    with interruptible(folder), tempfile.TemporaryDirectory(prefix="discreet-run-") as scratch:
        work = _Work(scenario=scenario, folder=folder, test=Path(scratch))
        write_test(work.test, test)
        link = FlowerLink(read_link(place))
        link.end_orphans()
        times = replace(times, started=time.monotonic())
        flower_run = link.start_run(work.text)
        nodes = {node.public_key: node.id for node in link.nodes()}
        with link.task(flower_run) as task, _observed(tally):
            parties = _parties(coordinator, work, flower_run, nodes)
            plan, organisations, stopped = _rounds(LinkGrid(link, task), parties, work, wait_s=coordinator.wait_s)
        times = replace(times, over=time.monotonic())
    return outcome(scenario, plan, folder, tally, organisations, stopped=stopped, times=times)


def _rounds(
    grid: "Grid", parties: Parties, work: _Work, *, wait_s: float
) -> tuple[Plan, tuple[Organisation, ...], str | None]:
    """Ask for offers, plan, train, and say that it is over; return why it stopped early, or None."""
    from flwr.app import Context, RecordDict, UserConfig

    from server.app import app
    from server.coordinator import questions
    from server.coordinator.sealed_grid import SealedGrid

    run_id, stopped = run_record.run_in(work.folder), None
    offered = questions.offers(grid, parties, run=run_id, wait_s=wait_s)
    organisations = taking_part(work.folder, parties.roster, offered)
    plan = _plan(work, organisations, run=run_id)
    policies = {party: one.policy for party, one in enumerate(organisations)}
    config: UserConfig = {"scenario": work.text, "run-folder": str(work.folder), "shards": str(work.test)}
    try:
        app(
            SealedGrid(grid, replace(parties, policies=policies)),
            Context(parties.flower_run, 0, {}, RecordDict(), config),
        )
    except BudgetSpentError as error:
        stopped = str(error)
    questions.end(grid, parties, run=run_id, wait_s=END_S)
    return plan, organisations, stopped


def _parties(coordinator: Coordinator, work: _Work, flower_run: int, node_of: Mapping[bytes, int]) -> Parties:
    """Who takes part, or LinkError for an organisation that the link has not registered."""
    known = coordinator.roster
    missing = [owner.name for owner in known.owners if owner.node.encode() not in node_of]
    if missing:
        raise LinkError(
            f"The link has not registered {', '.join(missing)}. Has it read the newest roster, are their certificates "
            f"valid? See `discreet consortium show`."
        )
    return Parties(
        roster=known,
        signer=identity.load(coordinator.folder / "identity").signer,
        flower_run=flower_run,
        scenario=sha256(work.text.encode()).hexdigest(),
        owners=known.owners,
        nodes=tuple(node_of[owner.node.encode()] for owner in known.owners),
    )


def _plan(work: _Work, organisations: tuple[Organisation, ...], *, run: str) -> Plan:
    """The run's plan: made from declared numbers of records, or that of a run that goes on."""
    path = work.folder / "plan.json"
    if path.exists():
        return from_json_text(path.read_text())
    plan = make_plan(work.scenario, records=tuple(one.records for one in organisations), run=run)
    write_whole(path, to_json(plan))
    return plan


@contextmanager
def _alone(coordinator: Coordinator) -> Iterator[None]:
    """Hold the link's one place for a run; LinkError when there is no link, or another run has it."""
    place = LinkFolder(coordinator.folder)
    read_link(place)
    with (place.root / "run.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise LinkError(
                "Another run is going on; see `discreet status`, or end it with `discreet stop`."
            ) from error
        yield


@contextmanager
def _observed(tally: Observer) -> Iterator[None]:
    """Let the strategy's rounds be watched."""
    token = observer.set(tally)
    try:
        yield
    finally:
        observer.reset(token)
