"""A deployment to break: real processes, generous policies, and looks at what each party knows.

with fault_stage(folder, organisations=3) as place:
    with place.running(rounds=3) as run:           `discreet run`, killed at the end whatever happens
        place.mid_training("organisation-1", run)  charged, cosigned, and not settled
"""

import json
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import tomli_w

from client.witness import cosigned_file
from common.config import parse
from common.ledger import Ledger
from common.transparency.books import Run
from common.transparency.notes import VerifierKey, verify
from simulations.trials.cast import prepare
from simulations.trials.processes import POLL_S, Started, children, resident_mb, wait_ready
from simulations.trials.trial import Stage, finished, staged

SCENARIO = """
run = {name = "faults", rounds = 3, purpose = "a test of faults"}
data = {dataset = "digits", clients = 3}
model = {name = "cnn"}
training = {batch_size = 64, local_steps = 1}
server = {spare_rounds = 2, round_timeout_s = 40}
privacy = {noise_multiplier = 1.0}
"""
LONG = 40  # local steps of a training that can be hit in its midst: about a second
GENEROUS = {"budget": {"epsilon": 1000.0, "epsilon_per_run": 100.0}, "limits": {"max_steps_per_round": LONG}}
WITHIN_S = 60.0

Seen = TypeVar("Seen")


