"""What a node and its training process say to each other; none of it ever leaves the machine.

Propose -> Offered
Train   -> Began (it is charged), Trained; Stored -> Done | Refused at any point
End     -> Done
"""

from dataclasses import dataclass, field
from pathlib import Path

from client.node.letters import Fields
from common.messages import Refusal
from common.sources import Source


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """Where the training process finds what it needs.

    Args:
        policy, ledger: files of the owner.
        memory: a file that keeps the ledger's newest checkpoint.
        identity: the folder with keys and roster, for the witness.
        data: where the records lie.
    """

    policy: Path
    ledger: Path
    memory: Path
    identity: Path
    data: Source


@dataclass(frozen=True, kw_only=True)
class Propose:
    """What would the owner say to this run?"""

    run: str
    scenario: str = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Train:
    """Carry out an order: its scalars, its weights as little-endian float32, and the scenario's text."""

    scalars: Fields
    weights: bytes = field(repr=False)
    scenario: str = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Stored:
    """The report is on the disk, signed, or it never will be."""

    is_kept: bool


@dataclass(frozen=True, kw_only=True)
class End:
    """A run is over."""

    run: str


Request = Propose | Train | Stored | End


@dataclass(frozen=True, kw_only=True)
class Ready:
    """Everything is loaded; `code` is the SHA-256 of the code that trains."""

    code: str


@dataclass(frozen=True, kw_only=True)
class Broken:
    """Nothing can be trained: why, for the owner, the word for all others, and the exit code it is worth."""

    why: str
    word: Refusal
    exit_code: int


@dataclass(frozen=True, kw_only=True)
class Offered:
    """What stands against a run, or None, what it is for, and on how many units it counts; 0 where that is unknown."""

    refusal: Refusal | None
    purpose: str
    units: int = 0


@dataclass(frozen=True, kw_only=True)
class Began:
    """The order is charged, and its training begins."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A report: its scalars, and the update as little-endian float32."""

    scalars: Fields
    update: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Done:
    """It is done."""


@dataclass(frozen=True, kw_only=True)
class Refused:
    """It is not done; why is for the owner's log, and never leaves the machine."""

    word: Refusal
    why: str = field(default="", compare=False, repr=False)


Response = Ready | Broken | Offered | Began | Trained | Done | Refused
