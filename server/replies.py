"""What the coordinator accepts from a client.

Each check refuses one reply and names why; the round goes on with the others.
"""

import numpy as np

from common.clipping import clip, l2_norm
from common.errors import DiscreetError
from common.messages import FloatArray, Report

NORM_TOLERANCE = 1e-4  # rounding to float32; the sum clips again, in double precision


class ReplyRefusedError(DiscreetError):
    """A reply is not used; the message is one word."""


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
    if not np.isfinite(report.update_P).all():
        raise ReplyRefusedError("not-finite")
    if max_norm is None:
        return report.update_P
    if l2_norm(report.update_P) > max_norm * (1 + NORM_TOLERANCE):
        raise ReplyRefusedError("norm-above-bound")
    return clip(report.update_P, max_norm=max_norm)
