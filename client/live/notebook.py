"""What an owner keeps of a live audit: a run's coins, and how far its pad moved.

Shapes: M canaries, R rounds.

    LEDGER.audits/DIGEST OF THE RUN/     readable by its owner alone
        coins.json                       drawn once, before the first charge of the run
        moves.jsonl                      one line for each report that left, in units of what one record may add

None of it ever leaves, and none of it is in any log.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.errors import JournalError
from common.files import write_whole_with
from common.privacy.entropy import Entropy

COINS, MOVES = "coins.json", "moves.jsonl"

Coins = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Movement:
    """How far the pad moved in one order, (M,), in units of what one record may add to a step."""

    round: int
    attempt: int
    moves_M: npt.NDArray[np.float64]


class Notebook:
    """One run's coins and movements.

    Guarantees:
        Coins once drawn are the same in every round, also after a restart.
        Nobody but the owner's own user can read either file.
        A movement that was noted survives a crash; one that was cut off by a crash is missing.
    """

    def __init__(self, folder: Path) -> None:
        """Name the folder of one run; it need not be there."""
        self.folder = folder

    @property
    def run(self) -> str:
        """The run's identifier."""
        return str(self._drawn()["run"])

    def draw(self, run: str, count: int, *, is_begun: bool) -> Coins:
        """Return the run's coins, drawn from the operating system and put on the disk when there are none yet.

        Args:
            run: its identifier.
            count: M.
            is_begun: whether an order of the run was charged before: then there must be coins.

        Raises:
            JournalError: other coins than these were drawn before, or they are gone.
            OSError: the disk does not take them.
        """
        if not (self.folder / COINS).exists():
            if is_begun:
                raise JournalError(
                    f"{self.folder}: expected the coins of a run that is under way, got none. Put them back: others "
                    f"would spoil the audit. Without them this run is not trained."
                )
            self._write(run, _coins(count))
        coins = self.coins()
        if len(coins) != count or self.run != run:
            raise JournalError(f"{self.folder}: expected {count} coins of run {run}, got {len(coins)} of {self.run}.")
        return coins

    def coins(self) -> Coins:
        """Return which canaries are in, (M,); JournalError when they do not read."""
        return np.array([coin == "1" for coin in self._drawn()["is_in"]])

    def note(self, movement: Movement) -> None:
        """Add a movement, durably."""
        line = {"round": movement.round, "attempt": movement.attempt, "moves": movement.moves_M.tolist()}
        descriptor = os.open(self.folder / MOVES, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            is_torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            os.write(descriptor, (("\n" if is_torn else "") + json.dumps(line) + "\n").encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def movements(self) -> tuple[Movement, ...]:
        """Return what was noted, the first of each order, by round; a line that a crash cut off is left out."""
        path = self.folder / MOVES
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
        found: dict[tuple[int, int], Movement] = {}
        for movement in filter(None, (_movement(line) for line in lines)):
            found.setdefault((movement.round, movement.attempt), movement)
        return tuple(found[key] for key in sorted(found))

    def _write(self, run: str, is_in_M: Coins) -> None:
        drawn = {"run": run, "is_in": "".join("1" if is_in else "0" for is_in in is_in_M)}
        for folder in (self.folder.parent, self.folder):
            folder.mkdir(mode=0o700, exist_ok=True)
        write_whole_with(self.folder / COINS, lambda path: _write_private(path, json.dumps(drawn)))

    def _drawn(self) -> dict[str, str]:
        path = self.folder / COINS
        try:
            drawn = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(drawn, dict) and isinstance(drawn["run"], str) and set(drawn["is_in"]) <= {"0", "1"}:
                return drawn
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise JournalError(f"{path}: expected a run's coins, got a file that does not read ({error}).") from error
        raise JournalError(f"{path}: expected a run's coins, got something else.")


def notebook_of(ledger: Path, run: str) -> Notebook:
    """Return the notebook of a run; its folder's name is a digest, since a coordinator names the run."""
    return Notebook(_shelf(ledger) / sha256(run.encode()).hexdigest()[:32])


def notebooks_of(ledger: Path) -> Sequence[Notebook]:
    """Return the notebooks of all runs that were audited beside this ledger."""
    return [Notebook(path.parent) for path in sorted(_shelf(ledger).glob(f"*/{COINS}"))]


def _shelf(ledger: Path) -> Path:
    return ledger.with_name(f"{ledger.name}.audits")


def _coins(count: int) -> Coins:
    is_in_M = np.zeros(count, bool)
    is_in_M[Entropy().bernoulli(count, probability=Fraction(1, 2))] = True
    return is_in_M


def _write_private(path: Path, text: str) -> None:
    """Write a new file that only its owner may read, from its first byte on."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)


def _movement(line: str) -> Movement | None:
    try:
        noted = json.loads(line)
        moves_M = np.array(noted["moves"], np.float64)
        return Movement(round=int(noted["round"]), attempt=int(noted["attempt"]), moves_M=moves_M)
    except (ValueError, KeyError, TypeError):
        return None
