"""`discreet plan --policy`: what a proposed run would cost an owner, before its node answers anybody.

    ε of the run, all reserved participations counted, at the policy's delta
    ε of the lifetime, with what the ledger has seen, and what is left of the budget
    each objection of the policy, and yes or no

The figures are those by which the node decides (`client.owner`), worked out from the policy's own number of records.
Nothing is written, and no record is read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client import policy as policies
from client.budget import Agreement, agreements
from client.live import cost as live
from client.live.room import room_in
from client.own_data import layout_digest
from client.owner import terms_of
from client.policy import Policy
from client.proposals import objections, objections_without_privacy, proposed
from common.config import Scenario
from common.errors import AccountingError, LedgerError, PlanRefusedError, ScenarioError
from common.privacy.accounting import bound
from common.privacy.admission import Admission, account_order, admission
from common.privacy.events import merged
from common.privacy.plan import make_plan
from common.privacy.renyi_filter import filter_epsilon
from common.transparency.books import Account, Books
from common.transparency.provenance import provenance

_GATES = {"pld": "of a first run ε", "filter": "from the second run on the filter"}
RUN = "proposal"  # a run has no identifier before it begins


@dataclass(frozen=True, kw_only=True)
class _Cost:
    """What a run asks of the owner's account, and how much of it fits."""

    agreement: Agreement
    epsilon: float
    admission: Admission


def report(scenario: Scenario, *, policy: Path, ledger: Path | None = None) -> dict[str, Any]:
    """Return what a proposed run would cost an owner, as plain values.

    Guarantees:
        `accepted` is what the owner's node would answer now, but for its witness and for approval by hand.

    Args:
        scenario: what is proposed.
        policy: the owner's policy file.
        ledger: the owner's; one that is not there yet, or None, is a fresh one.

    Raises:
        PolicyError: a policy that does not read.
        LedgerError: a ledger that is not whole.
    """
    owner = policies.load(policy)
    books = Books() if ledger is None else books_of(ledger)
    account = books.accounts.get(owner.data.lineage) or Account(terms=[], runs={})
    reasons, cost = _judged(scenario, owner, account)
    budget = owner.budget.epsilon
    before, filter_before = _before(account, owner.budget.delta)
    is_begun = cost is not None and cost.admission.participations > 0
    return {
        "name": scenario.run.name,
        "purpose": scenario.run.purpose,
        "owner": owner.owner,
        "lineage": owner.data.lineage,
        "policy": owner.digest,
        "layout": layout_digest(scenario.data),
        "unit": owner.unit,
        "delta": owner.budget.delta,
        "accepted": not reasons and (is_begun or scenario.privacy.unit == "none"),
        "objections": [*reasons, *_too_much(cost, budget)],
        "needs_approval": owner.limits.approval,
        "witness": owner.limits.witness or None,
        "run": None if cost is None else _run(cost, owner.units(room_in(scenario))),
        "live_audit": None
        if cost is None
        else live.cost(
            scenario, owner, epsilon=cost.epsilon, noise_multiplier=cost.agreement.mechanism.noise_multiplier
        ),
        "lifetime": {
            "budget": budget,
            "runs_before": len(account.runs),
            "epsilon_before": before,
            "filter_epsilon_before": filter_before,
            "left_before": max(budget - filter_before, 0.0),
        }
        | ({} if cost is None else _after(cost.admission, budget)),
    }


def books_of(ledger: Path) -> Books:
    """Return what a ledger's entries add up to, an empty book where there is none.

    No private key is needed, unless there is no entry yet and so no checkpoint.
    """
    from contextlib import closing, suppress

    from common.transparency.export import read

    if not ledger.exists():
        return Books()
    try:
        return read(ledger).books
    except LedgerError:
        from common.ledger import Ledger

        with suppress(LedgerError), closing(Ledger(ledger)) as opened:
            if not opened.books.size:
                return opened.books
        raise


