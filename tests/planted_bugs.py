"""Bugs planted into copies of the source: what `discreet audit` is to catch.

    python tests/planted_bugs.py --list
    python tests/planted_bugs.py no-noise audit simulations/scenarios/digits.toml --json

The second plants `no-noise` into a copy of all rooms and runs `discreet audit ...` on the copy; exit codes are passed
through. A bug is a change of the source's text: nothing is hooked or replaced while the code runs, and nothing that is
audited knows. Where the text to change is not there exactly once, the code has moved on and the bug is to be written
anew. Long, because it is mostly the list of bugs, which is read best in one place.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ROOMS = ("client", "common", "server", "simulations")
CANARIES = 1_000
TABLE_WIDTH = 160  # where no terminal says how wide it is


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change of one place in the source: in `file`, `before` becomes `after`."""

    file: str
    before: str
    after: str


@dataclass(frozen=True, kw_only=True)
class Bug:
    """What somebody might get wrong.

    Args:
        name: in the command line and in tables.
        what: it is, in one line.
        changes: of the source.
    """

    name: str
    what: str
    changes: tuple[Change, ...]


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One audit to be made.

    Args:
        scenario: text of a scenario file.
        overrides: of its keys, as `--set` has them.
        canaries: how many.
    """

    scenario: str
    overrides: tuple[str, ...] = ()
    canaries: int = CANARIES


def _noise(what: str) -> Change:
    """Another standard deviation of the noise that is added to a client's sum."""
    return Change(
        file="client/private.py",
        before="        std = self.noise_multiplier * self.max_grad_norm\n",
        after=f"        std = {what}\n",
    )


def _order_entropy(what: str) -> Change:
    """Another source of an order's batches and noise."""
    above = "                physical_batch=self._scenario.engine.physical_batch,\n                entropy="
    return Change(
        file="client/trainer.py",
        before=f"{above}Entropy(),\n            )\n            return\n",
        after=f"{above}{what},\n            )\n            return\n",
    )


_UNCLIPPED = Change(
    file="client/gradients/clipped_sums.py",
    before="    factors_U = (max_norm / (norms_U + 1e-6)).clamp(max=1.0)\n",
    after="    factors_U = torch.ones_like(norms_U)\n",
)
_CLIPPED_MEAN = Change(
    file="client/private.py",
    before="        self.add_noise()\n        self.scale_grad()\n",
    after="""\
        sums = [parameter.summed_grad for parameter in self.params if parameter.summed_grad is not None]
        squares = sum(float(part.square().sum()) for part in sums)
        mean_norm = squares**0.5 / self.expected_batch_size
        for part in sums:
            part.mul_(min(1.0, self.max_grad_norm / (mean_norm + 1e-6)))
        self.add_noise()
        self.scale_grad()
""",
)
_ONE_PARTICIPATION = Change(
    file="common/privacy/plan.py",
    before="        return tuple(event.times(times) for event in self.events) if times else ()\n",
    after="        return self.events if times else ()\n",
)

BUGS = (
    Bug(name="no-noise", what="nothing is added to the clipped sum", changes=(_noise("0.0"),)),
    Bug(
        name="noise-quarter",
        what="the noise has a quarter of the planned standard deviation",
        changes=(_noise("self.noise_multiplier * self.max_grad_norm / 4"),),
    ),
    Bug(
        name="noise-half",
        what="the noise has half the planned standard deviation",
        changes=(_noise("self.noise_multiplier * self.max_grad_norm / 2"),),
    ),
    Bug(name="no-clipping", what="units' gradients are added as they are", changes=(_UNCLIPPED,)),
    Bug(
        name="clip-after-averaging",
        what="units' gradients are averaged, and the mean is clipped",
        changes=(_UNCLIPPED, _CLIPPED_MEAN),
    ),
    Bug(
        name="noise-after-averaging",
        what="the mean's noise is added to the sum, which is divided afterwards",
        changes=(_noise("self.noise_multiplier * self.max_grad_norm / self.expected_batch_size"),),
    ),
    Bug(
        name="reused-seed",
        what="every stream of secret randomness begins with the same key",
        changes=(
            Change(
                file="common/privacy/entropy.py",
                before="        secret = os.urandom(KEY_BYTES) if key is None else key\n",
                after="        secret = bytes(KEY_BYTES) if key is None else key\n",
            ),
        ),
    ),
    Bug(
        name="accountant-reset",
        what="epsilon is counted for one round, whatever came before",
        changes=(_ONE_PARTICIPATION,),
    ),
    Bug(
        name="wrong-rate",
        what="units are sampled at twice the planned rate",
        changes=(
            Change(
                file="client/private.py",
                before="probability=mechanism.sampling_rate)",
                after="probability=2 * mechanism.sampling_rate)",
            ),
        ),
    ),
)
"""The nine that every audit must catch, in the trainer and the accounts of unit `record`."""

