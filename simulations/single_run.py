"""A whole run on this machine: data, plan, folder, grid, server app, figures.

The order matters: everything that can be refused is refused before the run folder exists, and the plan is made from
declared numbers before any record is read.
"""

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from common.config import Scenario, dump, load
from common.errors import BadInputError, BudgetSpentError, RunFailedError, ScenarioError
from common.files import write_whole
from common.privacy.plan import Plan
from common.privacy.plan_file import from_json_text, to_json
from common.shards import write_shards
from server.observer import Observer, observer
from server.tally import Tally, last_metrics, rounds_done
from simulations import datasets, run_ledger
from simulations.figures import Outcome, write_clients
from simulations.partition import split
from simulations.single_plan import checked, plan_of

if TYPE_CHECKING:
    from flwr.app import UserConfig
    from flwr.serverapp import Grid

    from client.budget import Budget
    from simulations.engine.executors import Executor

    # Connects a run that is prepared to its clients; the second is called when the shards are written.
    Connect = Callable[[ExitStack, Scenario, UserConfig, Budget | None], tuple[Grid, Callable[[], None]]]

CLIENT_APP = "client.app:app"
MAY_CHANGE = {
    "run": {"name", "purpose"},
    "server": {"min_replies", "round_timeout_s", "evaluate_every"},
    "engine": {"kind", "device", "workers", "physical_batch", "ray_address", "scratch"},
    "data": {"path"},
}


def plan_in(folder: Path) -> Plan:
    """Return the plan of a run's folder."""
    return from_json_text((folder / "plan.json").read_text())


def simulate(
    scenario: Scenario,
    *,
    out: Path | None,
    ledger: Path | None,
    watcher: Observer,
    connect: "Connect | None" = None,
) -> Outcome:
    """Run a scenario in a new folder, on a ledger of its own or one that is named; `connect` brings another grid."""
    if connect is None:
        _refuse_missing_engine(scenario)
    _refuse_used(folder := out or new_folder(scenario))
    run_ledger.refuse_unfit(ledger, scenario)
    dataset = datasets.load(scenario)  # a data set that is missing is reported before anything is written
    plan = plan_of(scenario)
    return simulate_planned(
        scenario, plan, dataset, folder=folder, ledger=ledger, watcher=watcher, connect=connect or in_process
    )


def simulate_planned(
    scenario: Scenario,
    plan: Plan,
    dataset: datasets.Dataset,
    *,
    folder: Path,
    ledger: Path | None = None,
    watcher: Observer,
    connect: "Connect",
) -> Outcome:
    """Run what is planned already, on data that are there already, in a new folder."""
    _refuse_used(folder)
    with checked(plan, scenario):
        import server.app  # noqa: F401 - with torch, which takes seconds: while the plan is checked
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "scenario.toml", dump(scenario))
    run_ledger.attach(folder, ledger, scenario)
    write_whole(folder / "plan.json", to_json(plan))
    return _run(scenario, plan, dataset, folder, watcher, connect=connect)


def new_folder(scenario: Scenario) -> Path:
    """Return where a run goes that was given no folder."""
    return Path("runs") / f"{scenario.run.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def _refuse_used(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInputError(
            f"{folder}: expected a folder that is new or empty. Name another with --out, or --resume it."
        )


def resume(folder: Path, scenario: Scenario | None, *, watcher: Observer) -> Outcome:
    """Continue a folder's run; ScenarioError when `scenario` differs in what decides the result."""
    if not all((folder / name).is_file() for name in ("scenario.toml", "plan.json")):
        raise BadInputError(f"{folder}: expected the folder of a run, with scenario.toml and plan.json.")
    try:
        begun = load(folder / "scenario.toml")
        plan = plan_in(folder)
    except (OSError, ValueError, KeyError, TypeError, ScenarioError) as error:
        raise BadInputError(f"{folder}: the run's scenario or plan does not read ({error}).") from error
    if scenario is not None:
        _refuse_difference(begun, scenario)
    _refuse_missing_engine(scenario or begun)
    dataset = datasets.load(begun)
    return _run(scenario or begun, plan, dataset, folder, watcher, connect=in_process, is_resumed=True)


def _refuse_difference(begun: Scenario, given: Scenario) -> None:
    """Only what leaves the result as it was may differ."""
    old, new = begun.model_dump(), given.model_dump()
    for table in old:
        values, others = old[table] or {}, new[table] or {}
        for key in values.keys() | others.keys():
            if key not in MAY_CHANGE.get(table, ()) and values.get(key) != others.get(key):
                raise ScenarioError(
                    f"{table}.{key}: the run was begun with {values.get(key)!r}, got {others.get(key)!r}. "
                    f"Resume it unchanged, or start a new run."
                )


