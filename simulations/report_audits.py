"""The audits in a ledger, for the report: what they found, and whether they were made with the code that charged."""

from collections.abc import Mapping
from dataclasses import dataclass

from common.transparency.entries import Audit, Reserve
from common.transparency.export import Statement

BOUNDS = {"lower_bound_f_dp": "f-DP", "lower_bound_steinke": "Steinke", "lower_bound_gaussian": "Gaussian estimate"}
_SHOWN = {"verdict", "claimed_epsilon", "confidence", "canaries", "rounds", "kind", "code", "delta", "libraries"}


@dataclass(frozen=True, kw_only=True)
class AuditFacts:
    """One audit, noted on one account or on several at once.

    Args:
        time_ms: of its first note.
        account: the first.
        accounts: how many.
        run: that was attacked.
        findings: the texts of verdict, claimed_epsilon, canaries and the like; empty where the audit has none.
        bounds: name and figure of each lower bound.
        others: findings that have no place of their own on the page.
        is_same_code: whether the audited code has charged this account; None where the audit does not name it.
    """

    time_ms: int
    account: str
    accounts: int
    run: str
    findings: Mapping[str, str]
    bounds: tuple[tuple[str, str], ...]
    others: Mapping[str, str]
    is_same_code: bool | None

    @property
    def is_refuted(self) -> bool:
        """Whether the audit says so."""
        return self.findings["verdict"].startswith("REFUTED")


def audits_in(statement: Statement) -> tuple[AuditFacts, ...]:
    """Return the audits, the same findings of one run on several accounts as one, the newest last."""
    groups: dict[tuple[str, tuple[tuple[str, str], ...]], list[Audit]] = {}
    for entry in statement.entries:
        if isinstance(entry, Audit):
            groups.setdefault((entry.run, tuple(entry.findings.items())), []).append(entry)
    charged = {(e.account, e.provenance.code) for e in statement.entries if isinstance(e, Reserve)}
    return tuple(_facts(same, charged) for same in groups.values())


def _facts(same: list[Audit], charged: set[tuple[str, str]]) -> AuditFacts:
    first, code = same[0], same[0].findings.get("code")
    said = dict.fromkeys(_SHOWN, "") | dict(first.findings)
    return AuditFacts(
        time_ms=first.time_ms,
        account=first.account,
        accounts=len({entry.account for entry in same}),
        run=first.run,
        findings=said,
        bounds=tuple((name, first.findings[key]) for key, name in BOUNDS.items() if key in first.findings),
        others={key: value for key, value in first.findings.items() if key not in _SHOWN | BOUNDS.keys()},
        is_same_code=None if code is None else (first.account, code) in charged,
    )
