"""A verdict as the texts of a ledger's AUDIT entry, bound to the code that was audited."""

from typing import Literal

from common.audit.findings import Findings
from common.transparency.provenance import provenance


def noted(findings: Findings, *, kind: Literal["offline", "live"], rounds: int) -> dict[str, str]:
    """Return the texts of an AUDIT entry.

    Args:
        findings: of the audit.
        kind: on rows made for it, or beside an owner's records.
        rounds: that were attacked.
    """
    origin, bounds, claimed = provenance(), findings.lower_bounds, findings.claimed_epsilon
    return {
        "kind": kind,
        "verdict": findings.verdict,
        "confidence": str(findings.confidence),
        "claimed_epsilon": "none" if claimed is None else f"{claimed:.6g}",
        "delta": repr(findings.delta),
        "lower_bound_f_dp": f"{bounds.f_dp:.4g}",
        "lower_bound_steinke": f"{bounds.steinke:.4g}",
        "lower_bound_gaussian": f"{bounds.gaussian:.4g}",
        "canaries": str(findings.canaries),
        "rounds": str(rounds),
        "code": origin.code,
        "libraries": " ".join(f"{name}={version}" for name, version in sorted(origin.libraries.items())),
    }
