"""Who takes part in a run, from what they offered."""

import logging
from collections.abc import Mapping
from pathlib import Path

from common.consortium.members import Roster
from common.errors import RunFailedError
from common.messages import Offer
from server.coordinator import run_record
from server.coordinator.run_record import Organisation

log = logging.getLogger("discreet.server")


def taking_part(folder: Path, known: Roster, offered: Mapping[int, Offer]) -> tuple[Organisation, ...]:
    """Return who takes part, and keep it in the run's folder.

    Raises:
        RunFailedError: somebody is missing, everybody would refuse, or the run was begun by others.
    """
    names = [owner.name for owner in known.owners]
    before = _before(folder, names)
    missing = [name for party, name in enumerate(names) if party not in offered and name not in before]
    if missing:
        raise RunFailedError(
            f"No answer from {', '.join(missing)}. Are they joined (`discreet join`)? Continue with: discreet run "
            f"--resume {folder}"
        )
    _refuse_if_all_refuse(folder, names, offered)
    made = tuple(
        Organisation(name=name, records=offer.records, policy=offer.policy, code=offer.code)
        if (offer := offered.get(party)) is not None
        else before[name]
        for party, name in enumerate(names)
    )
    for one in made:
        if one.name in before and before[one.name].records != one.records:
            raise RunFailedError(
                f"{one.name} declared {before[one.name].records} records when the run was planned, and now "
                f"{one.records}. Start a new run."
            )
    run_record.write_organisations(folder, made)
    return made


def _before(folder: Path, names: list[str]) -> dict[str, Organisation]:
    """Who took part before the run was interrupted; nobody for a new one."""
    if not (folder / run_record.ORGANISATIONS).exists():
        return {}
    before = {one.name: one for one in run_record.organisations_in(folder)}
    if list(before) != names:
        raise RunFailedError(
            f"{folder}: the run was begun by {', '.join(before)}, and the roster has {', '.join(names)}. Start a new "
            f"run."
        )
    return before


def _refuse_if_all_refuse(folder: Path, names: list[str], offered: Mapping[int, Offer]) -> None:
    refused = {party: offer.refusal for party, offer in offered.items() if offer.refusal is not None}
    for party, word in refused.items():
        log.warning("%s will refuse: %s", names[party], word.value)
    if len(refused) == len(names):
        words = ", ".join(f"{names[party]}: {word.value}" for party, word in refused.items())
        raise RunFailedError(
            f"Every organisation refused ({words}). Nothing was trained. When they allow it, continue with: discreet "
            f"run --resume {folder}"
        )
