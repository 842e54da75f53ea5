"""What an audit found: a verdict, bounds, attacks and checks, as records, as plain values and in words."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from common.audit.check import Check

CONFIDENCE = 0.9999  # in a verdict of refuted: all false alarms together
BOUNDS_CONFIDENCE = 0.95  # in each lower bound


@dataclass(frozen=True, kw_only=True)
class LowerBounds:
    """Epsilons that are refuted at 95 % each, at the claim's delta; at most 100.

    Args:
        f_dp: rigorous within a family of mechanisms that the layer names.
        steinke: rigorous, by epsilon and delta alone.
        gaussian: an estimate.
    """

    f_dp: float
    steinke: float
    gaussian: float


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One way to attack a claim.

    Args:
        name: f-DP, Steinke or Gaussian.
        kind: whether its false alarms are bounded by proof.
        is_refuted: whether the claim is, at this layer's share of the false alarms.
        says: one sentence.
    """

    name: str
    kind: Literal["rigorous", "estimate"]
    is_refuted: bool
    says: str


@dataclass(frozen=True, kw_only=True)
class Findings:
    """A verdict and what it rests on.

    Args:
        claimed_epsilon: or None where nothing is claimed.
        delta: of the claim, and of the bounds.
        canaries: of all views.
        included: of them.
        guesses: of the attack that the f-DP layer rests on.
        correct: guesses.
        lower_bounds: what the attack proves by itself.
        layers: attacks.
        checks: comparisons with the plan and the ledger.
    """

    claimed_epsilon: float | None
    delta: float
    canaries: int
    included: int
    guesses: int
    correct: int
    lower_bounds: LowerBounds
    layers: tuple[Layer, ...]
    checks: tuple[Check, ...]

    @property
    def refuted_by(self) -> tuple[Check | Layer, ...]:
        """Whatever refutes the claim: checks first, they name what is wrong."""
        return (*(check for check in self.checks if check.is_refuted), *(one for one in self.layers if one.is_refuted))

    @property
    def is_refuted(self) -> bool:
        """Whether anything refutes the claim."""
        return bool(self.refuted_by)

    @property
    def verdict(self) -> str:
        """The verdict in words."""
        if self.claimed_epsilon is None:
            return "no claim to refute"
        return f"REFUTED by {', '.join(part.name for part in self.refuted_by)}" if self.is_refuted else "not refuted"

    @property
    def confidence(self) -> float:
        """In a verdict of refuted: 1 less the probability that an honest run is."""
        return CONFIDENCE

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self) | {
            "layers": [asdict(layer) for layer in self.layers],
            "checks": [asdict(check) for check in self.checks],
            "lower_bounds_confidence": BOUNDS_CONFIDENCE,
            "verdict": self.verdict,
            "confidence": self.confidence,
        }


def in_words(findings: Findings) -> list[str]:
    """Return the findings for people, a sentence each."""
    found, bounds = findings, findings.lower_bounds
    claimed = (
        "The run claims no privacy; there is nothing to refute."
        if found.claimed_epsilon is None
        else f"The claim of epsilon {found.claimed_epsilon:.3g} at delta {found.delta:g} is {found.verdict}"
        + (f", with a confidence of {found.confidence:.2%}." if found.is_refuted else " by this attack.")
    )
    return [
        claimed,
        f"Of {found.canaries} canaries {found.included} are in; {found.correct} of {found.guesses} guesses are right.",
        f"Proved by the guesses, each at {BOUNDS_CONFIDENCE:.0%}: epsilon is at least {bounds.f_dp:.3g} (f-DP).",
        f"The same, whatever the mechanism may be: epsilon is at least {bounds.steinke:.3g} (Steinke).",
        f"Estimated, if movements are normal: epsilon is at least {bounds.gaussian:.3g}.",
        *(part.says for part in found.refuted_by),
        "Not refuted is not verified: an attack that finds nothing proves nothing.",
    ]
