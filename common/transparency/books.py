"""What a ledger's entries add up to, account by account.

The same rules are applied when an entry is about to be written and when a stranger reads it: an entry that breaks one
raises ValueError and changes nothing.
"""

from dataclasses import dataclass, field
from typing import get_args

from common.privacy.events import History, Unit
from common.transparency.entries import PLAN_ROUND, Approval, Audit, Entry, Opening, Refuse, Reserve, Settle, Terms

OrderKey = tuple[int, int]  # round, attempt


@dataclass(kw_only=True)
class Run:
    """One run on one account.

    Args:
        events: what one participation does.
        admitted: how many participations were reserved.
        charged: how many began.
        is_closed: whether the run is over; what it did not use is free again.
        opened: when, in milliseconds since 1970.
        unsettled: orders of which nothing was heard yet; they are charged.
        seen: all orders ever reserved.
    """

    events: History
    admitted: int
    opened_ms: int
    charged: int = 0
    is_closed: bool = False
    unsettled: set[OrderKey] = field(default_factory=set)
    seen: set[OrderKey] = field(default_factory=set)

    def history(self, participations: int) -> History:
        """Return the events of so many participations."""
        return tuple(event.times(participations) for event in self.events) if participations else ()


@dataclass(kw_only=True)
class Account:
    """One account: the owner's terms, then and now, and every run."""

    terms: list[Terms]
    runs: dict[str, Run] = field(default_factory=dict)
    refusals: list[Refuse] = field(default_factory=list)
    audits: list[Audit] = field(default_factory=list)
    approvals: list[Approval] = field(default_factory=list)
    terms_at_last_charge: Terms | None = None

    def spent(self) -> History:
        """Return all that was charged."""
        return tuple(event for run in self.runs.values() for event in run.history(run.charged))

    def held(self) -> History:
        """Return all that was charged or may still be, by runs that are not over."""
        return tuple(
            event
            for run in self.runs.values()
            for event in run.history(run.charged if run.is_closed else max(run.admitted, run.charged))
        )


def _covers(event: Unit, account: Unit) -> bool:
    """Whether what protects one unit protects the other: a person has records, a client has persons."""
    units = get_args(Unit)  # from the smallest on
    return units.index(event) >= units.index(account)


class Books:
    """All accounts of a ledger.

    Guarantees:
        An order is charged when it is reserved, and nothing that follows takes that back.
        No event protects less than the account's unit.
        An account's run is never charged more often than was reserved for it, nor for other events.
        The same order (account, run, round, attempt) is reserved once.
        Sequence numbers have no gap and time does not run backwards.
    """

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        self.size = 0
        self.time_ms = 0

    def apply(self, entry: Entry) -> None:
        """Add an entry, or raise ValueError and stay as before."""
        if entry.sequence != self.size:
            raise ValueError(f"expected sequence {self.size}, got {entry.sequence}")
        if entry.time_ms < self.time_ms:
            raise ValueError(f"time runs backwards, from {self.time_ms} to {entry.time_ms}")
        match entry:
            case Opening():
                self._open(entry)
            case Reserve():
                self._reserve(entry)
            case Settle():
                self._settle(entry)
            case Refuse():
                self._account(entry).refusals.append(entry)
            case Audit():
                self._account(entry).audits.append(entry)
            case Approval():
                self._account(entry).approvals.append(entry)
        self.size, self.time_ms = entry.sequence + 1, entry.time_ms

    def _open(self, entry: Opening) -> None:
        if entry.is_change:
            self._change(self._account(entry), entry.terms)
        elif entry.account in self.accounts:
            raise ValueError(f"account {entry.account} is opened a second time")
        else:
            self.accounts[entry.account] = Account(terms=[entry.terms])

    def _change(self, account: Account, terms: Terms) -> None:
        if terms.lineage != account.terms[-1].lineage:
            raise ValueError(f"lineage: the account is about {account.terms[-1].lineage}; another needs one of its own")
        narrower = [event.unit for event in account.held() if not _covers(event.unit, terms.unit)]
        if narrower:
            raise ValueError(f"unit: what was charged so far protects a {narrower[0]} and no {terms.unit}")
        account.terms.append(terms)

    def _reserve(self, entry: Reserve) -> None:
        account = self._account(entry)
        if entry.policy != account.terms[-1].policy:
            raise ValueError("policy: it is not the one in force")
        narrower = [event.unit for event in entry.events if not _covers(event.unit, account.terms[-1].unit)]
        if narrower:
            raise ValueError(f"events: unit {narrower[0]} does not protect the account's {account.terms[-1].unit}")
        if entry.round == PLAN_ROUND:
            if entry.run in account.runs:
                raise ValueError(f"run {entry.run} is reserved a second time")
            account.runs[entry.run] = Run(events=entry.events, admitted=entry.participations, opened_ms=entry.time_ms)
            return
        run = self._run(entry)
        key = (entry.round, entry.attempt)
        if run.is_closed:
            raise ValueError(f"run {entry.run} is over")
        if key in run.seen:
            raise ValueError(f"round {entry.round}, attempt {entry.attempt} is reserved a second time")
        if entry.participations != 1 or entry.events != run.events:
            raise ValueError("events: they are not one participation of the run")
        if run.charged >= run.admitted:
            raise ValueError(f"run {entry.run} was reserved for {run.admitted} participations, and this is one more")
        run.charged += 1
        run.seen.add(key)
        run.unsettled.add(key)
        account.terms_at_last_charge = account.terms[-1]

    def _settle(self, entry: Settle) -> None:
        run = self._run(entry)
        if entry.round == PLAN_ROUND:
            if run.is_closed or run.unsettled or entry.type != "COMMIT" or entry.participations != run.charged:
                raise ValueError(f"run {entry.run} cannot be closed with {entry.participations} participations")
            run.is_closed = True
            return
        key = (entry.round, entry.attempt)
        if key not in run.unsettled or entry.participations != 1:
            raise ValueError(f"round {entry.round}, attempt {entry.attempt} is not waiting to be settled")
        run.unsettled.remove(key)

    def _account(self, entry: Entry) -> Account:
        if entry.account not in self.accounts:
            raise ValueError(f"account {entry.account} was never opened")
        return self.accounts[entry.account]

    def _run(self, entry: Reserve | Settle) -> Run:
        run = self._account(entry).runs.get(entry.run)
        if run is None:
            raise ValueError(f"run {entry.run} has reserved nothing on account {entry.account}")
        return run
