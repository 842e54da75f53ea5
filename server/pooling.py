"""The accuracy on the clients' own records, pooled from noised counts."""


class Pool:
    """Adds up the counts of one round.

    Guarantees:
        `accuracy` is in [0, 1], and None where nobody reported a count.
    """

    def __init__(self) -> None:
        self._correct, self._units = 0.0, 0

    def add(self, correct: float | None, *, units: int) -> None:
        """Add a client's noised count of its `units` records or persons; None is a client that was not asked."""
        if correct is not None:
            self._correct += correct
            self._units += units

    def accuracy(self) -> float | None:
        """Return the share of all counted units that the model gets right, noise included."""
        return min(max(self._correct / self._units, 0.0), 1.0) if self._units else None
