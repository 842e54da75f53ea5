"""Entries that have everything but their place: sequence and time are given when they are written."""

from collections.abc import Callable
from dataclasses import dataclass

from common.privacy.events import History
from common.transparency.entries import PLAN_ROUND, Approval, Decision, Entry, Opening, Refuse, Reserve, Settle, Terms
from common.transparency.provenance import provenance

Draft = Callable[[int, int], Entry]  # from sequence and time


@dataclass(frozen=True, kw_only=True)
class Charge:
    """One order on one account: `events` happen in this attempt at this round."""

    account: str
    run: str
    round: int
    attempt: int
    events: History


def opening(account: str, terms: Terms, *, is_change: bool) -> Draft:
    """Draft a GENESIS, or a POLICY_CHANGE."""
    return lambda sequence, time_ms: Opening(
        sequence=sequence, time_ms=time_ms, account=account, terms=terms, is_change=is_change
    )


def reserve(charge: Charge, *, policy: str, participations: int = 1) -> Draft:
    """Draft a RESERVE, of one order or, in round 0, of a run."""
    return lambda sequence, time_ms: Reserve(
        sequence=sequence, time_ms=time_ms, account=charge.account, policy=policy, run=charge.run, round=charge.round,
        attempt=charge.attempt, participations=participations, events=charge.events, provenance=provenance(),
    )  # fmt: skip


def commit(charge: Charge) -> Draft:
    """Draft the COMMIT of an order."""
    return lambda sequence, time_ms: Settle(
        sequence=sequence, time_ms=time_ms, account=charge.account, run=charge.run, round=charge.round,
        attempt=charge.attempt, participations=1, type="COMMIT",
    )  # fmt: skip


def expire(account: str, run: str, number: int, attempt: int) -> Draft:
    """Draft the EXPIRE of an order."""
    return lambda sequence, time_ms: Settle(
        sequence=sequence, time_ms=time_ms, account=account, run=run, round=number, attempt=attempt, participations=1,
        type="EXPIRE",
    )  # fmt: skip


def close(account: str, run: str, participations: int) -> Draft:
    """Draft the COMMIT of a whole run."""
    return lambda sequence, time_ms: Settle(
        sequence=sequence, time_ms=time_ms, account=account, run=run, round=PLAN_ROUND, attempt=1,
        participations=participations, type="COMMIT",
    )  # fmt: skip


def refuse(charge: Charge, word: str) -> Draft:
    """Draft a REFUSE."""
    return lambda sequence, time_ms: Refuse(
        sequence=sequence, time_ms=time_ms, account=charge.account, run=charge.run, round=charge.round,
        attempt=charge.attempt, word=word,
    )  # fmt: skip


def approval(account: str, run: str, *, decision: Decision, by: str, purpose: str, scenario: str) -> Draft:
    """Draft an APPROVAL."""
    return lambda sequence, time_ms: Approval(
        sequence=sequence, time_ms=time_ms, account=account, run=run, decision=decision, by=by, purpose=purpose,
        scenario=scenario,
    )  # fmt: skip
