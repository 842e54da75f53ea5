"""Discreet behind plain `flwr run`: on Flower's simulation runtime, whose grid charges nobody.

The server app prepares a run as `discreet simulate` does, and leaves in its folder what the clients cannot know:

    federation.json   the node of each client, where the shards lie, and which machine has the ledger

The client app finds its client by the number of its node, charges each order on the run's ledger before `client.app`
sees it, and settles it afterwards. Run config, flat text values (docs/ray.md):

    scenario   name of a scenario that comes with Discreet, path of a file, or the text itself
    set        overrides, `table.key=value`, with spaces between
    folder     of the run: a full path that server and clients see
    ledger     a ledger that several runs share, or empty
"""

import json
import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from flwr.app import Context, Error, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from client.app import REFUSED, order_in, reservation
from client.app import app as owner_app
from client.budget import Budget, agreements
from common.config import Scenario, load, parse
from common.errors import BadInputError, BudgetSpentError, DiscreetError, RefusedError, WireError
from common.files import write_whole
from common.ledger import Ledger
from common.messages import Order, Refusal
from common.privacy.accounts import account_names
from common.privacy.plan import Plan
from server.observer import Observer, RoundRecord
from server.run_folder import LEDGER
from simulations import scenario_files, single_run

SHEET = "federation.json"
BOOT = Path("/proc/sys/kernel/random/boot_id")  # one of a running kernel: SQLite's locks hold for its processes alone

log = logging.getLogger("discreet.simulations")

server_app = ServerApp()
client_app = ClientApp()


@server_app.main()
def serve(grid: Grid, context: Context) -> None:
    """Run a scenario in a new folder; BudgetSpentError where it ended before its last round."""
    config = context.run_config
    scenario, folder = _scenario(config), _folder(config)
    ledger = Path(str(config["ledger"])) if config.get("ledger") else None
    federation = _Federation(grid, folder, clients=scenario.data.clients)
    outcome = single_run.simulate(scenario, out=folder, ledger=ledger, watcher=federation, connect=federation.connect)
    print(json.dumps(outcome.to_json()), flush=True)  # noqa: T201 - `flwr log` shows it
    if outcome.stopped is not None:
        raise BudgetSpentError(outcome.stopped)


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Charge an order, durably, then have it carried out; or answer with one word."""
    try:
        member = _member(_folder(context.run_config))
        node_config = member.node_config(context.node_id)
        state = RecordDict()
        order = order_in(message, weights_P=np.zeros(0, np.float32))
        if member.plan.unit == "record":
            member.charge(order, client=node_config["partition-id"])
            state["reservation"] = reservation(order)
    except RefusedError as error:
        log.warning("order refused: %s", error)
        return Message(Error(REFUSED, error.word.value), reply_to=message)
    except (WireError, KeyError) as error:
        log.warning("order refused: %s", error)
        return Message(Error(REFUSED, Refusal.MALFORMED.value), reply_to=message)
    except Exception:
        log.exception("order not charged")
        return Message(Error(REFUSED, Refusal.NOT_RECORDED.value), reply_to=message)
    reply = owner_app(message, Context(context.run_id, context.node_id, node_config, state, member.run_config))
    member.settle(order, is_trained=not reply.has_error())
    return reply


class _Federation(Observer):
    """The run as Flower's runtime sees it: its grid, its nodes, its log."""

    def __init__(self, grid: Grid, folder: Path, *, clients: int) -> None:
        nodes = sorted(grid.get_node_ids())
        if len(nodes) < clients:
            raise BadInputError(
                f"num-supernodes: expected at least data.clients = {clients}, got {len(nodes)}. Say "
                f"flwr run ... --federation-config 'num-supernodes={clients}'."
            )
        self._grid, self._folder, self._nodes = grid, folder, nodes[:clients]
        self._budget: Budget | None = None

    def connect(
        self, stack: ExitStack, scenario: Scenario, run_config: UserConfig, budget: Budget | None
    ) -> tuple[Grid, Callable[[], None]]:
        """Tell the clients of the run, before the first is asked; take the sheet away when the run is over."""
        del scenario
        sheet = self._folder / SHEET
        content = {"nodes": self._nodes, "shards": run_config["shards"], "machine": _machine()}
        stack.callback(sheet.unlink, missing_ok=True)
        write_whole(sheet, json.dumps(content))
        self._budget = budget
        return self._grid, lambda: None

    def client_done(self) -> None:
        """Note what the ledger looks like, to which the clients' processes write: an older copy is then noticed."""
        if self._budget is not None:
            self._budget.settle([])

    def round_done(self, record: RoundRecord) -> None:
        """Say in Flower's log how the run stands."""
        figures = "".join(f"  {name} {value:.4f}" for name, value in record.metrics.items())
        print(f"round {record.round}  {record.replies} of {record.cohort} clients{figures}", flush=True)  # noqa: T201


