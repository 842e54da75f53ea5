"""What a report says of a ledger.

    facts(read(path)).account.odds.guess    how often an attacker's best guess is right, at most

Every figure is computed from the ledger's events by the accountants that admit and verify; nothing is taken from a
file that anybody could edit. Longer than 250 lines, because what was spent and the odds are of the same histories.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from common.privacy.accounting import COARSE, bound
from common.privacy.admission import account_order
from common.privacy.events import History, merged
from common.privacy.odds import Pair, best_guess, largest_posterior, most_hits
from common.transparency.books import Account, Run
from common.transparency.entries import Approval, Opening, Provenance, Reserve, Terms
from common.transparency.export import Statement
from common.transparency.verification import Balance, balances
from simulations.report_audits import AuditFacts, audits_in

ORGANISATIONS = (1, 2, 3)
DELTAS = (
    1e-4, 1e-3, 3e-3, 0.006, 0.01, 0.02, 0.03, 0.045, 0.07, 0.1, 0.13, 0.17, 0.21, 0.26, 0.31, 0.37, 0.43, 0.5, 0.57,
    0.64, 0.72, 0.8, 0.87, 0.93, 0.97,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Odds:
    """What an attacker who sees everything that was released can reach against one unit, at most.

    Args:
        pairs: epsilon and delta that hold at once; the first is the account's.
        posterior: to what one release lifts a suspicion of 50 %.
        rare_posterior: beyond which no release lifts it, save with probability 2 delta.
        plain_guess: how often a guess at even odds is right, from the first pair alone.
        guess: the same from all pairs.
        plain_hits: units recognised while 1 % of the others are wrongly accused, from the first pair alone.
        hits: the same from all pairs.
    """

    pairs: tuple[Pair, ...]
    posterior: float
    rare_posterior: float
    plain_guess: float
    guess: float
    plain_hits: float
    hits: float


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """One run on one account; `epsilon` is that of the run alone, at the account's delta."""

    run: str
    entered: Run
    epsilon: float


@dataclass(frozen=True, kw_only=True)
class AccountFacts:
    """One account, in full.

    Args:
        terms: those in force.
        balance: what was spent, by three accountants and by the filter.
        held: epsilon when all that open runs have reserved is used.
        order: of the account's Rényi filter, or None before its first run.
        runs: in the order in which they were reserved.
        odds: of an attacker against one unit.
        several: epsilon and best guess for somebody in so many organisations that spent as much.
        provenances: which code charged, and how often.
    """

    terms: Terms
    balance: Balance
    held: float
    order: float | None
    runs: tuple[RunFacts, ...]
    odds: Odds
    several: tuple[tuple[int, float, float], ...]
    provenances: tuple[tuple[Provenance, int], ...]


@dataclass(frozen=True, kw_only=True)
class Change:
    """A POLICY_CHANGE, of `accounts` accounts at once: what was, and what is."""

    time_ms: int
    account: str
    accounts: int
    differences: tuple[tuple[str, Any, Any], ...]


@dataclass(frozen=True, kw_only=True)
class LedgerFacts:
    """A whole ledger.

    Args:
        statement: what was read and checked.
        balances: of all accounts, the one that spent most first.
        account: that one, in full.
        changes: of the owners' terms.
        refusals: run and word, the first round they came in, and on how many accounts.
        audits: what attacks found.
        approvals: what people decided on runs.
    """

    statement: Statement
    balances: tuple[Balance, ...]
    account: AccountFacts
    changes: tuple[Change, ...]
    refusals: tuple[tuple[str, str, int, int], ...]
    audits: tuple[AuditFacts, ...]
    approvals: tuple[Approval, ...]


def facts(statement: Statement) -> LedgerFacts:
    """Add up a whole ledger; LedgerError when accountants disagree, or none can answer."""
    accounts = statement.books.accounts
    ordered = tuple(
        sorted(balances(statement), key=lambda b: (-b.verdict.reported, -(b.filter_epsilon or 0.0), b.account))
    )
    return LedgerFacts(
        statement=statement,
        balances=ordered,
        account=_account(statement, ordered[0]),
        changes=tuple(_changes(statement)),
        refusals=_refusals(statement),
        audits=audits_in(statement),
        approvals=tuple(approval for account in accounts.values() for approval in account.approvals),
    )


