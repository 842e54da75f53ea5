"""Privacy events: what was done to an account's data.

An event is a frozen fact, kept apart from the accountants that count it (`common.accounting`): events are stored,
epsilon never is. A stored field is never removed and never changes its meaning; a new kind of event is a new record.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from common import checks

Unit = Literal["record", "client"]
Adjacency = Literal["zero-out"]

ADJACENCY: Adjacency = "zero-out"
MAX_SEGMENTS = 64


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
            "noise_multiplier": repr(self.noise_multiplier),
            "sampling_rate": str(self.sampling_rate),
            "steps": self.steps,
            "unit": self.unit,
            "adjacency": self.adjacency,
        }


def from_json(value: Mapping[str, object]) -> SampledGaussian:
    """Read an event back; an unknown mechanism or field is refused, never skipped, with ValueError."""
    known = {"mechanism", "noise_multiplier", "sampling_rate", "steps", "unit", "adjacency"}
    if value.keys() != known:
        raise ValueError(f"event: expected the fields {sorted(known)}, got {sorted(value)}")
    if value["mechanism"] != "poisson-gaussian" or value["adjacency"] != ADJACENCY:
        raise ValueError(f"event: unknown mechanism or adjacency, got {value['mechanism']}, {value['adjacency']}")
    unit = value["unit"]
    if unit not in ("record", "client"):
        raise ValueError(f"event: expected unit record or client, got {unit}")
    steps = value["steps"]
    if not isinstance(steps, int) or isinstance(steps, bool):
        raise ValueError(f"event: expected a whole number of steps, got {steps}")  # noqa: TRY004 - one kind of error
    return SampledGaussian(
        noise_multiplier=float(str(value["noise_multiplier"])),
        sampling_rate=Fraction(str(value["sampling_rate"])),
        steps=steps,
        unit="record" if unit == "record" else "client",
    )


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
