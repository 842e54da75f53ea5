"""What a node answers: to orders, to proposals, and when a run is over.

Whatever goes wrong is one signed word. What is looked at before an order is obeyed: the bundle that came with its run,
the coordinator's signature, the policy it was made for, whose it is, a person's approval, and what was answered before.
"""

import logging
import time
from dataclasses import dataclass
from pathlib import Path

from client import policy as policies
from client.node import orders
from client.node.approvals import Approvals, Proposed
from client.node.connection import StoppedError
from client.node.journal import Journal
from client.node.letters import Letter, Reply
from client.node.membership import Standing
from client.node.orders import RunFacts, SealedOrder, SealedQuestion
from client.node.training import Worker
from client.node.work import End, Propose, Train, Trained
from client.policy import Policy
from common import bundle
from common.consortium import seals
from common.errors import DiscreetError, RefusedError, WireError
from common.messages import Order, Refusal

log = logging.getLogger("discreet.node")

NO_DIGEST = "0" * 64  # of a message in which nothing could be signed


@dataclass(frozen=True, kw_only=True)
class Desk:
    """What answers are worked out with.

    Args:
        policy: the owner's file, read anew for each message.
        journal: what was answered before.
        approvals: what people decided.
        worker: who trains.
    """

    policy: Path
    journal: Journal
    approvals: Approvals
    worker: Worker


class Answers:
    """Works out the answer to each message.

    Guarantees:
        A bundle that is not allowed is refused before the order that came with it is looked at.
        An order is obeyed only when the coordinator signed it, for this node, this run, this model and this policy.
        No text of an exception leaves: a refusal is one word of `Refusal`, signed.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def reply(self, letter: Letter, run: RunFacts, standing: Standing) -> Reply:
        """Return the answer to a message; StoppedError when the node is to stop meanwhile."""
        try:
            sealed = orders.question_in(letter) if letter.kind == "query" else orders.order_in(letter)
            statement = sealed.statement(standing, run)
        except WireError as error:
            return malformed(error, standing)
        try:
            if isinstance(sealed, SealedQuestion):
                return self._question(sealed, statement, run, standing)
            return self._order(sealed, statement, run, standing)
        except StoppedError:
            raise
        except RefusedError as error:
            log.warning("refused: %s", error)
            word = error.word
        except DiscreetError as error:
            log.error("refused: %s", error)  # noqa: TRY400 - our own sentence, no trace
            word = Refusal.NOT_RECORDED
        except Exception:
            log.exception("refused: it failed")
            word = Refusal.FAILED
        return orders.refusal(word, standing=standing, order=seals.digest(statement))

    def _order(self, sealed: SealedOrder, statement: bytes, run: RunFacts, standing: Standing) -> Reply:
        """Carry out an order, or raise RefusedError."""
        digest = seals.digest(statement)
        policy = policies.load(self._desk.policy)
        bundle.refuse_unfit(run.bundle, allowed=policy.limits.bundles)
        orders.refuse_forged(statement, sealed.signature, standing)
        if sealed.policy != policy.digest:
            raise RefusedError(Refusal.OUTSIDE_POLICY, "the order was made for another policy than the present one")
        order = _opened(sealed)
        if order.client != standing.position:
            raise RefusedError(Refusal.NOT_IN_PLAN, f"the order is for client {order.client}, not {standing.position}")
        self._refuse_unapproved(policy, order.run, run)
        known = self._desk.journal.answered(order, digest)
        if known is not None:
            log.info("run %s, round %d: answered before, the same report is sent again", order.run[:8], order.round)
            return known.reply()
        begun = time.monotonic()
        self._train(order, digest, sealed, run, standing)
        log.info("run %s, round %d: trained in %.2f s", order.run[:8], order.round, time.monotonic() - begun)
        report = self._desk.journal.answered(order, digest)
        if report is None:
            raise RefusedError(Refusal.FAILED, "the report is not in the journal")
        return report.reply()

    def _train(self, order: Order, digest: str, sealed: SealedOrder, run: RunFacts, standing: Standing) -> None:
        """Have an order trained, and its signed report stored before the ledger says so."""

        def keep(trained: Trained) -> None:
            code = self._desk.worker.ready().code
            report = orders.report(
                trained.scalars, trained.update, standing=standing, order=digest, policy=sealed.policy, code=code
            )
            self._desk.journal.keep(order, digest, report)

        self._desk.worker.train(Train(scalars=sealed.scalars, weights=sealed.weights, scenario=run.scenario), keep=keep)

    def _question(self, sealed: SealedQuestion, statement: bytes, run: RunFacts, standing: Standing) -> Reply:
        """Answer a question, or raise RefusedError."""
        orders.refuse_forged(statement, sealed.signature, standing)
        fields: dict[str, str | int] = {"run": sealed.run}
        if sealed.kind == "end":
            self._desk.worker.end(End(run=sealed.run))
            self._desk.journal.forget(sealed.run)
            log.info("run %s is over", sealed.run[:8])
        else:
            policy = policies.load(self._desk.policy)
            refusal, units = self._objection(policy, sealed.run, run, standing)
            log.info("run %s was proposed: %s", sealed.run[:8], refusal.value if refusal else "this node takes part")
            fields |= {
                "records": units or policy.data.records,
                "policy": policy.digest,
                "code": self._desk.worker.ready().code,
                "refusal": refusal.value if refusal else "",
            }
        return orders.answer(fields, standing=standing, question=seals.digest(statement))

    def _objection(self, policy: Policy, name: str, run: RunFacts, standing: Standing) -> tuple[Refusal | None, int]:
        """What stands against a run: its bundle, the policy, the budget, a person; and its N, 0 where unknown."""
        units = 0
        try:
            bundle.refuse_unfit(run.bundle, allowed=policy.limits.bundles)
            offered = self._desk.worker.propose(Propose(run=name, scenario=run.scenario))
            units = offered.units
            if offered.refusal is not None:
                return offered.refusal, units
            if policy.limits.approval:
                self._desk.approvals.note(
                    Proposed(
                        run=name,
                        purpose=offered.purpose,
                        scenario=run.scenario,
                        coordinator=standing.coordinator.name,
                        asked=time.time(),
                    )
                )
            self._refuse_unapproved(policy, name, run)
        except RefusedError as error:
            log.warning("run %s: %s", name[:8], error)
            return error.word, units
        return None, units

    def _refuse_unapproved(self, policy: Policy, name: str, run: RunFacts) -> None:
        """Raise RefusedError unless a person approved this scenario of this run, where the policy asks for it."""
        if policy.limits.approval:
            word = self._desk.approvals.refusal(name, run.digest)
            if word is not None:
                raise RefusedError(word, f"run {name}: see `discreet runs`, then approve or refuse it")


def malformed(error: WireError, standing: Standing) -> Reply:
    """Return the answer to a message in which there is nothing to be found."""
    log.warning("refused: a message does not decode: %s", error)
    return orders.refusal(Refusal.MALFORMED, standing=standing, order=NO_DIGEST)


def _opened(sealed: SealedOrder) -> Order:
    try:
        return sealed.opened()
    except WireError as error:
        raise RefusedError(Refusal.MALFORMED, str(error)) from error