MORE = (
    Bug(
        name="one-layer-without-noise",
        what="the model's first tensor gets no noise",
        changes=(
            Change(
                file="client/private.py",
                before="        parts = _parts(noise_P, self.params)\n",
                after="        parts = _parts(noise_P, self.params)\n        parts[0].zero_()\n",
            ),
        ),
    ),
    Bug(
        name="seeded-orders",
        what="every order draws its batches and its noise from the same key",
        changes=(_order_entropy("Entropy(bytes(32))"),),
    ),
    Bug(
        name="seeded-clients",
        what="the noise of a client is the same in every round",
        changes=(_order_entropy('Entropy(order.client.to_bytes(32, "big"))'),),
    ),
    Bug(
        name="seeded-rounds",
        what="all clients draw the same batches and noise in a round",
        changes=(_order_entropy('Entropy(order.round.to_bytes(32, "big"))'),),
    ),
    Bug(
        name="same-batch",
        what="the same units are in every batch",
        changes=(
            Change(
                file="client/private.py",
                before="            chosen = entropy.bernoulli(",
                after="            chosen = Entropy(bytes(32)).bernoulli(",
            ),
        ),
    ),
    Bug(
        name="every-other-charge",
        what="every other round is trained without a charge",
        changes=(
            Change(
                file="simulations/engine/grid.py",
                before="        answers = self._budget.reserve(list(orders.values()))\n",
                after="""\
        if any(order.round % 2 == 0 for order in orders.values()):
            return [None for _ in pushed]
        answers = self._budget.reserve(list(orders.values()))
""",
            ),
        ),
    ),
)
"""Further ones of unit `record`."""

CLIENT = (
    Bug(
        name="no-central-noise",
        what="nothing is added to the sum of clipped updates",
        changes=(
            Change(
                file="server/global_model.py",
                before="    return sum_P + entropy.normal(len(sum_P)) * (noise_multiplier * max_norm)\n",
                after="    return sum_P\n",
            ),
        ),
    ),
    Bug(
        name="central-noise-of-the-mean",
        what="the mean's noise is added to the sum of clipped updates, which is divided afterwards",
        changes=(
            Change(
                file="server/strategy.py",
                before="                noise_multiplier=account.event.noise_multiplier,\n",
                after="""\
                noise_multiplier=account.event.noise_multiplier
                / float(account.event.sampling_rate * len(self._plan.records)),
""",
            ),
        ),
    ),
    Bug(
        name="updates-unclipped",
        what="updates are clipped neither by the client nor by the coordinator",
        changes=(
            Change(
                file="client/trainer.py",
                before="    return update_P if max_norm is None else clip(update_P, max_norm=max_norm)\n",
                after="    return update_P\n",
            ),
            Change(
                file="server/replies.py",
                before="    if max_norm is None:\n        return report.update_P\n    if l2_norm",
                after="    if True:\n        return report.update_P\n    if l2_norm",
            ),
        ),
    ),
    Bug(
        name="wrong-cohort-rate",
        what="clients are sampled at twice the planned rate",
        changes=(
            Change(
                file="server/cohorts.py",
                before="probability=plan.accounts[0].event.sampling_rate)",
                after="probability=2 * plan.accounts[0].event.sampling_rate)",
            ),
        ),
    ),
    Bug(
        name="central-noise-reused",
        what="the coordinator's noise is the same in every round",
        changes=(
            Change(
                file="server/strategy.py",
                before="                entropy=Entropy(),\n",
                after="                entropy=Entropy(bytes(32)),\n",
            ),
        ),
    ),
)
"""Those of unit `client`, at the coordinator."""

