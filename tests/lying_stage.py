"""A consortium of real processes in which a link and a node lie when they are told to: for tests."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.config import parse
from common.consortium import identity
from common.ledger import Ledger
from common.transparency.books import Account, Run
from server import consortium_folder, enrolment
from simulations.trials.cast import WITNESS, Cast, prepare
from simulations.trials.processes import Started, start
from simulations.trials.trial import Stage

ROOT = Path(__file__).parents[1]
HERE = Path(__file__).parent
LONGER = 2.5  # times the epsilon of the run below: some have more rounds
LIAR = "organisation-3"
SCENARIO = """
[run]
name = "lies"
rounds = 3
purpose = "a trial of lies"
[data]
dataset = "digits"
clients = 3
[model]
name = "cnn"
[training]
batch_size = 40
local_steps = 1
[server]
spare_rounds = 2
round_timeout_s = 20.0
[privacy]
noise_multiplier = 1.0
"""


@dataclass
class LyingStage(Stage):
    """A stage whose link and whose last node are liars; both are honest until they are told what to do."""

    seen: dict[str, int] = field(default_factory=dict)

    def start_link(self) -> None:
        """Start the link that lies."""
        self._serve((str(HERE / "evil_link.py"),))

    def start_link_anyway(self) -> None:
        """Start a link with a certificate that the real one would not start with."""
        self._serve((str(HERE / "evil_link.py"), "anyway"))

    def start_true_link(self) -> None:
        """Start the link as it is delivered; it may well end at once."""
        self._serve(("-m", "discreet"))

    def _serve(self, command: tuple[str, ...]) -> None:
        host, _, port = self.cast.link.rpartition(":")
        place = str(self.cast.consortium)
        self.seen["link"] = 0  # its log begins anew
        self.link = start("link", "serve", place, "--host", host, "--port", port, logs=self.logs, command=command)

    def start_node(self, name: str) -> None:
        """Start a node, the last one as a liar."""
        command = (str(HERE / "evil_node.py"),) if name == LIAR else ("-m", "discreet")
        policy = str(self.cast.of(name) / "policy.toml")
        self.nodes[name] = start(name, "join", "--policy", policy, logs=self.logs, command=command)

    @contextmanager
    def lies(self, *, link: Mapping[int, str] | None = None, node: Mapping[int, str] | None = None) -> Iterator[None]:
        """Have them lie, round by round."""
        files = {self.cast.consortium / "lies.json": link, self.cast.of(LIAR) / "lies.json": node}
        try:
            for file, told in files.items():
                file.write_text(json.dumps(told or {}))
            yield
        finally:
            for file in files:
                file.unlink()

    def mark(self) -> None:
        """Look at log lines from here on."""
        self.seen = {one.name: len(one.said()) for one in self.everybody()}

    def said(self, name: str) -> str:
        """What a node, or `link`, has said since `mark`."""
        one = next(one for one in self.everybody() if one.name == name)
        return one.said()[self.seen.get(name, 0) :]

    def wait_said(self, name: str, text: str, *, within_s: float = 20.0) -> str:
        """Wait for a line with this text, and return it."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            for line in self.said(name).splitlines():
                if text in line:
                    return line
            time.sleep(0.02)
        raise AssertionError(f"no line with {text!r} in:\n{self.said(name)}")

    def account(self, name: str) -> Account:
        """An organisation's account as its ledger has it."""
        with closing(Ledger(self.cast.of(name) / "ledger.db")) as ledger:
            (account,) = ledger.books.accounts.values() or (Account(terms=[]),)
        return account

    def run_of(self, name: str, run: str) -> Run | None:
        """A run in an organisation's ledger, if it got there."""
        return self.account(name).runs.get(run)

    def play(self, *plays: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Have the coordinator's keys in the hands of a liar; return what came back, play by play."""
        file = self.logs / "plays.json"
        file.write_text(json.dumps(plays))
        command = [sys.executable, str(HERE / "evil_coordinator.py"), str(self.cast.consortium), str(file)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        (self.logs / "coordinator.log").write_text(done.stderr)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def discreet(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run a verb to its end."""
        command = [sys.executable, "-m", "discreet", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)

    def sign(self) -> None:
        """Have everybody sign the draft, put it in force, and give each one what is its own."""
        folder = consortium_folder.opened(self.cast.consortium)
        homes = {name: self.cast.of(name) / "identity" for name in self.cast.organisations}
        homes[WITNESS] = self.cast.folder / WITNESS
        for home in homes.values():
            identity.sign_roster(identity.load(home), folder.draft)
        assert not enrolment.merge([folder.draft], folder.roster)
        for name, home in homes.items():
            for file in (*folder.issued(name).iterdir(), folder.roster):
                shutil.copyfile(file, home / f".{file.name}")
                (home / f".{file.name}").replace(home / file.name)

    def discreet_run(self, out: Path, *overrides: str) -> Started:
        """Start the honest `discreet run`."""
        arguments = [str(self.cast.folder / "scenario.toml"), "--out", str(out)]
        arguments += [part for override in overrides for part in ("--set", override)]
        return self.start_run(*arguments, out=out)


def prepared(folder: Path, *, text: str = SCENARIO, organisations: int = 3, runs: int = 10) -> Cast:
    """Make a consortium whose policies leave room for several runs like this one."""
    cast = prepare(folder, parse(text), organisations)
    for name in cast.organisations:
        change_policy(cast, name, "epsilon_per_run", LONGER)
        change_policy(cast, name, "epsilon", runs)
    return cast


def change_policy(cast: Cast, name: str, what: str, value: Any) -> None:
    """Change a policy: a budget to so many times that of a run, or a key of `limits` to a value."""
    import tomllib

    import tomli_w

    file = cast.of(name) / "policy.toml"
    tables = tomllib.loads(file.read_text())
    if what in tables["budget"]:
        tables["budget"][what] = value * tables["budget"]["epsilon_per_run"]
    else:
        tables["limits"][what] = value
    file.write_text(tomli_w.dumps(tables))


@contextmanager
def lying(cast: Cast) -> Iterator[LyingStage]:
    """Start everybody, wait until all are ready, take them down at the end."""
    logs = cast.folder / "logs"
    logs.mkdir(exist_ok=True)
    stage = LyingStage(cast=cast, logs=logs)
    try:
        stage.start_link()
        stage.start_witness()
        for name in cast.organisations:
            stage.start_node(name)
        stage.wait()
        yield stage
    finally:
        stage.stop()