@dataclass(frozen=True, kw_only=True)
class _Member:
    """What a client's process knows of its run."""

    plan: Plan
    scenario: Scenario
    run_config: UserConfig
    nodes: tuple[int, ...]
    shards: str
    budget: Budget | None

    def node_config(self, node: int) -> UserConfig:
        """The configuration that this node would have had from a grid of ours."""
        if node not in self.nodes:
            raise RefusedError(Refusal.NOT_IN_PLAN, f"node {node} is none of the run's")
        return single_run.node_config(self.scenario, self.shards, self.nodes.index(node))

    def charge(self, order: Order, *, client: object) -> None:
        """Charge this client's order before any record is read, or raise RefusedError."""
        if order.client != client:
            raise RefusedError(Refusal.NOT_IN_PLAN, "the order is for another client")
        if self.budget is None:
            raise RefusedError(
                Refusal.NOT_RECORDED,
                "the ledger is on another machine, and its locks do not reach this one; for a cluster use "
                "discreet simulate --set engine.kind=ray",
            )
        (refusal,) = self.budget.reserve([order])
        if refusal is not None:
            raise RefusedError(refusal)

    def settle(self, order: Order, *, is_trained: bool) -> None:
        """Say what became of a charged order; it stays charged, also where this cannot be written."""
        if self.budget is None or self.plan.unit != "record":
            return
        try:
            self.budget.settle([order] if is_trained else [], [] if is_trained else [order])
        except DiscreetError:
            log.exception("order not settled: it expires when the run ends")


@lru_cache(maxsize=1)
def _member(folder: Path) -> _Member:
    """Read a run's folder, once in a process; the ledger is opened where it is on this machine."""
    sheet = json.loads((folder / SHEET).read_text())
    scenario, plan = load(folder / "scenario.toml"), single_run.plan_in(folder)
    budget = None
    if plan.unit == "record" and sheet["machine"] == _machine():
        ledger = Ledger(folder / LEDGER)
        budget = Budget(ledger, run=plan.run, agreements=agreements(plan, account_names(scenario, plan)))
    return _Member(
        plan=plan,
        scenario=scenario,
        run_config={"scenario": (folder / "scenario.toml").read_text()},
        nodes=tuple(sheet["nodes"]),
        shards=sheet["shards"],
        budget=budget,
    )


def _machine() -> str:
    return BOOT.read_text().strip()


def _folder(config: UserConfig) -> Path:
    folder = Path(str(config.get("folder", "")))
    if not folder.is_absolute():
        raise BadInputError(
            f"folder: expected a full path, as Flower runs the app in a folder of its own, got '{folder}'. Say "
            f"--run-config 'folder=\"/path/of/the/run\"'."
        )
    return folder


def _scenario(config: UserConfig) -> Scenario:
    """The scenario that run config names or holds, with its overrides; ScenarioError where it is wrong."""
    named, overrides = str(config.get("scenario", "")), str(config.get("set", "")).split()
    if "\n" in named:
        return parse(named, name="run config", overrides=overrides)
    if Path(named).is_absolute():
        return load(Path(named), overrides)
    known = scenario_files.names()
    if named not in known:
        raise BadInputError(
            f"scenario: expected {', '.join(known)}, the full path of a file, or a scenario's text, got '{named}'."
        )
    return parse(scenario_files.shipped(f"{named}.toml"), name=named, overrides=overrides)
