"""`discreet audited`: does the epsilon of a run survive what the owner's own canaries saw?

Shapes: M canaries, R rounds.

    coins, movements (the notebook) + what the owner's ledger charged -> judge -> audit.json, AUDIT in the ledger
"""

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from client import policy as policies
from client.live.notebook import Movement, Notebook, notebooks_of
from client.node import settings as node_settings
from client.policy import Policy
from common.audit.noting import noted
from common.audit.observations import Claim, Observations
from common.audit.verdict import Findings, judge
from common.errors import BadInputError
from common.files import write_whole
from common.ledger import Ledger
from common.privacy.accounting import bound
from common.privacy.events import SampledGaussian, merged
from common.transparency.entries import PLAN_ROUND, Reserve
from common.transparency.export import read
from common.transparency.provenance import provenance

FILE = "audit.json"


@dataclass(frozen=True, kw_only=True)
class Audited:
    """A run that was audited.

    Args:
        run: its identifier.
        account: where it was charged.
        folder: of its notebook, and of `audit.json`.
        rounds: of which the movements are there.
        charged: rounds, attempts that were lost included.
        findings: the verdict and what it rests on.
    """

    run: str
    account: str
    folder: Path
    rounds: int
    charged: int
    findings: Findings

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        origin = provenance()
        return self.findings.to_json() | {
            "kind": "live",
            "run": self.run,
            "account": self.account,
            "rounds": self.rounds,
            "charged": self.charged,
            "code": origin.code,
            "libraries": dict(origin.libraries),
            "folder": str(self.folder),
        }


def audited(node: Path, policy: Path, run: str) -> Audited:
    """Judge a run by its canaries, and note the verdict in the owner's ledger.

    Guarantees:
        An honest run is refuted with a probability of at most 1e-4.

    Args:
        node: the node's settings.
        policy: the owner's policy file.
        run: the run's identifier, or how it begins; "" for the only one.

    Raises:
        BadInputError: no such run, nothing of it was seen, or too few canaries for its epsilon.
        LedgerError: the ledger is not whole, or cannot be written.
    """
    settings, rules = node_settings.read(node), policies.load(policy)
    notebook = _beginning_with(notebooks_of(settings.ledger), run, settings.ledger)
    name, movements = notebook.run, notebook.movements()
    charges = _charges(settings.ledger, name)
    seen = [movement for movement in movements if (movement.round, movement.attempt) in charges]
    if not seen:
        raise BadInputError(
            f"{notebook.folder}: expected movements of the pad in run {name}, got none of {len(charges)} charged "
            f"rounds. The node's log says of each round why it was not audited."
        )
    findings = judge(_observed(notebook, seen, charges), _claimed(rules, seen, charges))
    made = Audited(
        run=name,
        account=next(iter(charges.values())).account,
        folder=notebook.folder,
        rounds=len(seen),
        charged=len(charges),
        findings=findings,
    )
    write_whole(notebook.folder / FILE, json.dumps(made.to_json(), indent=2) + "\n")
    with closing(Ledger(settings.ledger, memory=settings.ledger_seen)) as ledger:
        ledger.audited(made.account, name, noted(findings, kind="live", rounds=len(seen)))
    return made


def _beginning_with(notebooks: Sequence[Notebook], run: str, ledger: Path) -> Notebook:
    found = [notebook for notebook in notebooks if notebook.run.startswith(run)]
    if len(found) != 1:
        runs = ", ".join(notebook.run for notebook in notebooks) or "none: does the policy allow canaries?"
        raise BadInputError(
            f"{ledger}: expected one audited run that begins with {run!r}, got {len(found)}. There are: {runs}."
        )
    return found[0]


def _charges(ledger: Path, run: str) -> dict[tuple[int, int], Reserve]:
    """What was charged for each order of a run, as it stands in the ledger."""
    charges = (entry for entry in read(ledger).entries if isinstance(entry, Reserve) and entry.run == run)
    return {(entry.round, entry.attempt): entry for entry in charges if entry.round != PLAN_ROUND}


def _observed(notebook: Notebook, seen: Sequence[Movement], charges: dict[tuple[int, int], Reserve]) -> Observations:
    return Observations(
        moves_KRM=np.stack([movement.moves_M for movement in seen])[None],
        is_in_KM=notebook.coins()[None],
        body_KRD={},
        steps=_mechanism(charges).steps,
    )


def _claimed(policy: Policy, seen: Sequence[Movement], charges: dict[tuple[int, int], Reserve]) -> Claim:
    """What the ledger says of the run's training, at the policy's delta; noised metrics are a release of their own."""
    events = tuple(entry.events[0] for entry in charges.values())
    return Claim(
        epsilon=bound(merged(events), delta=policy.budget.delta),
        delta=policy.budget.delta,
        events=events,
        mechanism=_mechanism(charges),
        orders=len(seen),
    )


def _mechanism(charges: dict[tuple[int, int], Reserve]) -> SampledGaussian:
    """How each round was to be made private: a participation's first event; a second one would be its metrics."""
    event = next(iter(charges.values())).events[0]
    if not isinstance(event, SampledGaussian):
        raise BadInputError(
            f"expected a run of sampled Gaussian noise, got {type(event).__name__}: it has no canaries."
        )
    return event
