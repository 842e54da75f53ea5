"""Verification: does a ledger add up?

`verify` raises or returns None. It needs the export alone, and no trust in who sent it; with the owner's key it also
says whose it is, with an earlier checkpoint that it continues what was seen then.

What it does not show: that noise was really drawn, and that nothing was trained beside the ledger.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from common.errors import AccountingError, LedgerError
from common.privacy import accounting
from common.privacy.accounting import Verdict
from common.privacy.admission import account_order
from common.privacy.events import History, merged
from common.privacy.renyi_filter import filter_epsilon
from common.transparency.books import Account
from common.transparency.export import Statement
from common.transparency.merkle import consistency_proof, is_consistent
from common.transparency.notes import VerifierKey
from common.transparency.notes import verify as verify_note

Watch = Callable[[int, int], None]

SLACK = 1 + 1e-9  # for sums in another order than at admission


@dataclass(frozen=True, kw_only=True)
class Balance:
    """What one account has spent and may spend.

    Args:
        account: its name.
        verdict: epsilon by three accountants, at the account's delta.
        filter_epsilon: by the Rényi filter that admits every run after the first; None before the first run.
        budget: lifetime epsilon.
        runs: how many have charged it.
        left: epsilon that the next run may take, by the filter; what open runs have reserved is taken already.
    """

    account: str
    verdict: Verdict
    filter_epsilon: float | None
    budget: float
    runs: int
    left: float


def verify(
    statement: Statement,
    *,
    key: VerifierKey | None = None,
    extends: str | None = None,
    watch: Watch | None = None,
) -> None:
    """Raise LedgerError unless a whole ledger is signed by `key`, continues `extends`, and adds up.

    Args:
        statement: from `common.transparency.export.read`, which checked hashes, signatures and rules.
        key: the owner's public key; None leaves open who signed.
        extends: an earlier checkpoint's note.
        watch: told how many of how many distinct histories are counted.
    """
    # 1. The signer.
    if key is not None and key != statement.key:
        raise LedgerError(
            f"The ledger is signed by {statement.key}, expected {key}. It is another ledger, or a forged one."
        )
    # 2. It continues what was seen before.
    if extends is not None:
        refuse_unless_continues(statement, extends)
    # 3. What each account spent is within what its owner allowed.
    with _counting():
        for balance in balances(statement, watch=watch):
            _within_budget(statement.books.accounts[balance.account], balance)


def refuse_unless_continues(statement: Statement, note: str) -> None:
    """Raise LedgerError unless a whole ledger begins with what an earlier checkpoint's note says."""
    try:
        seen = verify_note(note, statement.key)
    except ValueError as error:
        raise LedgerError(f"The earlier checkpoint is not of this ledger: {error}.") from error
    size = statement.checkpoint.size
    if seen.size > size:
        raise LedgerError(
            f"The ledger has {size} entries and was seen with {seen.size}: it was rolled back to an older copy."
        )
    proof = consistency_proof(statement.leaves, seen.size)
    root = statement.checkpoint.root
    if not is_consistent(old_size=seen.size, old_root=seen.root, size=size, root=root, proof=proof):
        raise LedgerError(f"The first {seen.size} entries are not those that were seen before: the ledger was forked.")


def balances(statement: Statement, *, watch: Watch | None = None) -> list[Balance]:
    """Return every account's balance; accountants are asked once for each distinct history.

    Raises:
        LedgerError: when accountants disagree, or none can answer.
    """
    with _counting():
        asked: dict[tuple[History, float], Verdict] = {}
        histories = {name: merged(account.spent()) for name, account in statement.books.accounts.items()}
        accounts = statement.books.accounts
        distinct = {(history, accounts[name].terms[-1].delta) for name, history in histories.items()}
        for done, (history, delta) in enumerate(distinct, 1):
            asked[history, delta] = accounting.check(history, delta=delta)
            if watch is not None:
                watch(done, len(distinct))
        return [
            _balance(name, account, asked[histories[name], account.terms[-1].delta])
            for name, account in accounts.items()
        ]


@contextmanager
def _counting() -> Iterator[None]:
    """Turn what an accountant says into LedgerError."""
    try:
        yield
    except AccountingError as error:
        raise LedgerError(f"The ledger cannot be counted: {error}") from error


def _balance(name: str, account: Account, verdict: Verdict) -> Balance:
    order, terms = account_order(account), account.terms[-1]

    def by_filter(history: History) -> float | None:
        return None if order is None else filter_epsilon(merged(history), order=order, delta=terms.delta)

    return Balance(
        account=name,
        verdict=verdict,
        filter_epsilon=by_filter(account.spent()),
        budget=terms.budget,
        runs=sum(run.charged > 0 for run in account.runs.values()),
        left=max(terms.budget - (by_filter(account.held()) or 0.0), 0.0),
    )


def _within_budget(account: Account, balance: Balance) -> None:
    """What the account had spent at its last charge, which is all, is within what its owner allowed then."""
    terms = account.terms_at_last_charge
    if terms is None:
        return
    history, order = merged(account.spent()), account_order(account)
    is_current = terms.delta == account.terms[-1].delta
    verdict = balance.verdict if is_current else accounting.check(history, delta=terms.delta)
    spent = verdict.reported
    if balance.runs > 1 and order is not None:
        spent = max(spent, filter_epsilon(history, order=order, delta=terms.delta))
    if not spent <= terms.budget * SLACK:
        raise LedgerError(
            f"Account {balance.account} does not add up: it spent epsilon {spent:.4f} and its owner allowed "
            f"{terms.budget:.4f} (delta {terms.delta:g})."
        )