def _run(
    scenario: Scenario,
    plan: Plan,
    dataset: datasets.Dataset,
    folder: Path,
    watcher: Observer,
    *,
    connect: "Connect",
    is_resumed: bool = False,
) -> Outcome:
    from flwr.app import Context, RecordDict  # with torch: after everything that is wrong was refused

    from server.app import app
    from simulations.engine.executors import RUN_ID

    started = time.monotonic()
    tally = Tally(watcher)
    with _stopped_by_hand(folder), ExitStack() as stack:
        shards = stack.enter_context(_scratch(scenario.engine.scratch))
        budget = stack.enter_context(run_ledger.claim(folder, scenario, plan, is_resumed=is_resumed))
        run_config: UserConfig = {"scenario": dump(scenario), "run-folder": str(folder), "shards": str(shards)}
        grid, wait = connect(stack, scenario, run_config, budget)  # clients start while the data are laid out
        write_shards(shards, train=dataset.train, test=dataset.test, indices=split(scenario, dataset))
        token = observer.set(tally)
        stack.callback(observer.reset, token)
        wait()
        stopped = None
        try:
            app(grid, Context(RUN_ID, 0, {}, RecordDict(), run_config))
        except BudgetSpentError as error:
            stopped = str(error)
        run_ledger.end(folder, plan, budget)
    epsilons, lifetime = write_clients(scenario, plan, folder, tally.refusals)
    wall = time.monotonic() - started
    return Outcome(
        run_dir=str(folder),
        rounds=rounds_done(folder),
        metrics=dict(tally.metrics) or last_metrics(folder),
        epsilon={"max": max(epsilons), "median": statistics.median(epsilons)} if epsilons else None,
        lifetime_epsilon={"max": max(lifetime), "median": statistics.median(lifetime)} if lifetime else None,
        stopped=stopped,
        delta=plan.delta,
        unit=plan.unit,
        client_updates=tally.updates,
        client_updates_per_second=tally.updates / tally.seconds if tally.seconds else 0.0,
        wall_seconds=wall,
    )


@contextmanager
def _stopped_by_hand(folder: Path) -> Iterator[None]:
    """Turn Ctrl-C into one line that says how to go on."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise RunFailedError(f"Stopped. Continue with: discreet simulate --resume {folder}") from error


def in_process(
    stack: ExitStack, scenario: Scenario, run_config: "UserConfig", budget: "Budget | None"
) -> "tuple[Grid, Callable[[], None]]":
    """The grid of our own, on the scenario's engine."""
    from simulations.engine.grid import InProcessGrid

    executor = _executor(scenario, run_config)
    stack.callback(executor.close)
    grid = InProcessGrid(
        clients=scenario.data.clients,
        executor=executor,
        node_config=lambda client: node_config(scenario, run_config["shards"], client),
        budget=budget,
    )
    return grid, executor.wait


def _refuse_missing_engine(scenario: Scenario) -> None:
    if scenario.engine.kind == "ray":
        from simulations.engine import ray_cluster

        ray_cluster.refuse_missing()


def _executor(scenario: Scenario, run_config: "UserConfig") -> "Executor":
    """The scenario's engine; `auto` takes a worker a core where that can be faster, and one process on a GPU."""
    import torch

    if scenario.engine.kind == "ray":
        from simulations.engine.ray_actors import RayActors

        return RayActors(
            CLIENT_APP,
            run_config,
            address=scenario.engine.ray_address,
            count=scenario.engine.workers,
            most=scenario.server.cohort,
            on_gpu=scenario.engine.device == "cuda",
        )
    cores = os.cpu_count() or 1
    on_gpu = scenario.engine.device == "cuda" or (scenario.engine.device == "auto" and torch.cuda.is_available())
    alone = on_gpu or cores == 1 or scenario.server.cohort == 1
    if scenario.engine.kind == "sequential" or (scenario.engine.kind == "auto" and alone):
        torch.set_num_threads(1)  # as in a worker: the number of threads decides the last bits of a sum
        from simulations.engine.executors import Sequential

        return Sequential(CLIENT_APP, run_config)
    from simulations.engine.workers import Workers

    return Workers(CLIENT_APP, run_config, count=min(scenario.engine.workers or cores, scenario.server.cohort))


def node_config(scenario: Scenario, shards: object, client: int) -> "UserConfig":
    """Return what a virtual client finds in its node's configuration."""
    return {"partition-id": client, "num-partitions": scenario.data.clients, "shards": str(shards)}


@contextmanager
def _scratch(root: str) -> Iterator[Path]:
    """A private folder that is gone afterwards, in `root` or where this machine keeps temporary files.

    What killed processes left is swept away first, but not from `root`: there it may be another machine's, and in use.
    """
    for old in Path(tempfile.gettempdir()).glob("discreet-*-*") if not root else ():
        owner = old.name.split("-")[1]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists() and old.stat().st_uid == os.getuid():
            shutil.rmtree(old, ignore_errors=True)
    try:
        folder = Path(tempfile.mkdtemp(prefix=f"discreet-{os.getpid()}-", dir=Path(root).resolve() if root else None))
    except OSError as error:
        raise RunFailedError(f"engine.scratch: expected a folder where one may write, got {error}.") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
