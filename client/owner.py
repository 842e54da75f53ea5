"""A data owner that decides alone: its policy, its ledger, and what a coordinator asks.

The coordinator's scenario and order are a proposal. The owner works out from its own declared number of records what
the scenario means for it, and takes no figure of the coordinator's on trust.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path

from client import policy as policies
from client.budget import Agreement, Budget, agreements
from client.policy import Policy
from client.proposals import Proposal, objections
from common.config import Scenario
from common.errors import DiscreetError, RefusedError
from common.ledger import Ledger
from common.messages import Order, Refusal
from common.privacy.plan import Plan, make_plan
from common.transparency.drafts import Charge
from common.transparency.entries import PLAN_ROUND, Terms
from common.transparency.provenance import provenance


class Owner:
    """One policy and one ledger; LedgerError or PolicyError when either does not read.

    Guarantees:
        An order is carried out as proposed or refused; the word that leaves is one of `Refusal`.
        Whatever is outside the policy is refused before anything is charged.
    """

    def __init__(self, *, policy: Path, ledger: Path, memory: Path | None = None) -> None:
        """Read the policy and open the ledger.

        Args:
            policy: the owner's policy file.
            ledger: the owner's ledger.
            memory: a file, best on another disk, that keeps the newest checkpoint: an older copy of the ledger that was
                restored meanwhile is refused.
        """
        self._policy = policies.load(policy)
        self._terms = terms_of(self._policy)
        self._ledger = _opened(ledger, memory, os.getpid())

    @contextmanager
    def charged(self, order: Order, scenario: Scenario) -> Iterator[None]:
        """Charge an order before what stands within is done, and settle it after; RefusedError when it is refused.

        What fails within stays charged in full.
        """
        if scenario.privacy.unit != "record":
            raise RefusedError(
                Refusal.OUTSIDE_POLICY, f"the scenario's unit is {scenario.privacy.unit!r}: no own noise"
            )
        try:
            budget = self._budget(order, scenario)
            (refusal,) = budget.reserve([order])
        except RefusedError:
            raise
        except (DiscreetError, OSError) as error:
            raise RefusedError(Refusal.NOT_RECORDED, str(error)) from error
        if refusal is not None:
            raise RefusedError(refusal)
        try:
            yield
        except BaseException:
            budget.settle([], [order])
            raise
        budget.settle([order])

    def _budget(self, order: Order, scenario: Scenario) -> Budget:
        """The claim of the order's run on this owner's account; reserved when its first order comes."""
        plan = _plan(scenario, self._policy.data.records, order.run)
        account = self._policy.data.lineage
        (agreement,) = agreements(plan, [account]).values()
        self._refuse_outside(plan, scenario, order, agreement)
        budget = Budget(self._ledger, run=order.run, agreements={order.client: agreement})
        known = self._ledger.books.accounts.get(account)
        if known is None or order.run not in known.runs or known.terms[-1] != self._terms:
            budget.begin({account: self._terms})
        return budget

    def _refuse_outside(self, plan: Plan, scenario: Scenario, order: Order, agreement: Agreement) -> None:
        proposal = Proposal(
            run=order.run,
            event=plan.accounts[0].event,
            metrics_event=plan.accounts[0].metrics_event,
            participations=agreement.participations,
            max_grad_norm=agreement.mechanism.max_grad_norm,
            model=scenario.model.name,
            cohort=scenario.server.cohort,
            metrics=scenario.privacy.metrics,
            code=provenance().code,
            unit_column=scenario.privacy.unit_column,
        )
        reasons = objections(self._policy, proposal)
        if reasons:
            self._ledger.open_accounts({agreement.account: self._terms})
            refused = Charge(
                account=agreement.account, run=order.run, round=PLAN_ROUND, attempt=1, events=agreement.events
            )
            self._ledger.refuse(refused, Refusal.OUTSIDE_POLICY)
            raise RefusedError(Refusal.OUTSIDE_POLICY, "; ".join(reasons))


def terms_of(policy: Policy) -> Terms:
    """Return the terms that a policy gives its account."""
    return Terms(
        owner=policy.owner,
        lineage=policy.data.lineage,
        version=policy.data.version,
        records=policy.data.records,
        unit=policy.unit,
        adjacency=policy.budget.adjacency,
        delta=policy.budget.delta,
        budget=policy.budget.epsilon,
        policy=policy.digest,
    )


@cache
def _opened(ledger: Path, memory: Path | None, pid: int) -> Ledger:
    """The ledger, checked as a whole once in a process; what others write to it is taken up at each use.

    It stays open: a file that is put in its place meanwhile is refused until this process ends.
    """
    del pid  # a connection must not be used after a fork
    return Ledger(ledger, memory=memory)


@lru_cache(maxsize=16)
def _plan(scenario: Scenario, records: int, run: str) -> Plan:
    """What the scenario means for an owner with so many records; ScenarioError or PlanRefusedError."""
    return make_plan(scenario, records=(records,), run=run)
