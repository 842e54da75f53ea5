"""What can be done to an account's data: one frozen record for each mechanism.

A record says what was done, `steps` times, and to whom it happened (`unit`). How it is counted is no matter of its own:
that is `common.privacy.accounting`. A new mechanism is a new record and a line in `Event`.
"""

import dataclasses
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Literal, Self, get_args

from common import checks

Unit = Literal["record", "person", "client"]
Adjacency = Literal["zero-out", "replace-one"]
Distribution = Literal["geometric", "logarithmic", "poisson"]

ADJACENCY: Adjacency = "zero-out"


@dataclass(frozen=True, kw_only=True)
class Repeated:
    """What every event says.

    Args:
        steps: how often.
        unit: what one step protects: a record, a person with all its records, or a client with all
            its records.
        adjacency: how neighbours differ. In zero-out one unit's contribution is zeroed, the number of units being
            public; in replace-one it is exchanged for any other, so that replace-one implies zero-out. Each
            mechanism has exactly one.
    """

    mechanism: ClassVar[str]
    steps: int = 1
    unit: Unit = "record"
    adjacency: Adjacency = ADJACENCY

    def __post_init__(self) -> None:
        checks.positive(steps=self.steps)
        if self.unit not in get_args(Unit):
            raise ValueError(f"unit: expected one of {get_args(Unit)}, got {self.unit!r}")
        if self.adjacency != type(self).adjacency:
            raise ValueError(f"adjacency: expected {type(self).adjacency} for {self.mechanism}, got {self.adjacency!r}")

    def times(self, factor: int) -> Self:
        """Return the event of doing this `factor` times."""
        return dataclasses.replace(self, steps=self.steps * factor)

    def own(self) -> dict[str, Any]:
        """Return the fields that only this mechanism has."""
        common = {field.name for field in dataclasses.fields(Repeated)}
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name not in common}

    def to_json(self) -> dict[str, Any]:
        """Return plain values: whole numbers and decimal strings, no floats."""
        own = {name: _plain(value) for name, value in self.own().items()}
        return {
            "mechanism": self.mechanism,
            **own,
            "steps": self.steps,
            "unit": self.unit,
            "adjacency": self.adjacency,
        }


@dataclass(frozen=True, kw_only=True)
class SampledGaussian(Repeated):
    """Noisy sums over Poisson samples: the Gaussian mechanism on a random subset, `steps` times.

    Args:
        noise_multiplier: standard deviation of the noise in units of the sensitivity.
        sampling_rate: probability that a unit is in a sample, in (0, 1]; 1 is the plain Gaussian mechanism.
    """

    mechanism: ClassVar[str] = "poisson-gaussian"
    noise_multiplier: float
    sampling_rate: Fraction
    steps: int

    def __post_init__(self) -> None:
        checks.positive(noise_multiplier=self.noise_multiplier)
        checks.fraction(sampling_rate=self.sampling_rate)
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class SampledLaplace(Repeated):
    """Sums with Laplace noise over Poisson samples.

    Args:
        scale: of the noise, in units of the L1 sensitivity.
        sampling_rate: probability that a unit is in a sample, in (0, 1]; 1 is the plain Laplace mechanism.
    """

    mechanism: ClassVar[str] = "poisson-laplace"
    scale: float
    sampling_rate: Fraction

    def __post_init__(self) -> None:
        checks.positive(scale=self.scale)
        checks.fraction(sampling_rate=self.sampling_rate)
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class ZeroConcentrated(Repeated):
    """Anything of which only zero-concentrated differential privacy is known.

    Args:
        rho: of one step (Bun and Steinke 2016, Definition 1.1, https://arxiv.org/abs/1605.02065).
    """

    mechanism: ClassVar[str] = "zcdp"
    rho: float

    def __post_init__(self) -> None:
        checks.positive(rho=self.rho)
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class TreeGaussian(Repeated):
    """Prefix sums by a binary tree of Gaussians (DP-FTRL): `steps` trees, each over one pass through the data.

    Args:
        noise_multiplier: standard deviation of a node's noise in units of one contribution's sensitivity.
        leaves: of one tree; a unit is in one of them.

    Source: Kairouz et al. 2021, Theorem 4.1, https://arxiv.org/abs/2103.00039.
    """

    mechanism: ClassVar[str] = "tree-gaussian"
    noise_multiplier: float
    leaves: int

    def __post_init__(self) -> None:
        checks.positive(noise_multiplier=self.noise_multiplier, leaves=self.leaves)
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class FixedSizeGaussian(Repeated):
    """Noisy sums over samples of a fixed size, drawn anew for each step without replacement.

    Args:
        noise_multiplier: standard deviation of the noise in units of the sensitivity to a *replacement*, which is
            twice the norm that contributions are clipped to.
        sample_size: units in a sample.
        source_size: units that there are; public.

    Source: Wang et al. 2018, Theorem 27, https://arxiv.org/abs/1808.00087.
    """

    mechanism: ClassVar[str] = "fixed-size-gaussian"
    noise_multiplier: float
    sample_size: int
    source_size: int
    adjacency: Adjacency = "replace-one"

    def __post_init__(self) -> None:
        checks.positive(
            noise_multiplier=self.noise_multiplier, sample_size=self.sample_size, source_size=self.source_size
        )
        if not self.sample_size <= self.source_size:
            raise ValueError(f"sample_size: expected at most {self.source_size}, got {self.sample_size}")
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class RandomizedResponse(Repeated):
    """One of `buckets` answers, told truly with some probability and drawn uniformly otherwise.

    Args:
        noise_parameter: probability of the uniform draw (which may still hit the truth), in (0, 1].
        buckets: possible answers, 2 or more.
    """

    mechanism: ClassVar[str] = "randomized-response"
    noise_parameter: float
    buckets: int
    adjacency: Adjacency = "replace-one"

    def __post_init__(self) -> None:
        checks.fraction(noise_parameter=self.noise_parameter)
        if not self.buckets > 1:
            raise ValueError(f"buckets: expected 2 or more, got {self.buckets}")
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class SelectedRun(Repeated):
    """The best of a random number of runs, nothing of the others being seen: tuning of hyperparameters.

    Args:
        run: what one run does.
        mean_runs: expected number of runs, 1 or more.
        distribution: of that number.

    Source: Papernot and Steinke 2022, Theorems 2 and 6, https://arxiv.org/abs/2110.03620.
    """

    mechanism: ClassVar[str] = "selected-run"
    run: tuple[SampledGaussian, ...]
    mean_runs: float
    distribution: Distribution

    def __post_init__(self) -> None:
        checks.positive(mean_runs=self.mean_runs, runs=len(self.run))
        if not self.mean_runs >= 1:
            raise ValueError(f"mean_runs: expected a number of at least 1, got {self.mean_runs}")
        if self.distribution not in get_args(Distribution):
            raise ValueError(f"distribution: expected one of {get_args(Distribution)}, got {self.distribution!r}")
        super().__post_init__()


Event = (
    SampledGaussian
    | SampledLaplace
    | ZeroConcentrated
    | TreeGaussian
    | FixedSizeGaussian
    | RandomizedResponse
    | SelectedRun
)


def _plain(value: object) -> object:
    """A field as JSON has it: text for fractions and floats, a list for a run."""
    if isinstance(value, tuple):
        return [event.to_json() for event in value]
    if isinstance(value, float):
        return repr(float(value))  # a NumPy float's own repr is not a number
    return str(value) if isinstance(value, Fraction) else value
