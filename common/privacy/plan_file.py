"""A plan as a JSON file, and back."""

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from common.privacy.events import ADJACENCY, from_json
from common.privacy.plan import Account, Plan


def to_json(plan: Plan) -> str:
    """Write a plan; `from_json_text` brings it back equal."""
    accounts = [
        {
            "records": account.records,
            "members": account.members,
            "event": account.event.to_json(),
            "metrics_event": None if account.metrics_event is None else account.metrics_event.to_json(),
            "participations": account.participations,
            "reserved": account.reserved,
            "epsilon": account.epsilon,
            "epsilon_reserved": account.epsilon_reserved,
        }
        for account in plan.accounts
    ]
    table = {
        "run": plan.run,
        "unit": plan.unit,
        "adjacency": ADJACENCY,
        "delta": plan.delta,
        "max_grad_norm": plan.max_grad_norm,
        "precision": plan.precision,
        "epsilon": plan.epsilon,
        "epsilon_reserved": plan.epsilon_reserved,
        "accounts": accounts,
        "account_of": _runs(plan.account_of),
        "records": _runs(plan.records),
    }
    return json.dumps(table, indent=1) + "\n"


def from_json_text(text: str) -> Plan:
    """Read a plan back, or raise ValueError, KeyError or TypeError."""
    table: Mapping[str, Any] = json.loads(text)
    accounts = tuple(_account(account) for account in table["accounts"])
    return Plan(
        run=table["run"],
        unit=table["unit"],
        delta=table["delta"],
        max_grad_norm=table["max_grad_norm"],
        records=_unrolled(table["records"]),
        accounts=accounts,
        account_of=_unrolled(table["account_of"]),
        precision=table.get("precision", "float32"),  # plans written before there was a choice
    )


def _account(table: dict[str, Any]) -> Account:
    """An account; plans written before there were metrics have no `metrics_event`."""
    given: dict[str, Any] = {"metrics_event": None} | table
    metrics = given["metrics_event"]
    events = {"event": from_json(given["event"]), "metrics_event": None if metrics is None else from_json(metrics)}
    return Account(**(given | events))


def _runs(values: Sequence[int]) -> list[list[int]]:
    """Neighbours that are equal as [value, how many]: ten thousand like clients are one line."""
    return [[value, len(list(group))] for value, group in itertools.groupby(values)]


def _unrolled(runs: Sequence[Sequence[int]]) -> tuple[int, ...]:
    return tuple(value for value, count in runs for _ in range(count))
