"""Discreet's own contestants against its peers: whole rounds, as `discreet simulate` runs them.

A round is the strategy's: the attempt noted on disk, orders, training in worker processes, checks, aggregation, the
line in rounds.csv and the checkpoint. With privacy each client is charged in a ledger before it trains and settled
afterwards, all of it durably.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common import flat
from common.config import dump, parse
from common.errors import DiscreetError
from common.models.registry import build
from common.privacy import accounting
from common.privacy.plan import Plan
from common.shards import write_shards
from common.tasks import TASKS
from server.exchange import weights_record
from server.observer import Observer, RoundRecord, observer
from simulations import run_ledger
from simulations.bench import workload as work
from simulations.bench.contest import Turn
from simulations.bench.memory import family, pss_mb
from simulations.single_plan import plan_of

CLIENTS = 100
NEVER = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """Somebody who takes turns.

    Args:
        turn: clients a second of some rounds, after one that does not count.
        memory_mb: what its processes hold now, in MB.
    """

    turn: Turn
    memory_mb: Callable[[], float]


class Stopwatch(Observer):
    """Notes when each round was over."""

    def __init__(self, *, clients: int) -> None:
        self.times: list[float] = []
        self._clients = clients

    def round_done(self, record: RoundRecord) -> None:
        """Note the time; DiscreetError when a client failed, for then the figure would mean nothing."""
        if record.replies != self._clients:
            raise DiscreetError(
                f"engine: expected {self._clients} replies, got {record.replies}. Refused: {record.refused[:1]}."
            )
        self.times.append(time.perf_counter())


@contextmanager
def engine(privacy: str, *, turns: int, rounds: int, clients: int = CLIENTS) -> Iterator[Contestant]:
    """Yield the parallel engine on a scenario with this `privacy` table, for so many turns of `rounds` rounds and one.

    With privacy, every client's epsilon so far is computed at the end of each turn, within its time.
    """
    from server.evaluation import Evaluator
    from server.global_model import GlobalModel
    from server.run_folder import RunFolder
    from server.strategy import PrivateAveraging
    from simulations.engine.grid import InProcessGrid
    from simulations.engine.workers import Workers

    scenario = parse(
        f"{work.TEXT}privacy = {privacy}\n",
        overrides=[
            f"data.clients={clients}", f"run.rounds={turns * (rounds + 1) + 1}", f"server.evaluate_every={NEVER}",
        ],
    )  # fmt: skip
    plan = plan_of(scenario, records=[work.RECORDS] * clients)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="discreet-bench-")))
        rows = np.split(np.arange(clients * work.RECORDS), clients)
        write_shards(folder, train=work.records(clients * work.RECORDS), test=work.records(10), indices=rows)
        run_ledger.attach(folder, None, scenario)
        budget = stack.enter_context(run_ledger.claim(folder, scenario, plan, is_resumed=False))
        workers = Workers("client.app:app", {"scenario": dump(scenario)}, count=os.cpu_count() or 1)
        stack.callback(workers.close)
        grid = InProcessGrid(clients=clients, executor=workers, node_config=work.node(str(folder)), budget=budget)
        watch = Stopwatch(clients=clients)
        token = observer.set(watch)
        strategy = PrivateAveraging(
            scenario=scenario,
            plan=plan,
            model=GlobalModel(flat.flatten(build(scenario.model, TASKS["mnist"], seed=7)), scenario.server),
            folder=stack.enter_context(closing(RunFolder(folder))),
            evaluator=Evaluator(scenario, work.records(10)),
        )
        observer.reset(token)
        workers.wait()
        pids = family(os.getpid())  # before any peer is started

        def turn() -> float:
            done, arrays = len(watch.times), weights_record(np.zeros(0, np.float32))
            strategy.start(grid, arrays, num_rounds=done + 1 + rounds)
            _epsilons(plan, rounds=len(watch.times))
            return clients * rounds / (time.perf_counter() - watch.times[done])

        yield Contestant(turn=turn, memory_mb=lambda: pss_mb(pids))


def _epsilons(plan: Plan, *, rounds: int) -> list[float]:
    """Every client's epsilon after so many rounds, on the grid of a run's rounds.csv; none without privacy."""
    if plan.unit == "none":
        return []
    histories = [plan.accounts[position].history(rounds) for position in plan.account_of]
    return [accounting.epsilon(history, delta=plan.delta, grid=accounting.COARSE) for history in histories]