def epsilons_of(statement: Statement, run: str) -> list[float]:
    """Return the epsilon of one run alone for each account that it was reserved on."""
    accounts = statement.books.accounts.values()
    return [_run(account, run).epsilon for account in accounts if run in account.runs]


def odds(history: History, *, delta: float, reported: float) -> Odds:
    """Bound what any attack can reach.

    Source: the testing region of Kairouz et al. 2015, https://arxiv.org/abs/1311.0776, for all pairs at once.
    """
    larger = [(bound(history, delta=other, grid=COARSE), other) for other in DELTAS if other > delta]
    pairs = ((reported, delta), *larger)
    return Odds(
        pairs=pairs,
        posterior=largest_posterior(reported),
        rare_posterior=largest_posterior(reported + math.log(2)),  # P[loss > epsilon + t] <= delta / (1 - e^-t)
        plain_guess=best_guess(pairs[:1]),
        guess=best_guess(pairs),
        plain_hits=most_hits(pairs[:1]),
        hits=most_hits(pairs),
    )


def _account(statement: Statement, balance: Balance) -> AccountFacts:
    account = statement.books.accounts[balance.account]
    terms, spent = account.terms[-1], merged(account.spent())
    return AccountFacts(
        terms=terms,
        balance=balance,
        held=bound(merged(account.held()), delta=terms.delta),
        order=account_order(account),
        runs=tuple(_run(account, name) for name in account.runs),
        odds=odds(spent, delta=terms.delta, reported=balance.verdict.reported),
        several=tuple(_several(spent, terms.delta, times) for times in ORGANISATIONS),
        provenances=_provenances(statement, balance.account),
    )


def _run(account: Account, name: str) -> RunFacts:
    run = account.runs[name]
    alone = bound(merged(run.history(run.charged)), delta=account.terms[-1].delta)
    return RunFacts(run=name, entered=run, epsilon=alone)


def _several(spent: History, delta: float, times: int) -> tuple[int, float, float]:
    """Epsilon and best guess for somebody whose data are in `times` such accounts."""
    history = merged(spent * times)
    total = bound(history, delta=delta)
    return times, total, odds(history, delta=delta, reported=total).guess


def _provenances(statement: Statement, account: str) -> tuple[tuple[Provenance, int], ...]:
    """Which code charged an account, in the order in which it first did, and for how many entries."""
    charges = [e.provenance for e in statement.entries if isinstance(e, Reserve) and e.account == account]
    return tuple((one, charges.count(one)) for i, one in enumerate(charges) if one not in charges[:i])


def _changes(statement: Statement) -> Iterator[Change]:
    """All changes of terms; those that many accounts had at once are one."""
    before: dict[str, Terms] = {}
    groups: dict[tuple[int, tuple[tuple[str, Any, Any], ...]], list[str]] = {}
    for entry in statement.entries:
        if isinstance(entry, Opening):
            if entry.is_change:
                place = (entry.time_ms, _differences(before[entry.account], entry.terms))
                groups.setdefault(place, []).append(entry.account)
            before[entry.account] = entry.terms
    for (time_ms, differences), accounts in groups.items():
        yield Change(time_ms=time_ms, account=accounts[0], accounts=len(accounts), differences=differences)


def _differences(old: Terms, new: Terms) -> tuple[tuple[str, Any, Any], ...]:
    """What is another; the policy's digest where nothing else is."""
    pairs = [(field.name, getattr(old, field.name), getattr(new, field.name)) for field in fields(Terms)]
    changed = [pair for pair in pairs if pair[1] != pair[2]]
    return tuple([pair for pair in changed if pair[0] != "policy"] or changed)


def _refusals(statement: Statement) -> tuple[tuple[str, str, int, int], ...]:
    """Run, word, first round and number of accounts of all refusals."""
    every = [refusal for account in statement.books.accounts.values() for refusal in account.refusals]
    rounds = {(refusal.run, refusal.word): refusal.round for refusal in sorted(every, key=lambda r: -r.sequence)}
    count = Counter((refusal.run, refusal.word) for refusal in every)
    return tuple((run, word, rounds[run, word], count[run, word]) for run, word in sorted(count))