ELSEWHERE = (
    Bug(
        name="noise-once-a-round",
        what="only the first step of a round is noised",
        changes=(
            Change(
                file="client/private.py",
                before="            private.step()\n",
                after="            private.step()\n            private.noise_multiplier = 0.0\n",
            ),
        ),
    ),
    Bug(
        name="records-of-a-person-apart",
        what="each record of a person is clipped by itself",
        changes=(
            Change(
                file="client/private.py",
                before="        features_B, labels_B = self._records(shard, part.rows_B)\n",
                after="""\
        part = Part(rows_B=part.rows_B, is_last=True, units=len(part.rows_B))
        features_B, labels_B = self._records(shard, part.rows_B)
""",
            ),
        ),
    ),
)
"""Those that only some scenarios can have: of several steps a round, or of persons."""

HARMLESS = (
    Bug(
        name="grouped-convolutions",
        what="no bug: convolutions in groups, whose gradients only Opacus's hooks can tell apart",
        changes=(
            Change(
                file="common/models/convolutional.py",
                before="nn.Conv2d(channels, width, 3, padding=padding)",
                after="nn.Conv2d(channels, width, 3, padding=padding, groups=channels)",
            ),
        ),
    ),
)

ALL: Mapping[str, Bug] = {bug.name: bug for bug in (*BUGS, *MORE, *CLIENT, *ELSEWHERE, *HARMLESS)}


@contextmanager
def planted(*names: str) -> Iterator[Path]:
    """Yield a copy of all rooms into which these bugs are planted; ValueError where a place to change is not there."""
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        copy = Path(folder)
        for room in ROOMS:
            shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy2(ROOT / "discreet.py", copy)
        for change in (change for name in names for change in ALL[name].changes):
            _plant(change, copy)
        yield copy


def _plant(change: Change, copy: Path) -> None:
    path = copy / change.file
    text = path.read_text()
    found = text.count(change.before)
    if found != 1:
        raise ValueError(f"{change.file}: expected once, got {found} times: {change.before!r}. Write the bug anew.")
    path.write_text(text.replace(change.before, change.after))


