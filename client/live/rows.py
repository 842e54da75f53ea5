"""What an order trains on: an owner's records, and canaries beside them.

Shapes: N records, M canaries, D a record's own shape, U persons.

    >>> import numpy as np
    >>> mine = Shard(features_ND=np.full((2, 3), 0.5, np.float32), labels_N=np.array([1, 0]))
    >>> beside(mine, np.array([True, False])).features_ND[2:, 1].tolist()
    [0.0, -1.0]
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from common.canaries import canary_rows, has_mark
from common.errors import RefusedError
from common.messages import Refusal
from common.shards import Shard

Coins = npt.NDArray[np.bool_]


def refuse_marked(shard: Shard) -> None:
    """Raise RefusedError where an owner's own record carries the mark of a canary: a pad would take it for one."""
    if has_mark(shard.features_ND).any():
        raise RefusedError(Refusal.DATA_UNFIT, "a record begins with the mark of a canary, -2^40; correct the data")


def beside(shard: Shard, is_in_M: Coins) -> Shard:
    """Return the shard with M rows more, the same number whatever the coins say.

    Guarantees:
        A canary whose coin fell the other way is an idle row in its place.
        Where the shard names persons, each canary is a person of its own, of one row.

    Args:
        shard: the owner's records.
        is_in_M: the coins.
    """
    count = len(is_in_M)
    shape, dtype = shard.features_ND.shape[1:], shard.features_ND.dtype
    rows = canary_rows(np.arange(count), is_in_M, shape=shape, dtype=dtype)
    grown = replace(
        shard,
        features_ND=np.concatenate([shard.features_ND, rows]),
        labels_N=np.concatenate([shard.labels_N, np.zeros(count, shard.labels_N.dtype)]),
    )
    if shard.units_N is None:
        return grown
    persons_U, person_N = np.unique(shard.units_N, return_inverse=True)  # any number may name a person
    return replace(grown, units_N=np.concatenate([person_N, len(persons_U) + np.arange(count)]))
