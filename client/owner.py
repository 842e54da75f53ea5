"""A data owner that decides alone: its policy, its ledger, its witness, and what a coordinator asks.

The coordinator's scenario and order are a proposal. The owner works out from its own declared number of records what
the scenario means for it, and takes no figure of the coordinator's on trust.

    with owner.charged(order, scenario) as watch:    charged, durable and cosigned: only now may a record be read
        report = trainer.train(order, shard)         beside them canaries, where there is a watch (`client.live`)

Where the policy names a witness, it has cosigned the ledger before anything is written to it, since one charge on a
copy from yesterday would fork it, and again after the charge, before anything is read.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from client import policy as policies
from client.budget import Agreement, Budget, agreements
from client.cosigning import WAIT_S, Cosigner, refuse_unwitnessable, refuse_unwitnessed
from client.live.room import room_in
from client.live.watch import Watch, watched
from client.policy import Policy
from client.proposals import objections, objections_without_privacy, proposed
from common.config import Scenario
from common.errors import DiscreetError, RefusedError
from common.ledger import Ledger
from common.messages import Order, Refusal
from common.privacy.plan import Plan, make_plan
from common.transparency.drafts import Charge
from common.transparency.entries import PLAN_ROUND, Terms
from common.transparency.provenance import provenance

log = logging.getLogger("discreet.owner")


@dataclass(frozen=True, kw_only=True)
class _Claim:
    """What a run asks of this owner, and why it may not; no reasons if it may."""

    agreement: Agreement
    reasons: tuple[str, ...]


class Owner:
    """One policy and one ledger; LedgerError or PolicyError when either does not read.

    Guarantees:
        An order is carried out as proposed or refused; the word that leaves is one of `Refusal`.
        Whatever is outside the policy is refused before anything is charged.
        Where the policy names a witness nothing is written, and nothing read, unless it has cosigned the ledger so far.
    """

    def __init__(
        self,
        *,
        policy: Path,
        ledger: Path,
        memory: Path | None = None,
        witness: Cosigner | None = None,
        wait_s: float = WAIT_S,
    ) -> None:
        """Read the policy and open the ledger.

        Args:
            policy: the owner's policy file.
            ledger: the owner's ledger.
            memory: a file, best on another disk, that keeps the newest checkpoint: an older copy is refused.
            witness: the one that the policy names; None where there is none to ask.
            wait_s: how long a witness that is down is waited for, where the policy says so.
        """
        self._policy = policies.load(policy)
        self._terms = terms_of(self._policy)
        self._ledger = _opened(ledger, memory, os.getpid())
        self._witness, self._wait_s = witness, wait_s

    @property
    def name(self) -> str:
        """The owner's, as its policy says."""
        return self._policy.owner

    def units(self, scenario: Scenario) -> int:
        """Return N of a run: the declared, public number of records, or of persons, and of canaries beside them."""
        return self._policy.units(room_in(scenario))

    @property
    def policy_digest(self) -> str:
        """SHA-256 of the policy, hexadecimal."""
        return self._policy.digest

    @contextmanager
    def charged(self, order: Order, scenario: Scenario) -> Iterator[Watch | None]:
        """Charge an order before what stands within is done, and settle it after; RefusedError when it is refused.

        What fails within stays charged in full, and so does what no witness cosigned. Coins are on the disk before.
        """
        if scenario.privacy.unit != "record":
            self._refuse_unprotected(scenario)
            log.warning("run %s, round %d: trains WITHOUT privacy; nothing is charged", order.run, order.round)
            yield None
            return
        with _recorded():
            self._refuse_unwitnessed()
            budget = self._budget(order, scenario)
            watch = self._watch(order.run, scenario)
            (refusal,) = budget.reserve([order])
        if refusal is not None:
            raise RefusedError(refusal)
        try:
            with _recorded():
                self._refuse_unwitnessed()
            yield watch
        except BaseException:
            budget.settle([], [order])
            raise
        budget.settle([order])

    def offer(self, scenario: Scenario, run: str) -> Refusal | None:
        """Return what would be answered to this run's next order; nothing is charged, and no record read.

        A witness that is down is no refusal where the policy would wait for it.
        """
        try:
            if scenario.privacy.unit != "record":
                self._refuse_unprotected(scenario)
                return None
            with _recorded():
                self._foresee(scenario, run)
        except RefusedError as error:
            log.warning("run %s would be refused: %s", run, error)
            return error.word
        return None

    def end(self, run: str) -> None:
        """Close a run: what it did not use is free again. RefusedError when that cannot be written."""
        with _recorded():
            held = [account.runs[run] for account in self._ledger.books.accounts.values() if run in account.runs]
            if all(one.is_closed for one in held):
                return
            refuse_unwitnessed(self._ledger, limits=self._policy.limits, witness=self._witness, wait_s=0)
            self._ledger.end_run(run)
        with suppress(RefusedError):  # at the latest the next charge has this entry cosigned
            refuse_unwitnessed(self._ledger, limits=self._policy.limits, witness=self._witness, wait_s=0)

    def _refuse_unprotected(self, scenario: Scenario) -> None:
        reasons = objections_without_privacy(
            self._policy,
            unit=scenario.privacy.unit,
            model=scenario.model.name,
            cohort=scenario.server.cohort,
            metrics=scenario.privacy.metrics,
            code=provenance().code,
        )
        if reasons:
            raise RefusedError(Refusal.OUTSIDE_POLICY, "; ".join(reasons))

    def _foresee(self, scenario: Scenario, run: str) -> None:
        """Raise what an order would meet, RefusedError among others."""
        refuse_unwitnessable(self._ledger, limits=self._policy.limits, witness=self._witness)
        claim = self._claim(scenario, run)
        if claim.reasons:
            raise RefusedError(Refusal.OUTSIDE_POLICY, "; ".join(claim.reasons))
        agreement = claim.agreement
        next_order = Charge(account=agreement.account, run=run, round=1, attempt=0, events=agreement.events)
        terms = {agreement.account: self._terms}
        word = self._ledger.foreseen(terms, next_order, wanted=agreement.participations)
        if word is not None:
            raise RefusedError(word)

    def _budget(self, order: Order, scenario: Scenario) -> Budget:
        """The claim of the order's run on this owner's account; reserved when its first order comes."""
        claim = self._claim(scenario, order.run)
        self._refuse_outside(claim, order.run)
        account = claim.agreement.account
        budget = Budget(self._ledger, run=order.run, agreements={order.client: claim.agreement})
        known = self._ledger.books.accounts.get(account)
        if known is None or order.run not in known.runs or known.terms[-1] != self._terms:
            budget.begin({account: self._terms})
        return budget

    def _claim(self, scenario: Scenario, run: str) -> _Claim:
        plan = _plan(scenario, self.units(scenario), run)
        (agreement,) = agreements(plan, [self._policy.data.lineage]).values()
        return _Claim(agreement=agreement, reasons=objections(self._policy, proposed(scenario, plan)))

    def _watch(self, run: str, scenario: Scenario) -> Watch | None:
        """The run's canaries; none where nothing of it was admitted: a flood of runs fills no disk."""
        if (held := self._ledger.books.accounts[self._policy.data.lineage].runs.get(run)) is None:
            return None
        return watched(self._policy, scenario, run, ledger=self._ledger.path, is_begun=held.charged > 0)

    def _refuse_outside(self, claim: _Claim, run: str) -> None:
        if not claim.reasons:
            return
        account, events = claim.agreement.account, claim.agreement.events
        self._ledger.open_accounts({account: self._terms})
        refused = Charge(account=account, run=run, round=PLAN_ROUND, attempt=1, events=events)
        self._ledger.refuse(refused, Refusal.OUTSIDE_POLICY)
        raise RefusedError(Refusal.OUTSIDE_POLICY, "; ".join(claim.reasons))

    def _refuse_unwitnessed(self) -> None:
        refuse_unwitnessed(self._ledger, limits=self._policy.limits, witness=self._witness, wait_s=self._wait_s)


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


@contextmanager
def _recorded() -> Iterator[None]:
    """Whatever keeps the ledger from being read or written is one word; what was refused stays refused."""
    try:
        yield
    except RefusedError:
        raise
    except (DiscreetError, OSError) as error:
        raise RefusedError(Refusal.NOT_RECORDED, str(error)) from error


@cache
def _opened(ledger: Path, memory: Path | None, pid: int) -> Ledger:
    """The ledger, checked as a whole once in a process; what others write to it is taken up at each use.

    It stays open: a file that is put in its place meanwhile is refused until this process ends.
    """
    del pid  # a connection must not be used after a fork
    return Ledger(ledger, memory=memory)


@lru_cache(maxsize=16)
def _plan(scenario: Scenario, units: int, run: str) -> Plan:
    """What the scenario means for an owner with so many units; what cannot be planned or counted is outside."""
    try:
        return make_plan(scenario, records=(units,), run=run)
    except DiscreetError as error:
        raise RefusedError(Refusal.OUTSIDE_POLICY, str(error)) from error
