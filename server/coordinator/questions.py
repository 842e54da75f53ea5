"""Questions to organisations: what they would bring to a run, and that it is over.

    offer   each organisation declares its number of records, its policy's digest, and whether it would take part
    end     each one closes the run in its ledger: what it reserved and did not use is free again

An answer that its sender did not sign is an answer that did not come.
"""

import logging
import time
from collections.abc import Collection, Mapping
from typing import cast

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from common.consortium import seals
from common.errors import WireError
from common.letters import letter, opened
from common.messages import Offer, Refusal
from server.coordinator.parties import Parties, QuestionKind

log = logging.getLogger("discreet.server")

POLL_S = 0.05
AGAIN_S = 20.0  # who has not answered by then is asked again
PAUSE_S = 1.0

Fields = dict[str, str | int]


def offers(grid: Grid, parties: Parties, *, run: str, wait_s: float) -> dict[int, Offer]:
    """Ask all organisations what they would bring, for as long as `wait_s`, and return what was answered."""
    found: dict[int, Offer] = {}
    deadline = time.monotonic() + wait_s
    while (open_ := _open(parties, found)) and (left := deadline - time.monotonic()) > 0:
        for party, fields in _ask(grid, parties, open_, kind="offer", run=run, wait_s=min(left, AGAIN_S)).items():
            try:
                found[party] = _offer(fields, run=run)
            except (WireError, KeyError, ValueError) as error:
                log.warning("%s: the offer does not read: %s", parties.owners[party].name, error)
        if _open(parties, found):
            time.sleep(min(PAUSE_S, max(0.0, deadline - time.monotonic())))
    return found


def _open(parties: Parties, found: Mapping[int, Offer]) -> list[int]:
    """Who has not answered, or waits for its officer."""
    return [
        party
        for party in range(len(parties.owners))
        if party not in found or found[party].refusal is Refusal.AWAITS_APPROVAL
    ]


def end(grid: Grid, parties: Parties, *, run: str, wait_s: float) -> None:
    """Tell all organisations that a run is over; who does not hear it keeps its reservation until it closes it."""
    told = _ask(grid, parties, range(len(parties.owners)), kind="end", run=run, wait_s=wait_s)
    for party, owner in enumerate(parties.owners):
        if party not in told:
            log.warning("%s was not told that the run is over; it may say: discreet ledger close", owner.name)


def _ask(
    grid: Grid, parties: Parties, who: Collection[int], *, kind: QuestionKind, run: str, wait_s: float
) -> dict[int, Fields]:
    """Send a question and return the answers that were signed by those who were asked."""
    statements = {party: parties.question(party, kind=kind, run=run) for party in who}
    messages = [_question(parties, party, statements[party], kind=kind, run=run, ttl_s=wait_s) for party in who]
    names = dict(zip(grid.push_messages(messages), who, strict=True))
    waiting = {name: party for name, party in names.items() if name}
    answers: dict[int, Fields] = {}
    deadline = time.monotonic() + wait_s
    while waiting and time.monotonic() < deadline:
        came = list(grid.pull_messages(list(waiting)))
        for reply in came:
            party = waiting.pop(reply.metadata.reply_to_message_id)
            try:
                answers[party] = _checked(parties, party, reply, question=statements[party])
            except (WireError, KeyError, TypeError) as error:
                log.warning("%s does not answer: %s", parties.owners[party].name, error)
        if not came:
            time.sleep(POLL_S)
    return answers


def _question(parties: Parties, party: int, statement: bytes, *, kind: QuestionKind, run: str, ttl_s: float) -> Message:
    seal = {"signature": seals.seal(parties.signer, statement)}
    content = letter({"question": {"kind": kind, "run": run}, "seal": seal}, {})
    return Message(content, parties.nodes[party], MessageType.QUERY, ttl=max(ttl_s, 1.0), group_id=kind)


def _checked(parties: Parties, party: int, reply: Message, *, question: bytes) -> Fields:
    """The fields of an answer, or WireError when it is not what its sender signed."""
    if reply.has_error():
        raise WireError(str(reply.error.reason))
    records, _ = opened(reply.content)
    if "refusal" in records:
        raise WireError(f"it refuses the question: {records['refusal'].get('word')!s:.40}")
    fields, signature = records["answer"], records["seal"]["signature"]
    if not isinstance(signature, bytes) or not all(isinstance(value, str | int) for value in fields.values()):
        raise WireError("expected texts and whole numbers under a signature")
    plain = cast(Fields, fields)
    parties.refuse_unsealed_answer(party, signature, question=question, fields=plain)
    return plain


def _offer(fields: Fields, *, run: str) -> Offer:
    if fields["run"] != run:
        raise WireError(f"expected an offer for {run}, got one for another run")
    word, records = fields["refusal"], fields["records"]
    if not isinstance(records, int):
        raise WireError("records: expected a whole number")
    return Offer(
        run=run,
        records=records,
        policy=str(fields["policy"]),
        code=str(fields["code"]),
        refusal=Refusal(word) if word else None,
    )