def wait_for(what: str, look: Callable[[], Seen | None], *, within_s: float = WITHIN_S) -> Seen:
    """Look again and again until there is something to be seen, and return it."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if seen := look():
            return seen
        time.sleep(POLL_S)
    raise AssertionError(f"not within {within_s:.0f} s: {what}")


@dataclass(frozen=True)
class GoingOn:
    """A `discreet run` and its folder."""

    process: Started
    folder: Path

    @property
    def id(self) -> str:
        """Return the identifier of the run."""
        identifier: str = json.loads((self.folder / "run.json").read_text())["run"]
        return identifier

    def figures(self, *, within_s: float = 120.0) -> dict[str, Any]:
        """Wait for its end and return its figures; it must have succeeded."""
        return finished(self.process, within_s=within_s)

    def error(self, *, within_s: float = 60.0) -> tuple[int, list[str]]:
        """Wait for its end and return its exit code and the lines that say why."""
        code = self.process.process.wait(within_s)
        lines = unwrapped(self.process)
        return code, [line for line in lines if line.startswith("error:")]

    def replies(self) -> list[int]:
        """Return how many replies each round that is done was made of."""
        if not (self.folder / "rounds.csv").exists():
            return []
        lines = (self.folder / "rounds.csv").read_text().splitlines()
        column = lines[0].split(",").index("replies")
        return [int(line.split(",")[column]) for line in lines[1:]]


@dataclass(frozen=True)
class Place:
    """A stage, and what can be seen on it."""

    stage: Stage

    def node(self, name: str) -> Started:
        return self.stage.nodes[name]

    def child(self, name: str) -> int:
        """Return the number of a node's training process."""
        pids = children(self.node(name).process.pid)
        return max(pids, key=resident_mb)

    def restarted(self, name: str) -> float:
        """Start a node again, and return after how many seconds it is ready."""
        self.stage.start_node(name)
        return wait_ready(self.node(name), within_s=WITHIN_S)

    @contextmanager
    def running(self, *, resume: Path | None = None, **changes: object) -> Iterator[GoingOn]:
        """Start a run with a few keys changed; it is gone at the end."""
        cast = self.stage.cast
        folder = resume or cast.folder / f"run-{len(self.stage.runs) + 1}"
        if resume is None:
            keys = {"run.rounds": 2, "training.local_steps": 1} | {k.replace("__", "."): v for k, v in changes.items()}
            keys["server.max_participations"] = keys["run.rounds"]
            sets = [part for key, value in keys.items() for part in ("--set", f"{key}={value}")]
            arguments = [str(cast.folder / "scenario.toml"), *sets, "--out", str(folder)]
        else:
            arguments = ["--resume", str(folder)]
        process = self.stage.start_run(*arguments, out=folder)
        try:
            yield GoingOn(process, folder)
        finally:
            process.kill()

    def charges(self, name: str, run: GoingOn) -> Run | None:
        """Return what an organisation's ledger says of a run; None when it has never heard of it."""
        if not (run.folder / "run.json").exists():
            return None
        with closing(Ledger(self.ledger(name))) as ledger:
            found = [account.runs.get(run.id) for account in ledger.books.accounts.values()]
        return found[0] if found else None

    def words(self, name: str) -> list[str]:
        """Return the words with which an organisation's ledger says that it refused."""
        with closing(Ledger(self.ledger(name))) as ledger:
            return [one.word for account in ledger.books.accounts.values() for one in account.refusals]

    def ledger(self, name: str) -> Path:
        return self.stage.cast.of(name) / "ledger.db"

    def mid_training(self, name: str, run: GoingOn, *, number: int = 1, attempt: int = 1) -> None:
        """Wait until an organisation trains a round: it is charged, cosigned, and not settled."""

        def look() -> bool:
            if run.process.process.poll() is not None:
                raise AssertionError(f"the run ended: {run.process.said()}")
            found = self.charges(name, run)
            return found is not None and (number, attempt) in found.unsettled and self.is_cosigned(name)

        wait_for(f"{name} trains round {number}", look)

    def begun(self, name: str, run: GoingOn, *, number: int = 1) -> None:
        """Wait until an organisation has begun a round, or done it: it was charged and cosigned."""

        def look() -> bool:
            found = self.charges(name, run)
            return (
                found is not None
                and (number, 1) in found.seen
                and ((number, 1) not in found.unsettled or self.is_cosigned(name))
            )

        wait_for(f"{name} begins round {number}", look)

    def is_cosigned(self, name: str) -> bool:
        """Whether the witness that the policy names, if any, has cosigned all that the ledger has."""
        policy = tomllib.loads((self.stage.cast.of(name) / "policy.toml").read_text())
        if not policy["limits"].get("witness"):
            return True
        path = self.ledger(name)
        if not cosigned_file(path).exists():
            return False
        key = VerifierKey.parse(path.with_name("ledger.db.pub").read_text().strip())
        with closing(Ledger(path)) as ledger:
            return verify(cosigned_file(path).read_text(), key).size == ledger.books.size

    def discreet(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Call a verb about this consortium and wait for its end."""
        command = [sys.executable, "-m", "discreet", *arguments, "--consortium", str(self.stage.cast.consortium)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def unwrapped(started: Started) -> list[str]:
    """Return the lines that a process wrote for people."""
    return [line.strip() for line in started.errors.read_text(errors="replace").splitlines() if line.strip()]


def lines(started: Started, *parts: str) -> list[str]:
    """Return the lines of a process's log that hold all of some texts."""
    return [line for line in unwrapped(started) if all(part in line for part in parts)]


def change(file: Path, **tables: Mapping[str, object]) -> None:
    """Change keys of a TOML file's tables; None takes one away."""
    content = tomllib.loads(file.read_text())
    for name, keys in tables.items():
        table = content.setdefault(name, {})
        table.update(keys)
        content[name] = {key: value for key, value in table.items() if value is not None}
    file.write_text(tomli_w.dumps(content))


@contextmanager
def fault_stage(
    folder: Path,
    *,
    limits: Mapping[str, Mapping[str, object]] | None = None,
    links: Mapping[str, Callable[[str], str]] | None = None,
    commands: Mapping[str, tuple[str, ...]] | None = None,
) -> Iterator[Place]:
    """Start link, witness and three organisations whose policies have room for many runs.

    Args:
        folder: a new one.
        limits: what else an organisation's policy says in its table of limits.
        links: for an organisation that reaches the link by another address, how that follows from the link's own.
        commands: for a node that is started by another command.
    """
    folder.mkdir(exist_ok=True)
    cast = prepare(folder, parse(SCENARIO), 3)
    for name in cast.organisations:
        policy = cast.of(name) / "policy.toml"
        change(policy, **GENEROUS)
        change(policy, limits=(limits or {}).get(name, {}))
        if links and name in links:
            node = cast.of(name) / "node.toml"
            node.write_text(tomli_w.dumps({"link": links[name](cast.link), **tomllib.loads(node.read_text())}))
    with staged(cast, commands=commands) as stage:
        yield Place(stage)