def show(table: Mapping[str, Any]) -> None:
    """Print a report for the owner."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    purpose = f", for: {table['purpose']}" if table["purpose"] else ""
    console.print(f"Run '{table['name']}'{purpose}, proposed to {table['owner']}.", markup=False)
    run, lifetime = table["run"], table["lifetime"]
    if run is not None:
        grid = Table(title=f"What it would cost at δ = {table['delta']:g}", title_justify="left")
        for heading in ("", "ε of the run", "ε of the lifetime", "by the filter", "left of the budget"):
            grid.add_column(heading, justify="left" if not heading else "right")
        before = (lifetime["epsilon_before"], lifetime["filter_epsilon_before"], lifetime["left_before"])
        after = (lifetime["epsilon_after"], lifetime["filter_epsilon_after"], lifetime["left_after"])
        grid.add_row("before", "", *(f"{figure:.3f}" for figure in before))
        grid.add_row("after", f"{run['epsilon']:.3f}", *(f"{figure:.3f}" for figure in after))
        console.print(grid)
        console.print(
            f"{run['participations']} participations with spares, of {run['steps']} steps each, noise "
            f"{run['noise_multiplier']:.4f}, sampling rate {run['sampling_rate']:.5f} of {run['records']} "
            f"{table['unit']}s{_beside(table)}; {run['admitted']} of them fit into the budget of "
            f"{lifetime['budget']:g} ({_GATES[lifetime['gate']]} decides)."
        )
    for sentence in live.in_words(table["live_audit"], unit=table["unit"]):
        console.print(sentence)
    for objection in table["objections"]:
        console.print(f"objection: {objection}", style="yellow", markup=False)
    if table["needs_approval"]:
        console.print("The policy wants it approved by hand: discreet approve.")
    if table["witness"] is not None:
        console.print(f"The witness {table['witness']} has to cosign the ledger.", markup=False)
    console.print(f"What a record looks like: {table['layout']} (`layout` in node.toml accepts no other).")
    in_part = run is not None and run["admitted"] < run["participations"]
    yes = f"[green]yes[/green], for {run['admitted']} of them" if in_part else "[green]yes[/green]"
    console.print(f"Answer: {yes if table['accepted'] else '[bold red]no[/bold red]'}")


def _judged(scenario: Scenario, owner: Policy, account: Account) -> tuple[tuple[str, ...], _Cost | None]:
    """The policy's objections, and what the run would cost where that can be said."""
    if scenario.privacy.unit != "record":
        reasons = objections_without_privacy(
            owner,
            unit=scenario.privacy.unit,
            model=scenario.model.name,
            cohort=scenario.server.cohort,
            metrics=scenario.privacy.metrics,
            code=provenance().code,
        )
        return reasons, None
    try:
        plan = make_plan(scenario, records=(owner.units(room_in(scenario)),), run=RUN)
    except (AccountingError, ScenarioError, PlanRefusedError) as error:
        return (str(error),), None
    (agreement,) = agreements(plan, [owner.data.lineage]).values()
    reasons = objections(owner, proposed(scenario, plan))
    terms = [*account.terms, terms_of(owner)]
    answer = admission(Account(terms=terms, runs=account.runs), agreement.events, wanted=agreement.participations)
    spent = bound(tuple(event.times(agreement.participations) for event in agreement.events), delta=terms[-1].delta)
    return reasons, _Cost(agreement=agreement, epsilon=spent, admission=answer)


def _beside(table: Mapping[str, Any]) -> str:
    """Of a number of units, that some are canaries."""
    return f", {table['live_audit']['canaries']} of them canaries" if table["live_audit"] else ""


def _run(cost: _Cost, units: int) -> dict[str, Any]:
    mechanism = cost.agreement.mechanism
    return {
        "records": units,
        "epsilon": cost.epsilon,
        "participations": cost.agreement.participations,
        "admitted": cost.admission.participations,
        "steps": mechanism.steps,
        "noise_multiplier": mechanism.noise_multiplier,
        "sampling_rate": float(mechanism.sampling_rate),
        "max_grad_norm": mechanism.max_grad_norm,
    }


def _after(answer: Admission, budget: float) -> dict[str, Any]:
    return {
        "gate": answer.gate,
        "epsilon_after": answer.epsilon,
        "filter_epsilon_after": answer.filter_epsilon,
        "left_after": max(budget - answer.filter_epsilon, 0.0),  # from the second run on the filter decides
    }


def _too_much(cost: _Cost | None, budget: float) -> list[str]:
    """What does not fit into the lifetime's budget; a part of a run may."""
    if cost is None or cost.admission.participations == cost.agreement.participations:
        return []
    fit = cost.admission.participations
    then = "then it refuses" if fit else "it refuses all of them"
    return [f"budget: expected {cost.agreement.participations} participations within {budget}, got {fit}; {then}"]


def _before(account: Account, delta: float) -> tuple[float, float]:
    """Epsilon of what was spent and of what open runs may still spend, by PLD and by the filter."""
    order = account_order(account)
    if order is None:
        return 0.0, 0.0
    held = merged(account.held())
    return bound(held, delta=delta), filter_epsilon(held, order=order, delta=delta)
