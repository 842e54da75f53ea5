"""What follows from a run's seed: data split, first weights, dropout, and without privacy batches and cohorts.

Never noise, never private sampling: those come from `common.privacy.entropy`.

    >>> derive(7, "weights") == derive(7, "weights"), derive(7, "weights") == derive(7, "split")
    (True, False)
"""

import hashlib


def derive(seed: int, *path: str | int) -> int:
    """Return an independent 63-bit seed for what `path` names."""
    text = "/".join(str(part) for part in (seed, *path))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