def environment(copy: Path) -> dict[str, str]:
    """Return the environment in which a copy is imported, by every process, wherever it is started."""
    return os.environ | {"PYTHONPATH": str(copy), "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def run(names: Sequence[str], arguments: Sequence[str]) -> int:
    """Run `discreet` on a copy with these bugs, in this folder; return its exit code."""
    with planted(*names) as copy:
        command = [sys.executable, "-m", "discreet", *arguments]
        return subprocess.run(command, check=False, env=environment(copy)).returncode


def attacked(names: Sequence[str], attacks: Sequence[Attack]) -> list[dict[str, Any]]:
    """Audit a copy with these bugs, in one process of its own; return for each attack what `audit.json` says.

    Each has a key more: `modules`, the files that were imported for it, of which none may be another copy's.
    """
    with planted(*names) as copy:
        done = subprocess.run(
            [sys.executable, __file__, "--attack"],
            input=json.dumps([asdict(attack) for attack in attacks]),
            capture_output=True,
            text=True,
            check=False,
            env=environment(copy),
        )
        if done.returncode != 0:
            raise RuntimeError(
                f"With {', '.join(names) or 'no bug'} the audit ended with {done.returncode}.\n{done.stderr}"
            )
        found = [json.loads(line) for line in done.stdout.splitlines()]
        strangers = {file for one in found for file in one["modules"] if not Path(file).is_relative_to(copy)}
    if strangers or len(found) != len(attacks):
        raise RuntimeError(f"{', '.join(names)}: {len(found)} audits, not of the copy: {sorted(strangers)}")
    return found


def _attack() -> None:
    """Make the audits that standard input asks for; a line of JSON for each."""
    from common.config import parse
    from server.observer import Observer
    from simulations.audit import audit as audits
    from simulations.engine import nursery

    with tempfile.TemporaryDirectory(prefix="audits-") as folder:
        for number, table in enumerate(json.load(sys.stdin)):
            started = time.monotonic()
            scenario = parse(table["scenario"], overrides=table["overrides"])
            nursery.prepare(scenario)
            made = audits.audit(
                scenario, canaries=table["canaries"], out=Path(folder) / str(number), watcher=Observer()
            )
            more = {"modules": _ours(), "seconds": time.monotonic() - started}
            print(json.dumps(made.to_json() | more), flush=True)  # noqa: T201 - the answer


def _ours() -> list[str]:
    """The files of all rooms that this process has imported."""
    names = {*ROOMS, "discreet"}
    modules = [module for name, module in sys.modules.items() if name.partition(".")[0] in names]
    return sorted(module.__file__ for module in modules if module.__file__)


def caught_by(audit: Mapping[str, Any]) -> list[str]:
    """Return the names of the layers and checks that refute, in the order in which the audit has them."""
    return [part["name"] for part in (*audit["layers"], *audit["checks"]) if part["is_refuted"]]


def show_table(folder: Path) -> None:
    """Print what the tests noted: what caught each bug at each epsilon, and the clean runs."""
    from rich.console import Console
    from rich.table import Table

    notes = [json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines()]
    buggy, clean = [note for note in notes if note["bug"]], [note for note in notes if not note["bug"]]
    epsilons = sorted({note["epsilon"] for note in buggy})
    rows: dict[tuple[str, str], dict[float, str]] = {}
    for note in sorted(buggy, key=lambda note: list(ALL).index(note["bug"])):
        caught = ", ".join(note["caught_by"]) or "MISSED"
        rows.setdefault((note["bug"], note["where"]), {})[note["epsilon"]] = caught
    table = Table(title="What caught the planted bugs", title_justify="left")
    for heading in ("bug", "in", *(f"ε = {epsilon:g}" for epsilon in epsilons)):
        table.add_column(heading)
    for (bug, where), found in rows.items():
        table.add_row(bug, where, *(found.get(epsilon, "") for epsilon in epsilons))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else TABLE_WIDTH)
    console.print(table)
    missed = sum(not note["caught_by"] for note in buggy)
    alarms = [f"{note['where']} at ε = {note['epsilon']:g}" for note in clean if note["caught_by"]]
    console.print(f"{len(buggy)} audits of planted bugs, {missed} missed.")
    console.print(
        f"{len(clean)} audits of clean runs, {len(alarms)} false alarms{': ' * bool(alarms)}{'; '.join(alarms)}."
    )
    seconds = sorted(note["seconds"] for note in notes)
    if seconds:
        console.print(f"An audit took {seconds[len(seconds) // 2]:.1f} s (median), {seconds[-1]:.1f} s at most.")


def main(arguments: Sequence[str]) -> int:
    """Run the script; see the module's docstring."""
    match arguments:
        case ["--list"]:
            for bug in ALL.values():
                print(f"{bug.name:28} {bug.what}")  # noqa: T201 - the answer
        case ["--attack"]:
            _attack()
        case ["--table", folder]:
            show_table(Path(folder))
        case [names, _, *_] if set(names.split(",")) <= ALL.keys():
            return run(names.split(","), arguments[1:])
        case _:
            print("python tests/planted_bugs.py --list | BUG[,BUG] VERB [ARGUMENT ...]", file=sys.stderr)  # noqa: T201
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
