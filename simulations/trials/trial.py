"""A trial: a consortium is made, its processes start, one run goes through, and all is taken down.

    with staged(cast) as stage:
        finished(stage.start_run(out=folder))     what `discreet run --json` says
        stage.nodes["organisation-1"].kill()      a process to look at, or to kill

Whatever happens within, no process is left behind.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.config import load
from common.errors import BadInputError, RunFailedError
from common.ledger import Ledger
from common.privacy.accounting import epsilon
from common.privacy.events import merged
from simulations.trials.cast import WITNESS, Cast, prepare
from simulations.trials.processes import COMMAND, Started, children, resident_mb, start, wait_ready

LINK_READY_S, NODE_READY_S = 30.0, 120.0
RUN_S = 3600.0


@dataclass
class Stage:
    """The processes of a trial, by name; each can be killed and started again.

    `commands` name nodes that are started by another command of Python's than `-m discreet`.
    """

    cast: Cast
    logs: Path
    commands: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    link: Started | None = None
    witness: Started | None = None
    nodes: dict[str, Started] = field(default_factory=dict)
    runs: list[Started] = field(default_factory=list)
    ready_s: dict[str, float] = field(default_factory=dict)

    def start_link(self) -> None:
        """Start the link on its folder and port."""
        host, _, port = self.cast.link.rpartition(":")
        place = str(self.cast.consortium)
        self.link = start("link", "serve", place, "--host", host, "--port", port, logs=self.logs)

    def start_witness(self) -> None:
        """Start the witness."""
        folder = self.cast.folder / WITNESS
        store = str(folder / "witness.db")
        self.witness = start(
            WITNESS, "witness", str(folder), "--listen", self.cast.witness, "--store", store, logs=self.logs
        )

    def start_node(self, name: str) -> None:
        """Start an organisation's node."""
        policy = str(self.cast.of(name) / "policy.toml")
        command = self.commands.get(name, COMMAND)
        self.nodes[name] = start(name, "join", "--policy", policy, logs=self.logs, command=command)

    def everybody(self) -> list[Started]:
        """All processes that were started."""
        return [one for one in (self.link, self.witness, *self.nodes.values()) if one is not None]

    def wait(self) -> None:
        """Wait until all are ready, and note how long each took."""
        for one in self.everybody():
            self.ready_s[one.name] = wait_ready(one, within_s=NODE_READY_S)

    def start_run(self, *arguments: str, out: Path) -> Started:
        """Start `discreet run` in a process of its own."""
        scenario = str(self.cast.folder / "scenario.toml")
        given = arguments or (scenario, "--out", str(out))
        run = start("run", "run", *given, "--consortium", str(self.cast.consortium), "--json", logs=self.logs)
        self.runs.append(run)
        return run

    def stop(self) -> None:
        """Take everything down, runs first, then the nodes."""
        for one in reversed([*self.everybody(), *self.runs]):
            one.stop()


@contextmanager
def staged(cast: Cast, *, commands: Mapping[str, tuple[str, ...]] | None = None) -> Iterator[Stage]:
    """Start link, witness and nodes; wait until all are ready; take them down at the end, whatever happened."""
    logs = cast.folder / "logs"
    logs.mkdir(exist_ok=True)
    stage = Stage(cast=cast, logs=logs, commands=commands or {})
    try:
        stage.start_link()
        stage.start_witness()
        for name in cast.organisations:
            stage.start_node(name)
        stage.wait()
        yield stage
    finally:
        stage.stop()


def hold(scenario: Path, organisations: int, *, overrides: Sequence[str], keep: Path | None) -> dict[str, Any]:
    """Hold a trial and return its figures: those of the run, what the ledgers say, what each process took."""
    if keep is not None and keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise BadInputError(f"{keep}: expected a folder that is new or empty. Name another with --keep.")
    begun = time.monotonic()
    folder = keep or Path(tempfile.mkdtemp(prefix="discreet-trial-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        cast = prepare(folder.resolve(), load(scenario, overrides), organisations)
        with staged(cast) as stage:
            run = finished(stage.start_run(out=cast.folder / "run"))
            processes = [_process(one, stage.ready_s) for one in stage.everybody()]
        ledgers = [_ledger(cast, name) for name in cast.organisations]
    finally:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    return {**run, "ledgers": ledgers, "processes": processes, "trial_seconds": time.monotonic() - begun}


def finished(run: Started, *, within_s: float = RUN_S) -> dict[str, Any]:
    """Wait for `discreet run` and return its figures; RunFailedError with what it said when it failed."""
    code = run.process.wait(within_s)
    if code != 0:
        raise RunFailedError(run.errors.read_text(errors="replace").strip() or f"discreet run ended with {code}")
    figures: dict[str, Any] = json.loads(run.output.read_text())
    return figures


def _process(one: Started, ready_s: dict[str, float]) -> dict[str, object]:
    trainers = [resident_mb(pid) for pid in children(one.process.pid)]
    return {
        "name": one.name,
        "ready_s": ready_s.get(one.name),
        "memory_mb": one.memory_mb(),
        "child_memory_mb": max(trainers, default=0.0),
    }


def _ledger(cast: Cast, name: str) -> dict[str, object]:
    """What an organisation's own ledger says after the run."""
    path = cast.of(name) / "ledger.db"
    with closing(Ledger(path)) as ledger:
        books = ledger.books
    (account,) = books.accounts.values() or (None,)
    spent = None if account is None else epsilon(merged(account.spent()), delta=account.terms[-1].delta)
    return {
        "name": name,
        "epsilon": spent,
        "budget": None if account is None else account.terms[-1].budget,
        "entries": books.size,
        "is_witnessed": path.with_name("ledger.db.cosigned").exists(),
    }
