"""Who takes part in a run, and how what they say is signed.

A party's number is its place among the roster's owners; the node numbers of Flower stay inside this room.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from common.consortium import seals
from common.consortium.members import Member, Roster
from common.transparency.notes import Signer
from common.wire import Scalar

QuestionKind = Literal["offer", "end"]


@dataclass(frozen=True, kw_only=True)
class Parties:
    """The coordinator and the organisations of one Flower run.

    Args:
        roster: the consortium's.
        signer: the coordinator's signing key.
        flower_run: Flower's number of the run.
        scenario: SHA-256 of the scenario's text, hexadecimal.
        owners: the organisations, in roster order.
        nodes: Flower's number of each one's node.
        policies: SHA-256 of each one's policy, once it was told.
    """

    roster: Roster
    signer: Signer
    flower_run: int
    scenario: str
    owners: tuple[Member, ...]
    nodes: tuple[int, ...]
    policies: Mapping[int, str] = field(default_factory=dict)

    def order(self, party: int, *, scalars: Mapping[str, Scalar], weights: str) -> bytes:
        """Return what is signed of an order."""
        return seals.order_statement(
            roster=self.roster.digest,
            consortium=self.roster.consortium,
            recipient=self.owners[party].name,
            flower_run=self.flower_run,
            scenario=self.scenario,
            policy=self.policies[party],
            scalars=scalars,
            weights=weights,
        )

    def question(self, party: int, *, kind: QuestionKind, run: str) -> bytes:
        """Return what is signed of a question."""
        return seals.question_statement(
            roster=self.roster.digest,
            consortium=self.roster.consortium,
            recipient=self.owners[party].name,
            flower_run=self.flower_run,
            scenario=self.scenario,
            run=run,
            kind=kind,
        )

    def refuse_unsealed_report(
        self, party: int, signature: bytes, *, order: bytes, code: str, scalars: Mapping[str, Scalar], update: str
    ) -> None:
        """Raise WireError unless a party signed this report to this order."""
        statement = seals.report_statement(
            roster=self.roster.digest,
            consortium=self.roster.consortium,
            sender=self.owners[party].name,
            order=seals.digest(order),
            policy=self.policies[party],
            code=code,
            scalars=scalars,
            update=update,
        )
        seals.refuse_unsealed(self.owners[party].key, statement, signature)

    def refuse_unsealed_refusal(self, party: int, signature: bytes, *, order: bytes, word: str) -> None:
        """Raise WireError unless a party signed this refusal of this order."""
        statement = seals.refusal_statement(
            roster=self.roster.digest,
            consortium=self.roster.consortium,
            sender=self.owners[party].name,
            order=seals.digest(order),
            word=word,
        )
        seals.refuse_unsealed(self.owners[party].key, statement, signature)

    def refuse_unsealed_answer(
        self, party: int, signature: bytes, *, question: bytes, fields: Mapping[str, str | int]
    ) -> None:
        """Raise WireError unless a party signed this answer to this question."""
        statement = seals.answer_statement(
            roster=self.roster.digest,
            consortium=self.roster.consortium,
            sender=self.owners[party].name,
            question=seals.digest(question),
            fields=fields,
        )
        seals.refuse_unsealed(self.owners[party].key, statement, signature)
