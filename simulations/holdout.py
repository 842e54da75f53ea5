"""Which records are set aside as the public test set: the same share of each class.

Shapes: N records, C classes.

The split is that of scikit-learn's `train_test_split(stratify=...)`, number for number, without importing it: that
takes longer than all else that a small run reads.
"""

import math

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.intp]


def stratified(labels_N: npt.NDArray[np.int64], *, share: float, seed: int) -> tuple[Rows, Rows]:
    """Return the rows to train on and those to test on, both in a random order that follows from `seed`.

    Guarantees:
        Each row is in one of them.
        Each class has its share of the test rows, give or take one.
        The result is scikit-learn's for the same share, labels and seed.

    Args:
        labels_N: each record's class.
        share: of the records to test on, in (0, 1).
        seed: of the split.
    """
    random = np.random.RandomState(seed)  # the generator that scikit-learn draws from
    _, class_N, counts_C = np.unique(labels_N, return_inverse=True, return_counts=True)
    by_class = np.split(np.argsort(class_N, kind="stable"), np.cumsum(counts_C)[:-1])
    tested = math.ceil(share * len(labels_N))
    train_C = _shared_out(counts_C, len(labels_N) - tested, random)
    test_C = _shared_out(counts_C - train_C, tested, random)
    shuffled = [rows[random.permutation(len(rows))] for rows in by_class]
    train = [rows[:count] for rows, count in zip(shuffled, train_C, strict=True)]
    test = [rows[a : a + b] for rows, a, b in zip(shuffled, train_C, test_C, strict=True)]
    return random.permutation(np.concatenate(train)), random.permutation(np.concatenate(test))


def _shared_out(counts_C: npt.NDArray[np.intp], total: int, random: np.random.RandomState) -> npt.NDArray[np.intp]:
    """How many of each class make `total`: shares rounded down, what is left to the largest remainders, ties drawn."""
    exact_C = counts_C / counts_C.sum() * total
    chosen_C = np.floor(exact_C)
    left, remainder_C = int(total - chosen_C.sum()), exact_C - chosen_C
    for value in np.unique(remainder_C)[::-1]:
        if left == 0:
            break
        tied = np.flatnonzero(remainder_C == value)
        more = min(len(tied), left)
        chosen_C[random.choice(tied, size=more, replace=False)] += 1
        left -= more
    whole_C: npt.NDArray[np.intp] = chosen_C.astype(np.intp)
    return whole_C
