"""Admission: no record is read before its charge is on disk.

    budget = Budget(ledger, run=plan.run, agreements=agreements(plan, accounts))
    budget.begin(terms)            the run is reserved, as much of it as fits
    refusals = budget.reserve(orders)
    ...                            train those whose refusal is None
    budget.settle(trained, failed)

How much fits is decided once, when the run begins (`common.privacy.admission`); admitting an order is then a comparison
of whole numbers, made by the ledger under its lock. No torch is imported.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common.ledger import Ledger, Share
from common.messages import Mechanism, Order, Refusal
from common.privacy.admission import Admission
from common.privacy.events import History
from common.privacy.plan import Plan
from common.transparency.drafts import Charge
from common.transparency.entries import Terms


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What a client's orders of one run must be, to the last digit.

    Args:
        account: where they are charged.
        mechanism: how each is made private.
        metrics_noise_multiplier: of the counts that it releases, or None when it releases none.
        events: what one participation does.
        participations: the most that may be asked.
    """

    account: str
    mechanism: Mechanism
    metrics_noise_multiplier: float | None
    events: History
    participations: int


def agreements(plan: Plan, accounts: Sequence[str]) -> dict[int, Agreement]:
    """Return what a plan agrees with each of its clients, whose accounts are named in their order."""
    made = {}
    for client, account in enumerate(accounts):
        mechanism = plan.mechanism(client)
        if mechanism is not None:
            made[client] = Agreement(
                account=account,
                mechanism=mechanism,
                metrics_noise_multiplier=plan.metrics_noise_multiplier(client),
                events=plan.account(client).events,
                participations=plan.account(client).reserved,
            )
    return made


class Budget:
    """One run's claim on the accounts of a ledger.

    Guarantees:
        When `reserve` returns None for an order, its charge survives a crash.
        An order that differs from its agreement in any number is refused.
        No account is charged more often than its ledger admitted, whatever is asked, in whatever order.
        The same order asked twice is refused the second time.
    """

    def __init__(self, ledger: Ledger, *, run: str, agreements: Mapping[int, Agreement]) -> None:
        self._ledger, self._run, self._agreements = ledger, run, agreements

    def begin(self, terms: Mapping[str, Terms]) -> dict[str, Admission]:
        """Open the accounts and reserve the run on them; return what was decided anew."""
        self._ledger.open_accounts(terms)
        shares = {
            made.account: Share(events=made.events, wanted=made.participations) for made in self._agreements.values()
        }
        return self._ledger.begin_run(self._run, shares)

    def reserve(self, orders: Sequence[Order]) -> list[Refusal | None]:
        """Charge all orders that are admitted, in one durable write; for each None, or why not."""
        unfit = [self._differs(order) for order in orders]
        charges = [self._charge(order) for order, refused in zip(orders, unfit, strict=True) if not refused]
        answers = iter(self._ledger.reserve(charges) if charges else ())
        return [Refusal.NOT_IN_PLAN if refused else next(answers) for refused in unfit]

    def settle(self, trained: Sequence[Order], failed: Sequence[Order] = ()) -> None:
        """Say which charged orders were carried out and which were not; both stay charged."""
        self._ledger.settle([self._charge(order) for order in trained], [self._charge(order) for order in failed])

    def end(self) -> None:
        """Close the run: what it did not use is free again."""
        self._ledger.end_run(self._run)

    def _differs(self, order: Order) -> bool:
        agreed = self._agreements.get(order.client)
        return (
            agreed is None
            or order.run != self._run
            or order.mechanism != agreed.mechanism
            or order.metrics_noise_multiplier != agreed.metrics_noise_multiplier
            or order.max_update_norm is not None
        )

    def _charge(self, order: Order) -> Charge:
        agreed = self._agreements[order.client]
        return Charge(
            account=agreed.account, run=order.run, round=order.round, attempt=order.attempt, events=agreed.events
        )
