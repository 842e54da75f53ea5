"""Accounts of a simulated run: their names, and the terms that a scenario puts in place of an owner's policy."""

from hashlib import sha256

from common.config import Scenario
from common.privacy.events import ADJACENCY
from common.privacy.plan import Account, Plan
from common.transparency.entries import Terms


def client_account(scenario: Scenario, client: int) -> str:
    """Return the name of a client's account."""
    return f"{scenario.data.lineage_name}/client-{client:06d}"


def population_account(scenario: Scenario) -> str:
    """Return the name of the one account of all clients, for unit `client`."""
    return f"{scenario.data.lineage_name}/population"


def account_names(scenario: Scenario, plan: Plan) -> list[str]:
    """Return all accounts of a run: one a client, or one for all."""
    if plan.unit == "client":
        return [population_account(scenario)]
    return [client_account(scenario, client) for client in range(len(plan.account_of))]


def terms_of(scenario: Scenario, plan: Plan) -> dict[str, Terms]:
    """Return the terms of each account of a run.

    The lifetime budget is the scenario's, or else what this run needs.
    """
    is_one = plan.unit == "client"
    return {
        name: _terms(scenario, plan.account(client), owner="coordinator" if is_one else f"client {client}")
        for client, name in enumerate(account_names(scenario, plan))
    }


def split_of(scenario: Scenario) -> str:
    """Say in words how the records are shared out: another split puts a record into another account."""
    data = scenario.data
    alpha = f" {data.alpha:g}" if data.partition == "dirichlet" else ""
    unit = scenario.privacy.unit_column or scenario.privacy.unit
    return f"{data.partition}{alpha} among {data.clients}, seed {scenario.run.seed}, unit {unit}"


def _terms(scenario: Scenario, account: Account, *, owner: str) -> Terms:
    budget = scenario.privacy.budget or account.epsilon_reserved
    policy = f"{owner}; {split_of(scenario)}; delta {scenario.privacy.delta!r}; budget {budget!r}"
    return Terms(
        owner=owner,
        lineage=scenario.data.lineage_name,
        version=split_of(scenario),
        records=account.records,
        unit=account.event.unit,
        adjacency=ADJACENCY,
        delta=scenario.privacy.delta,
        budget=budget,
        policy=sha256(policy.encode()).hexdigest(),
    )
