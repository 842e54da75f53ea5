"""`discreet bench growth`: 10,000 virtual clients in one round, against 100: time a client, and memory.

The real server app and the real engine, without privacy. Each client has 56 examples, a view of one base array, whose
file is in the folder of every hundred clients under one more name. Rounds of 100 clients come before and after each
large one, so that a machine that slows down meanwhile slows both down.
"""

import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from common.config import dump, parse
from common.errors import BadInputError
from common.privacy.plan_file import to_json
from common.shards import write_shards
from simulations.bench import workload as work
from simulations.bench.contest import Figure, ratio
from simulations.bench.memory import family, is_measurable, pss_mb
from simulations.single_plan import plan_of

REPEATS = 3

MANY, FEW = 10_000, 100
AROUND = 20  # rounds of few clients before each round of many, and as many after it
TIME_TARGET, MEMORY_TARGET_MB = 1.10, 100.0
SAMPLE_S = 0.5
TEXT = """
run = {{name = "growth", rounds = 1}}
data = {{dataset = "mnist", clients = {clients}}}
model = {{name = "cnn", activation = "relu"}}
training = {{batch_size = 14, local_steps = 4}}
privacy = {{unit = "none"}}
"""


def figures(
    repeats: int, *, many: int = MANY, few: int = FEW, around: int = AROUND, work_size: int = work.RECORDS
) -> list[Figure]:
    """Compare a round of `many` clients with rounds of `few`, a client's time with a client's time.

    Raises:
        BadInputError: elsewhere than on Linux, which alone says what a process shares with others.

    Args:
        repeats: how many large rounds.
        many: clients of the large round.
        few: clients of the small rounds.
        around: small rounds before each large one, and as many after it.
        work_size: records of a client.
    """
    refuse_elsewhere(is_linux=is_measurable())
    large_s, small_s, growth_mb = [], [], []
    with tempfile.TemporaryDirectory() as name, _population(Path(name), many, few, work_size) as population:
        population.round(few)  # both workers are ready after it, and everything is imported
        with _peak() as first:
            small = [population.round(few) for _ in range(around)]
        for _ in range(repeats):
            with _peak() as peak:
                large_s.append(population.round(many) / many)
            after = [population.round(few) for _ in range(around)]
            small_s.append(statistics.median([*small, *after]) / few)
            growth_mb.append(peak.mb - first.mb)
            small = after
    return [
        ratio("time_per_client_10000_to_100", large_s, small_s, target=TIME_TARGET, at_least=False),
        Figure(name="memory_growth_mb", turns=tuple(growth_mb), target=MEMORY_TARGET_MB, at_least=False),
    ]


def refuse_elsewhere(*, is_linux: bool) -> None:
    """Raise BadInputError where a process's share of memory cannot be read."""
    if not is_linux:
        raise BadInputError(
            "bench growth: expected Linux, which tells each process's share of memory in /proc/PID/smaps_rollup, got "
            "another system. Run it on Linux, or in a container."
        )


def write_population(folder: Path, *, clients: int, group: int, records: int) -> None:
    """Write the shards of `clients` clients, each of `records` examples; every `group` of them share one base array.

    Client k finds itself in the folder k // group.
    """
    base = work.records(group * records)
    nobody = np.arange(0)
    own = np.split(np.arange(group * records), group)
    for number in range(-(-clients // group)):
        place = folder / str(number)
        place.mkdir()
        indices = [*[nobody] * (number * group), *own]
        if number == 0:
            write_shards(place, train=base, test=work.records(10), indices=indices)
            continue
        for name in ("features.npy", "labels.npy"):
            (place / name).hardlink_to(folder / "0" / name)
        np.save(place / "offsets.npy", np.cumsum([0, *(len(rows) for rows in indices)]))


class _Rounds:
    """Rounds of any number of clients, on one grid."""

    def __init__(self, folder: Path, grid: Any) -> None:
        self._folder, self._grid = folder, grid

    def round(self, clients: int) -> float:
        """Run a round of the server app in a new run folder; its seconds."""
        from flwr.app import Context, RecordDict

        from server.app import app
        from simulations.engine.executors import RUN_ID

        scenario = parse(TEXT.format(clients=clients))
        with tempfile.TemporaryDirectory(dir=self._folder) as run:
            (Path(run) / "plan.json").write_text(to_json(plan_of(scenario)))
            config: dict[str, bool | float | int | str] = {
                "scenario": dump(scenario),
                "run-folder": run,
                "shards": str(self._folder / "0"),
            }
            started = time.perf_counter()
            app(self._grid, Context(RUN_ID, 0, {}, RecordDict(), config))
            took = time.perf_counter() - started
            line = (Path(run) / "rounds.csv").read_text().splitlines()[1].split(",")
        if line[1:3] != [str(clients)] * 2:
            raise RuntimeError(f"{line[2]} of {line[1]} clients answered: the figure would mean nothing")
        return took


@contextmanager
def _population(folder: Path, clients: int, group: int, records: int) -> Iterator[_Rounds]:
    """A grid of `clients` clients on a worker a core."""
    from simulations.engine.grid import InProcessGrid
    from simulations.engine.workers import Workers

    write_population(folder, clients=clients, group=group, records=records)
    scenario = parse(TEXT.format(clients=clients))
    workers = Workers("client.app:app", {"scenario": dump(scenario)}, count=os.cpu_count() or 1)
    try:
        grid = InProcessGrid(
            clients=clients,
            executor=workers,
            node_config=lambda client: {"partition-id": client, "shards": str(folder / str(client // group))},
        )
        workers.wait()
        yield _Rounds(folder, grid)
    finally:
        workers.close()


class _Peak:
    """The most memory that was seen, in MB of 10^6 bytes."""

    def __init__(self) -> None:
        self.mb = 0.0


@contextmanager
def _peak() -> Iterator[_Peak]:
    """Look every half second at what this process and its descendants hold, while something goes on."""
    peak, over = _Peak(), threading.Event()

    def watch() -> None:
        while not over.wait(SAMPLE_S):
            peak.mb = max(peak.mb, pss_mb(family(os.getpid())))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()
        peak.mb = max(peak.mb, pss_mb(family(os.getpid())))
