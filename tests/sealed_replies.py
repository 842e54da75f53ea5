"""Organisations that sign, for tests of the coordinator: what they answer, and what a liar makes of it."""

from hashlib import sha256

import numpy as np
from fake_grid import FakeGrid
from flwr.app import Message

from common.consortium import seals
from common.consortium.identity import Identity
from common.letters import letter
from common.messages import Report
from common.packing import unpacked
from common.wire import encode_report
from server.coordinator.parties import Parties

CODE = "c" * 64


class MailGrid(FakeGrid):
    """A grid between coordinator and organisations: it looks into no message."""

    def push_messages(self, messages):
        ids = []
        for message in messages:
            ids.append(str(next(self._ids)))
            message.metadata.__dict__["_message_id"] = ids[-1]
            answer = self._answer(message)
            self._ready += [] if answer is None else [answer]
        return ids


def report_to(order: Message, parties: Parties, party: int, signer: Identity, *, update_P=None) -> Message:
    """Answer an order as the organisation does: a report, signed."""
    asked = unpacked(order.content["letter"])[0]["order"]
    update_P = np.ones(3, np.float32) if update_P is None else update_P
    report = Report(
        run=asked["run"], round=asked["round"], attempt=asked["attempt"], client=asked["client"], update_P=update_P
    )
    frame = encode_report(report)
    statement = seals.report_statement(
        roster=parties.roster.digest,
        consortium=parties.roster.consortium,
        sender=signer.name,
        order=seals.digest(order_statement(order, parties, party)),
        policy=parties.policies[party],
        code=CODE,
        scalars=frame.scalars,
        update=sha256(np.ascontiguousarray(update_P, "<f4").tobytes()).hexdigest(),
    )
    seal = {"signature": seals.seal(signer.signer, statement), "policy": parties.policies[party], "code": CODE}
    update = np.ascontiguousarray(update_P, "<f4").tobytes()
    return Message(letter({"report": frame.scalars, "seal": seal}, {"update": update}), reply_to=order)


def refusal_to(order: Message, parties: Parties, party: int, signer: Identity, word: str) -> Message:
    """Answer an order as the organisation does when it will not: one word, signed."""
    statement = seals.refusal_statement(
        roster=parties.roster.digest,
        consortium=parties.roster.consortium,
        sender=signer.name,
        order=seals.digest(order_statement(order, parties, party)),
        word=word,
    )
    seal = {"signature": seals.seal(signer.signer, statement)}
    return Message(letter({"refusal": {"word": word}, "seal": seal}, {}), reply_to=order)


def order_statement(order: Message, parties: Parties, party: int) -> bytes:
    """What the coordinator must have signed of this order."""
    records, arrays = unpacked(order.content["letter"])
    return parties.order(party, scalars=records["order"], weights=sha256(arrays["weights"]).hexdigest())
