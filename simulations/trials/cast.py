"""Who plays in a trial: a consortium on this machine, each member with its own folder, keys, policy, ledger and data.

    consortium/                 the coordinator's
    NAME/                       an organisation's: identity/ policy.toml node.toml ledger.db data.npz state/
    witness/                    the witness's identity and store
    scenario.toml               with as many clients as there are organisations

All of it is in one folder, and nothing outside it is touched.
"""

import shutil
import socket
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from client.own_data import layout_digest
from common.config import Scenario, dump
from common.consortium import identity
from common.consortium.identity import Identity
from common.files import write_whole
from common.ledger import Ledger
from common.privacy.plan import Plan, make_plan
from common.shards import Shard
from server import consortium_folder, enrolment
from simulations import datasets
from simulations.partition import Rows, split

CONSORTIUM, WITNESS = "trial", "witness"
PURPOSE = "a trial on one machine"
LOOSER = 1.001  # of the planned epsilon: a policy's figure has fewer digits
PUBLIC_EPSILON = 8.0  # of a policy whose runs have no privacy


@dataclass(frozen=True, kw_only=True)
class Cast:
    """A prepared consortium.

    Args:
        folder: of all that follows.
        scenario: what will be run.
        organisations: names, in roster order.
        link: host:port of the link.
        witness: host:port of the witness.
    """

    folder: Path
    scenario: Scenario
    organisations: tuple[str, ...]
    link: str
    witness: str

    @property
    def consortium(self) -> Path:
        """The coordinator's folder."""
        return self.folder / "consortium"

    def of(self, organisation: str) -> Path:
        """Return an organisation's folder."""
        return self.folder / organisation


def prepare(folder: Path, scenario: Scenario, organisations: int) -> Cast:
    """Make a whole consortium in an empty folder."""
    scenario = for_organisations(scenario, organisations)
    link, witness = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    names = tuple(f"organisation-{number}" for number in range(1, organisations + 1))
    cast = Cast(folder=folder, scenario=scenario, organisations=names, link=link, witness=witness)
    dataset = datasets.load(scenario)
    shares = split(scenario, dataset)
    plan = make_plan(scenario, records=tuple(_units(dataset.train, rows) for rows in shares), run="trial")
    write_whole(folder / "scenario.toml", dump(scenario))
    for party, (name, rows) in enumerate(zip(names, shares, strict=True)):
        _furnish(cast, name, dataset.train, rows)
        write_whole(cast.of(name) / "policy.toml", tomli_w.dumps(_policy(cast, plan, party, name)))
    _found(cast)
    return cast


def for_organisations(scenario: Scenario, count: int) -> Scenario:
    """Return the scenario for as many clients as there are organisations, each of them asked in each round."""
    server = {"cohort": count, "max_participations": scenario.run.rounds}
    server["min_replies"] = min(scenario.server.min_replies, count)
    return Scenario.model_validate(
        {
            **scenario.model_dump(),
            "run": {**scenario.run.model_dump(), "purpose": scenario.run.purpose or PURPOSE},
            "data": {**scenario.data.model_dump(), "clients": count},
            "server": {**scenario.server.model_dump(), **server},
        }
    )


def free_port() -> int:
    """Return a port of loopback that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _found(cast: Cast) -> None:
    """Make the consortium: everybody asks, is added, signs, and is sent what it needs."""
    folder = consortium_folder.init(cast.consortium, CONSORTIUM, addresses=[cast.link])
    members = [_member(cast, name) for name in cast.organisations]
    members.append(identity.new(cast.folder / WITNESS, WITNESS, role="witness", address=cast.witness))
    for member in members:
        enrolment.add(folder, member.folder / "request.json")
    for member in members:
        identity.sign_roster(member, folder.draft)
    enrolment.merge([folder.draft], folder.roster)
    for member in members:
        for file in (folder.roster, *folder.issued(member.name).iterdir()):
            shutil.copyfile(file, member.folder / file.name)
    shutil.copyfile(folder.roster, folder.identity / "roster.json")


def _member(cast: Cast, name: str) -> Identity:
    with closing(Ledger.create(cast.of(name) / "ledger.db")) as ledger:
        return identity.new(cast.of(name) / "identity", name, ledger=str(ledger.key))


def _furnish(cast: Cast, name: str, train: Shard, rows: Rows) -> None:
    """Give an organisation its records and its settings."""
    folder = cast.of(name)
    folder.mkdir(mode=0o700)
    arrays: dict[str, Any] = {"features": train.features_ND[rows], "labels": train.labels_N[rows]}
    if train.units_N is not None:
        arrays["units"] = train.units_N[rows]
    np.savez(folder / "data.npz", **arrays)
    source = {"kind": "npz", "path": "data.npz", "layout": layout_digest(cast.scenario.data)}
    write_whole(folder / "node.toml", tomli_w.dumps({"data": source}))


def _policy(cast: Cast, plan: Plan, party: int, name: str) -> dict[str, object]:
    """A policy that allows this scenario once, and nothing beyond it."""
    scenario, records = cast.scenario, plan.records[party]
    unit = {"unit": "record"}
    if scenario.privacy.unit_column is not None:
        unit = {"unit_column": scenario.privacy.unit_column}
    limits: dict[str, object] = {
        "min_noise_multiplier": 0.1,
        "max_grad_norm": scenario.privacy.max_grad_norm,
        "max_steps_per_round": 1,
        "min_cohort": len(cast.organisations),
        "models": [scenario.model.name],
        "metrics": scenario.privacy.metrics,
        "witness": WITNESS,
        "witness_down": "wait",
    }
    epsilon = PUBLIC_EPSILON
    if plan.accounts:
        account = plan.account(party)
        epsilon = LOOSER * account.epsilon_reserved
        limits |= {"min_noise_multiplier": account.event.noise_multiplier, "max_steps_per_round": account.event.steps}
    else:
        limits["without_privacy"] = True
    delta = min(scenario.privacy.delta, 1 / records)
    return {
        "version": 2,
        "owner": name,
        "data": {"lineage": scenario.data.dataset, "version": "1", "records": records, **unit},
        "budget": {"adjacency": "zero-out", "delta": delta, "epsilon": epsilon, "epsilon_per_run": epsilon},
        "limits": limits,
    }


def _units(train: Shard, rows: Rows) -> int:
    """How many records, or persons where they are known, are in these rows."""
    return len(rows) if train.units_N is None else len(np.unique(train.units_N[rows]))
