"""Orders and reports as plain values, and back.

A frame is what Flower's records can carry: scalars by name and one flat array. The apps put it into a `RecordDict`;
this module knows nothing of Flower. Whatever does not decode raises `WireError`, never a stray exception.

    >>> from common.messages import Report
    >>> report = Report(run="r", round=1, attempt=1, client=0, update_P=np.zeros(3, np.float32))
    >>> decode_report(encode_report(report)).client
    0
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from common.errors import WireError
from common.messages import Mechanism, Order, Report
from common.privacy.events import exact_rate

Scalar = int | float | str | bool | bytes

MAX_TEXT = 200


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Scalars by name, and one flat array."""

    scalars: dict[str, Scalar]
    array: npt.NDArray[Any]


def encode_order(order: Order) -> Frame:
    """Turn an order into a frame; `decode_order` brings it back equal."""
    scalars = _address(order)
    if order.mechanism is not None:
        scalars |= {
            "sampling-rate": str(order.mechanism.sampling_rate),
            "noise-multiplier": repr(float(order.mechanism.noise_multiplier)),
            "max-grad-norm": repr(float(order.mechanism.max_grad_norm)),
            "steps": order.mechanism.steps,
        }
    if order.max_update_norm is not None:
        scalars["max-update-norm"] = repr(float(order.max_update_norm))
    if order.metrics_noise_multiplier is not None:
        scalars["metrics-noise-multiplier"] = repr(float(order.metrics_noise_multiplier))
    return Frame(scalars=scalars, array=order.weights_P)


def decode_order(frame: Frame) -> Order:
    """Turn a frame back into an order, or raise WireError."""
    optional = {"sampling-rate", "noise-multiplier", "max-grad-norm", "steps"}
    given = optional & frame.scalars.keys()
    if given and given != optional:
        raise WireError(f"An order names a mechanism in part: got {sorted(given)}, expected {sorted(optional)}.")
    _only(frame, _ADDRESS | optional | {"max-update-norm", "metrics-noise-multiplier"})
    try:
        mechanism = None
        if given:
            mechanism = Mechanism(
                sampling_rate=exact_rate(_text(frame, "sampling-rate")),
                noise_multiplier=float(_text(frame, "noise-multiplier")),
                max_grad_norm=float(_text(frame, "max-grad-norm")),
                steps=_whole(frame, "steps"),
            )
        return Order(
            run=_text(frame, "run"),
            round=_whole(frame, "round"),
            attempt=_whole(frame, "attempt"),
            client=_whole(frame, "client"),
            weights_P=_flat(frame),
            mechanism=mechanism,
            max_update_norm=_number(frame, "max-update-norm"),
            metrics_noise_multiplier=_number(frame, "metrics-noise-multiplier"),
        )
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise WireError(f"An order does not decode: {error}.") from error


def encode_report(report: Report) -> Frame:
    """Turn a report into a frame; `decode_report` brings it back equal."""
    scalars = _address(report)
    if report.correct is not None:
        scalars["correct"] = repr(float(report.correct))
    return Frame(scalars=scalars, array=report.update_P)


def decode_report(frame: Frame) -> Report:
    """Turn a frame back into a report, or raise WireError."""
    _only(frame, _ADDRESS | {"correct"})
    try:
        correct = _number(frame, "correct")
    except ValueError as error:
        raise WireError(f"A report does not decode: {error}.") from error
    return Report(
        run=_text(frame, "run"),
        round=_whole(frame, "round"),
        attempt=_whole(frame, "attempt"),
        client=_whole(frame, "client"),
        update_P=_flat(frame),
        correct=correct,
    )


_ADDRESS = {"run", "round", "attempt", "client"}


def _address(message: Order | Report) -> dict[str, Scalar]:
    return {"run": message.run, "round": message.round, "attempt": message.attempt, "client": message.client}


def _only(frame: Frame, known: set[str]) -> None:
    unknown = frame.scalars.keys() - known
    if unknown:
        raise WireError(f"A message has unknown fields: {sorted(unknown)[:3]}. Do both sides run the same version?")


def _text(frame: Frame, name: str) -> str:
    value = frame.scalars.get(name)
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise WireError(f"{name}: expected a text of at most {MAX_TEXT} characters, got {type(value).__name__}.")
    return value


def _number(frame: Frame, name: str) -> float | None:
    """A finite number that travels as a text, or None where it is not there; ValueError for any other."""
    if name not in frame.scalars:
        return None
    number = float(_text(frame, name))
    if not math.isfinite(number):
        raise ValueError(f"{name}: expected a finite number, got {number}")
    return number


def _whole(frame: Frame, name: str) -> int:
    value = frame.scalars.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise WireError(f"{name}: expected a whole number, got {type(value).__name__}.")
    return value


def _flat(frame: Frame) -> npt.NDArray[np.float32]:
    array = frame.array
    if array.dtype != np.float32 or array.ndim != 1:
        raise WireError(f"array: expected one flat float32 array, got {array.dtype} of {array.ndim} dimensions.")
    return array
