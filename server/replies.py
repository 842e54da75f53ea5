"""What the coordinator accepts from a client.

Each check refuses one reply and names why; the round goes on with the others.
"""

import math

import numpy as np

from common.errors import DiscreetError, WireError
from common.messages import FloatArray, Report
from common.privacy.clipping import clip, l2_norm
from common.raw_arrays import raw_floats, raw_size

NORM_TOLERANCE = 1e-4  # rounding to float32; the sum clips again, in double precision
CHECKED_TOGETHER = 1 << 16  # numbers, whose marks stay in the processor's cache
FARTHEST_NOISE = 8.6  # standard deviations; `Entropy.normal` draws none beyond 8.58


class ReplyRefusedError(DiscreetError):
    """A reply is not used; the message is one word."""


def raw_update(data: bytes, *, size: int) -> FloatArray:
    """Return the numbers in a serialised array, or raise ReplyRefusedError.

    Guarantees:
        Only the very bytes that numpy writes for `size` float32 numbers in a row are read; no header of a sender's is
        ever parsed, so that none can name another shape, type or file format.
    """
    try:
        return raw_floats(data, size=size)
    except WireError as error:
        raise ReplyRefusedError("wrong-size" if len(data) > raw_size(size) else "malformed") from error


def checked_update(
    report: Report, *, run: str, round_number: int, attempt: int, client: int, size: int, max_norm: float | None
) -> FloatArray:
    """Return a report's update, or raise ReplyRefusedError.

    Guarantees:
        The result has `size` finite float32 numbers, and an L2 norm of at most `max_norm` where one is claimed.

    Args:
        report: what came.
        run: what was asked: run,
        round_number: round,
        attempt: and attempt,
        client: and of whom.
        size: number of parameters.
        max_norm: the bound that the order asked for, or None.
    """
    if (report.run, report.round, report.attempt) != (run, round_number, attempt):
        raise ReplyRefusedError("another-round")
    if report.client != client:
        raise ReplyRefusedError("another-client")
    if len(report.update_P) != size:
        raise ReplyRefusedError("wrong-size")
    if not _is_finite(report.update_P):
        raise ReplyRefusedError("not-finite")
    if max_norm is None:
        return report.update_P
    if l2_norm(report.update_P) > max_norm * (1 + NORM_TOLERANCE):
        raise ReplyRefusedError("norm-above-bound")
    return clip(report.update_P, max_norm=max_norm)


def checked_correct(report: Report, *, units: int, noise_multiplier: float | None) -> float | None:
    """Return a report's noised count, or raise ReplyRefusedError.

    Guarantees:
        There is a count exactly where one was ordered.
        It is finite, and no farther outside 0 to `units` than the noise of an honest client goes.

    Args:
        report: what came.
        units: declared number of the client's records, or persons.
        noise_multiplier: that of the order, or None where no count was ordered.
    """
    correct = report.correct
    if correct is None and noise_multiplier is None:
        return None
    if noise_multiplier is None:
        raise ReplyRefusedError("count-unasked")
    if correct is None:
        raise ReplyRefusedError("count-missing")
    if not math.isfinite(correct):
        raise ReplyRefusedError("not-finite")
    farthest = FARTHEST_NOISE * noise_multiplier
    if not -farthest <= correct <= units + farthest:
        raise ReplyRefusedError("count-impossible")
    return correct


def _is_finite(update_P: FloatArray) -> bool:
    """Whether every number is finite, looked at in parts: no array as long as the update is made."""
    starts = range(0, len(update_P), CHECKED_TOGETHER)
    return all(np.isfinite(update_P[start : start + CHECKED_TOGETHER]).all() for start in starts)
