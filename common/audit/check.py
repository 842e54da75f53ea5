"""One check of an audit, and how often an honest run may fail any of them."""

from dataclasses import dataclass
from types import MappingProxyType

FALSE_ALARMS = MappingProxyType(
    {
        "f-DP": 1e-5,
        "Steinke": 1e-5,
        "Gaussian": 1e-5,
        "noise": 1e-5,
        "noise on the body": 1e-5,
        "freshness": 1e-5,
        "contribution": 1e-5,
        "sampling rate": 1e-5,
        "spread": 1e-5,
        "cohorts": 1e-5,
    }
)  # their sum is 1e-4, the probability that an honest run is refuted
ROUNDING = 1e-4  # of training in 32 bits, as a share of what is measured


@dataclass(frozen=True, kw_only=True)
class Check:
    """One comparison of what was measured with what was planned.

    Args:
        name: what is compared.
        is_refuted: whether it is outside its limits.
        measured: in the units that `says` names.
        expected: of an honest run, where there is such a figure.
        low, high: the limits, None where there is none.
        says: one sentence.
    """

    name: str
    is_refuted: bool
    measured: float
    expected: float | None
    low: float | None
    high: float | None
    says: str
