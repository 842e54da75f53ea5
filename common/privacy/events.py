"""Privacy events: what was done to an account's data.

An event is a frozen fact, kept apart from the accountants that count it (`common.privacy.accounting`): events are
stored, epsilon never is. A stored field is never removed and never changes its meaning; a new kind of event is a new
record (`common.privacy.event_kinds`).

    >>> from_json({"mechanism": "zcdp", "rho": "0.1", "steps": 2, "unit": "record", "adjacency": "zero-out"})
    ZeroConcentrated(steps=2, unit='record', adjacency='zero-out', rho=0.1)
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, get_args

from common.privacy.event_kinds import (
    ADJACENCY,
    Adjacency,
    Distribution,
    Event,
    FixedSizeGaussian,
    RandomizedResponse,
    SampledGaussian,
    SampledLaplace,
    SelectedRun,
    TreeGaussian,
    Unit,
    ZeroConcentrated,
)

__all__ = [
    "ADJACENCY",
    "MAX_SEGMENTS",
    "Adjacency",
    "Distribution",
    "Event",
    "FixedSizeGaussian",
    "History",
    "RandomizedResponse",
    "SampledGaussian",
    "SampledLaplace",
    "SelectedRun",
    "TreeGaussian",
    "Unit",
    "ZeroConcentrated",
    "adjacency_of",
    "exact_rate",
    "from_json",
    "merged",
]

MAX_SEGMENTS = 64
_RATE = re.compile(r"[0-9]{1,30}(/[1-9][0-9]{0,29})?")

History = tuple[Event, ...]


def exact_rate(text: str) -> Fraction:
    """Read a sampling rate as `Fraction` writes it, 1 or 8/1875; ValueError for anything else.

    `Fraction` itself would also take 1e999999999, and be busy with it until the memory is full.
    """
    if not _RATE.fullmatch(text):
        raise ValueError(f"sampling_rate: expected a fraction such as 8/1875, got {text[:40]!r}")
    rate = Fraction(text)
    if str(rate) != text:
        raise ValueError(f"sampling_rate: expected a fraction in lowest terms, got {text!r}")
    return rate


def from_json(value: object) -> Event:
    """Read an event back; whatever is not exactly one, an unknown mechanism or field too, raises ValueError."""
    match value:
        case {"mechanism": str(mechanism), **rest} if mechanism in _KINDS:
            kind = _KINDS[mechanism]
            if rest.keys() == {field.name for field in dataclasses.fields(kind)}:
                return kind(**{str(name): _READERS[str(name)](field) for name, field in rest.items()})
    raise ValueError(f"event: expected the fields of one of {', '.join(_KINDS)} of this version, got {value}")


def merged(events: History) -> History:
    """Return the same history with equal segments added up, in a canonical order (composition has none)."""
    steps: dict[Event, int] = {}
    for event in events:
        once = dataclasses.replace(event, steps=1)
        steps[once] = steps.get(once, 0) + event.steps
    return tuple(once.times(count) for once, count in sorted(steps.items(), key=lambda item: _place(item[0])))


def adjacency_of(events: History) -> Adjacency:
    """Return the adjacency for which a history's epsilon holds: the weakest of its events, zero-out before any."""
    return "replace-one" if events and all(event.adjacency == "replace-one" for event in events) else ADJACENCY


def _place(event: Event) -> tuple[object, ...]:
    """Where an event stands in the canonical order: by mechanism, rate, noise and unit."""
    own = [tuple(_place(e) for e in value) if isinstance(value, tuple) else value for value in event.own().values()]
    return (event.mechanism, *reversed(own), event.unit)


def _float(text: object) -> float:
    """A float exactly as `repr` writes it."""
    if isinstance(text, str) and repr(float(text)) == text:
        return float(text)
    raise ValueError(f"expected a number as Python writes it, got {text!r}")


def _whole(number: object) -> int:
    if isinstance(number, int) and not isinstance(number, bool):
        return number
    raise ValueError(f"expected a whole number, got {number!r}")


def _rate(text: object) -> Fraction:
    if isinstance(text, str):
        return exact_rate(text)
    raise ValueError(f"sampling_rate: expected a fraction such as 8/1875, got {text!r}")


def _one_of(words: tuple[str, ...]) -> Callable[[object], str]:
    def read(word: object) -> str:
        if isinstance(word, str) and word in words:
            return word
        raise ValueError(f"expected one of {', '.join(words)}, got {word!r}")

    return read


def _run(values: object) -> tuple[Event, ...]:
    """The segments of one run, all of them Poisson-sampled Gaussians."""
    if isinstance(values, list) and len(values) <= MAX_SEGMENTS:
        kinds = [value.get("mechanism") if isinstance(value, dict) else None for value in values]
        if values and all(kind == SampledGaussian.mechanism for kind in kinds):
            return tuple(from_json(value) for value in values)
    raise ValueError(f"run: expected at most {MAX_SEGMENTS} poisson-gaussian events, got {values!r}")


_KINDS: Mapping[str, type[Event]] = {kind.mechanism: kind for kind in get_args(Event)}
_READERS: Mapping[str, Callable[[object], Any]] = {
    "noise_multiplier": _float,
    "scale": _float,
    "rho": _float,
    "noise_parameter": _float,
    "mean_runs": _float,
    "sampling_rate": _rate,
    "leaves": _whole,
    "sample_size": _whole,
    "source_size": _whole,
    "buckets": _whole,
    "run": _run,
    "steps": _whole,
    "distribution": _one_of(get_args(Distribution)),
    "unit": _one_of(get_args(Unit)),
    "adjacency": _one_of(get_args(Adjacency)),
}
