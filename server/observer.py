"""What a run tells those who watch it."""

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class RoundRecord:
    """One finished round.

    Args:
        round: from 1.
        attempt: from 1; more than 1 for a round that was lost and run again.
        cohort: how many clients were asked.
        replies: how many updates were used.
        refused: client and word of each that was not.
        metrics: on the public test set, empty where the round was not evaluated.
        epsilon_max: largest epsilon of any account so far, an upper bound on a coarse grid; None where not computed.
        seconds: duration.
        client_accuracy: of the weights that the round began with, on the clients' own records, from noised counts; None
            where they are withheld.
    """

    round: int
    attempt: int
    cohort: int
    replies: int
    refused: tuple[tuple[int, str], ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    epsilon_max: float | None = None
    seconds: float
    client_accuracy: float | None = None


class Observer:
    """Watches a run; this one looks away."""

    def run_started(self, *, rounds: int, done: int) -> None:
        """A run of `rounds` rounds begins after `done` of them."""

    def round_started(self, *, round_number: int, cohort: int) -> None:
        """A round begins."""

    def client_done(self) -> None:
        """One more client has answered, or will not."""

    def round_done(self, record: RoundRecord) -> None:
        """A round is over and its checkpoint on disk."""


observer: ContextVar[Observer] = ContextVar("observer", default=Observer())  # noqa: B039 - it has no state
