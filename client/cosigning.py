"""No step without the witness that the policy names: it has cosigned the ledger, or nothing is done."""

import logging
import time
from typing import Protocol

from client.policy import Limits
from common.errors import RefusedError, WitnessDownError, WitnessError
from common.ledger import Ledger
from common.messages import Refusal

log = logging.getLogger("discreet.owner")

WAIT_S = 600.0
_BLIP_S = 1.0  # a witness that is back so soon was not down
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 10.0


class Cosigner(Protocol):
    """Who cosigns a ledger: `client.witness.Witness`."""

    name: str

    def cosign(self, ledger: Ledger) -> None:
        """Have the newest checkpoint cosigned, or raise WitnessError."""


def refuse_unwitnessed(ledger: Ledger, *, limits: Limits, witness: Cosigner | None, wait_s: float) -> None:
    """Have the ledger cosigned by the witness that the policy names; RefusedError when it does not.

    Edge cases:
        the policy names nobody     nothing is asked
        nobody of that name to ask  refused
        it does not answer          asked again for `wait_s` where the policy waits, for a second where it refuses
        it has seen another ledger  refused at once
    """
    asked = _asked(limits, witness)
    if asked is None:
        return
    try:
        _patiently(asked, ledger, patience_s=wait_s if limits.witness_down == "wait" else _BLIP_S)
    except WitnessError as error:
        raise RefusedError(Refusal.NOT_WITNESSED, str(error)) from error


def refuse_unwitnessable(ledger: Ledger, *, limits: Limits, witness: Cosigner | None) -> None:
    """Ask once, for what is to come: a witness that is down is no refusal where the policy would wait."""
    asked = _asked(limits, witness)
    if asked is None:
        return
    try:
        asked.cosign(ledger)
    except WitnessError as error:
        if not isinstance(error, WitnessDownError) or limits.witness_down == "refuse":
            raise RefusedError(Refusal.NOT_WITNESSED, str(error)) from error


def _asked(limits: Limits, witness: Cosigner | None) -> Cosigner | None:
    """The witness that the policy names; None where it names nobody."""
    if not limits.witness:
        return None
    if witness is None or witness.name != limits.witness:
        got = "none" if witness is None else repr(witness.name)
        raise RefusedError(Refusal.NOT_WITNESSED, f"witness: expected {limits.witness!r} to cosign, got {got} to ask")
    return witness


def _patiently(witness: Cosigner, ledger: Ledger, *, patience_s: float) -> None:
    """Have a ledger cosigned, and ask again while the witness is down, until the patience is over.

    A line is written when the waiting begins and when it was worth it, and none for an attempt.
    """
    end, pause_s, waits = time.monotonic() + patience_s, _FIRST_PAUSE_S, False
    while True:
        try:
            witness.cosign(ledger)
        except WitnessDownError as error:
            left_s = end - time.monotonic()
            if left_s <= 0:
                raise
            if left_s > _BLIP_S and not waits:
                log.warning("waiting up to %.0f s for witness %s: %s", left_s, witness.name, error)
                waits = True
            time.sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        else:
            if waits:
                log.warning("witness %s answers again", witness.name)
            return
