"""Privacy events: what was done to an account's data.

An event is a frozen fact, kept apart from the accountants that count it (`common.privacy.accounting`): events are
stored, epsilon never is. A stored field is never removed and never changes its meaning; a new kind of event is a new
record.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from common import checks

Unit = Literal["record", "client"]
Adjacency = Literal["zero-out"]

ADJACENCY: Adjacency = "zero-out"
MAX_SEGMENTS = 64
_RATE = re.compile(r"[0-9]{1,30}(/[1-9][0-9]{0,29})?")


@dataclass(frozen=True, kw_only=True)
class SampledGaussian:
    """Noisy sums over Poisson samples: the Gaussian mechanism on a random subset, `steps` times.

    Args:
        noise_multiplier: standard deviation of the noise in units of the sensitivity.
        sampling_rate: probability that a unit is in a sample, in (0, 1]; 1 is the plain Gaussian mechanism.
        steps: how often.
        unit: what one step protects: a record, or a client with all its records.
        adjacency: neighbours differ in one unit whose contribution is zeroed, the number of units being public.
    """

    noise_multiplier: float
    sampling_rate: Fraction
    steps: int
    unit: Unit = "record"
    adjacency: Adjacency = ADJACENCY

    def __post_init__(self) -> None:
        checks.positive(noise_multiplier=self.noise_multiplier, steps=self.steps)
        checks.fraction(sampling_rate=self.sampling_rate)

    def times(self, factor: int) -> "SampledGaussian":
        """Return the event of doing this `factor` times."""
        return SampledGaussian(
            noise_multiplier=self.noise_multiplier,
            sampling_rate=self.sampling_rate,
            steps=self.steps * factor,
            unit=self.unit,
            adjacency=self.adjacency,
        )

    def to_json(self) -> dict[str, str | int]:
        """Return plain values: whole numbers and decimal strings, no floats."""
        return {
            "mechanism": "poisson-gaussian",
            "noise_multiplier": repr(float(self.noise_multiplier)),
            "sampling_rate": str(self.sampling_rate),
            "steps": self.steps,
            "unit": self.unit,
            "adjacency": self.adjacency,
        }


def exact_rate(text: str) -> Fraction:
    """Read a sampling rate as `Fraction` writes it, 1 or 8/1875; ValueError for anything else.

    `Fraction` itself would also take 1e999999999, and be busy with it until the memory is full.
    """
    if not _RATE.fullmatch(text):
        raise ValueError(f"sampling_rate: expected a fraction such as 8/1875, got {text[:40]!r}")
    return Fraction(text)


def from_json(value: object) -> SampledGaussian:
    """Read an event back; whatever is not exactly one, an unknown mechanism or field too, raises ValueError."""
    match value:
        case {
            "mechanism": "poisson-gaussian",
            "noise_multiplier": str(noise),
            "sampling_rate": str(rate),
            "steps": int(steps),
            "unit": "record" | "client" as unit,
            "adjacency": "zero-out",
            **rest,
        } if not rest and not isinstance(steps, bool):
            return SampledGaussian(
                noise_multiplier=float(noise), sampling_rate=exact_rate(rate), steps=steps, unit=unit
            )
    raise ValueError(f"event: expected the fields of a poisson-gaussian event of this version, got {value}")


History = tuple[SampledGaussian, ...]


def merged(events: History) -> History:
    """Return the same history with equal segments added up, in a canonical order (composition has none)."""
    steps: dict[tuple[Fraction, float, Unit], int] = {}
    for event in events:
        key = (event.sampling_rate, event.noise_multiplier, event.unit)
        steps[key] = steps.get(key, 0) + event.steps
    return tuple(
        SampledGaussian(sampling_rate=rate, noise_multiplier=noise, unit=unit, steps=count)
        for (rate, noise, unit), count in sorted(steps.items())
    )
