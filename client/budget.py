"""Admission: no record is read before its charge is on disk.

Within a run the plan was proved once, so that admitting an order is a comparison of whole numbers: how often this
account took part, against the plan's bound. No accountant is asked, and no torch is imported.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from common.messages import Order, Refusal
from common.privacy.event_log import Entry, EventLog
from common.privacy.plan import Plan
from common.privacy.plan_file import from_json_text


def account_name(client: int) -> str:
    """Return the name of a client's account in the event log."""
    return f"client-{client:06d}"


class Budget:
    """The accounts of the clients behind one event log.

    Guarantees:
        When `reserve` returns None for an order, its charge survives a crash.
        An order that differs from the plan in any number is refused.
        An account is never charged more often than the plan reserved, whatever is asked, in whatever order.
        The same order asked twice is refused the second time.
    """

    def __init__(self, plan: Plan, log: EventLog) -> None:
        """Count what the log already holds."""
        self._plan, self._log = plan, log
        self._spent = Counter(entry.account for entry in log.entries)
        self._seen = {(entry.run, entry.round, entry.attempt, entry.account) for entry in log.entries}

    @classmethod
    def open(cls, plan: Path, events: Path) -> "Budget":
        """Open a budget from its two files; OSError, ValueError, KeyError or TypeError when the plan does not read."""
        return cls(from_json_text(plan.read_text()), EventLog(events))

    def close(self) -> None:
        """Let go of the event log."""
        self._log.close()

    def reserve(self, orders: Sequence[Order]) -> list[Refusal | None]:
        """Charge all orders that the plan allows, in one durable write; for each, None or why not."""
        answers: list[Refusal | None] = []
        entries: list[Entry] = []
        for order in orders:
            refusal = self._refusal(order)
            answers.append(refusal)
            if refusal is None:
                entry = self._entry(order)
                entries.append(entry)
                self._spent[entry.account] += 1
                self._seen.add((entry.run, entry.round, entry.attempt, entry.account))
        self._log.append(entries)
        return answers

    def _refusal(self, order: Order) -> Refusal | None:
        plan = self._plan
        if order.run != plan.run or order.client >= len(plan.account_of) or plan.unit != "record":
            return Refusal.NOT_IN_PLAN
        if order.mechanism != plan.mechanism(order.client) or order.max_update_norm is not None:
            return Refusal.NOT_IN_PLAN
        name = account_name(order.client)
        if (order.run, order.round, order.attempt, name) in self._seen:
            return Refusal.ALREADY_TRAINED
        if self._spent[name] >= plan.account(order.client).reserved:
            return Refusal.BUDGET_SPENT
        return None

    def _entry(self, order: Order) -> Entry:
        return Entry(
            run=order.run,
            round=order.round,
            attempt=order.attempt,
            account=account_name(order.client),
            event=self._plan.account(order.client).event,
        )
