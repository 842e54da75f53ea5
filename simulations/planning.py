"""`discreet plan`: what a scenario will spend, what its ledger will admit, and what is wrong with it.

    >>> from common.config import parse
    >>> scenario = parse('''
    ... run = {name = "x", rounds = 6}
    ... data = {dataset = "digits", clients = 3}
    ... training = {batch_size = 40, local_steps = 1}
    ... server = {cohort = 2}
    ... privacy = {noise_multiplier = 3.0}''')
    >>> exhaustion(scenario, [9, 9, 1]).runs_out  # two of three a round: client 2 is asked again in round 3
    ((2, 3),)

A plan informs: it refuses nothing that the run itself would not refuse, and writes nothing. Longer than 250 lines,
because what is asked of a ledger and how it is shown stand beside each other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.config import Scenario
from common.privacy.events import ADJACENCY
from common.privacy.plan import Account, Plan
from simulations import preflight
from simulations.epsilon_query import in_words, verdict_of
from simulations.single_plan import check_plan, plan_of

if TYPE_CHECKING:
    from common.transparency.books import Books

FEW = 3  # clients that are named
LISTED = 10  # clients that run out and are listed; the others are counted


@dataclass(frozen=True, kw_only=True)
class Exhaustion:
    """Who is asked more often than the ledger admits, when no round is lost.

    Args:
        runs_out: client and first round that it refuses, the earliest first; under unit `client` all share one account.
        last_possible_round: the last round in which enough of the cohort may train, 0 when there is none.
    """

    runs_out: tuple[tuple[int, int], ...]
    last_possible_round: int


def report(
    scenario: Scenario,
    *,
    check: bool,
    ledger: Path | None = None,
    trials: int | None = None,
    trade_off: bool = False,
    plot: Path | None = None,
) -> dict[str, Any]:
    """Return a scenario's plan as plain values.

    Args:
        scenario: the run.
        check: whether three accountants answer for each account.
        ledger: whose past counts; one that is not there yet is a fresh one.
        trials: how many runs of the plan are compared with the budget.
        trade_off: whether fewer and more rounds, and other noise, are looked at.
        plot: where to draw that.
    """
    plan = plan_of(scenario)
    verdicts = check_plan(plan) if check else []
    accounts = [
        _planned(plan, account) | ({"check": verdict_of(verdicts[position])} if check else {})
        for position, account in enumerate(plan.accounts)
    ]
    table: dict[str, Any] = {
        "name": scenario.run.name,
        "rounds": scenario.run.rounds,
        "unit": plan.unit,
        "adjacency": ADJACENCY,
        "delta": plan.delta,
        "max_grad_norm": plan.max_grad_norm,
        "precision": plan.precision,
        "budget": scenario.privacy.budget,
        "epsilon": _max_median(plan, "epsilon"),
        "epsilon_reserved": _max_median(plan, "epsilon_reserved"),
        "accounts": accounts,
    }
    found = preflight.findings(scenario, plan)
    if ledger is not None:
        seen = preview(ledger, scenario, plan)
        found.insert(0, preflight.ledger(seen, rounds=scenario.run.rounds))
        table["ledger"] = seen | {"runs_out": seen["runs_out"][:LISTED]}
    if trials is not None or trade_off or plot is not None:
        from simulations import tradeoff

        if trials is not None:
            table["trials"] = asdict(tradeoff.trials(scenario, plan, wanted=trials))
        if trade_off or plot is not None:
            table["trade_off"] = asdict(tradeoff.trade_off(scenario, plan))
        if plot is not None:
            tradeoff.plot(scenario, plan, plot)
            table["plot"] = str(plot)
    return table | {"findings": [asdict(finding) for finding in found]}


def preview(ledger: Path, scenario: Scenario, plan: Plan) -> dict[str, Any]:
    """Return what a ledger has spent, what it would admit of a plan, and who runs out when.

    Raises:
        BadInputError: a ledger with unit `none`.
        LedgerError: a ledger that is not whole.
        PlanRefusedError: a ledger in which the same records are in other accounts.
    """
    from client.proposal_report import books_of
    from common.privacy.accounts import account_names, terms_of
    from simulations.run_ledger import admissions, refuse_other_split, refuse_unfit

    if plan.unit == "none":
        refuse_unfit(ledger, scenario)
    books = books_of(ledger)
    refuse_other_split(books, scenario)
    names, terms = account_names(scenario, plan), terms_of(scenario, plan)
    answers = admissions(books, scenario, plan)
    running_out = exhaustion(scenario, [answer.participations for answer in answers])
    return {
        "path": str(ledger),
        "is_fresh": not ledger.exists(),
        "accounts": [
            _before(books, name, plan.delta)
            | {
                "account": name,
                "client": client if plan.unit == "record" else None,
                "wanted": plan.account(client).reserved,
                "admitted": answer.participations,
                "gate": answer.gate,
                "budget": terms[name].budget,
                "epsilon_after": answer.epsilon,
                "filter_epsilon_after": answer.filter_epsilon,
            }
            for client, (name, answer) in enumerate(zip(names, answers, strict=True))
        ],
        "runs_out": [{"client": client, "round": number} for client, number in running_out.runs_out],
        "runs_out_count": len(running_out.runs_out),
        "first_refusal_round": running_out.runs_out[0][1] if running_out.runs_out else None,
        "last_possible_round": running_out.last_possible_round,
    }


def exhaustion(scenario: Scenario, admitted: Sequence[int]) -> Exhaustion:
    """Return who runs out in which round, given how often each account may be charged.

    Guarantees:
        A run that loses no round has the same clients refuse in the same rounds for the first time.
        After `last_possible_round` fewer than `server.min_replies` of a cohort would train: the run ends there, and
        whoever would have run out later is not named.

    Edge cases:
        unit `client`   one account: all its clients run out together, whoever is asked
        nobody runs out the last possible round is the last one
    """
    rounds, clients = scenario.run.rounds, scenario.data.clients
    if scenario.privacy.unit == "client":
        last = min(admitted[0], rounds)
        everybody = tuple((client, last + 1) for client in range(clients)) if last < rounds else ()
        return Exhaustion(runs_out=everybody, last_possible_round=last)
    from server.cohorts import schedule

    left = np.array(admitted)
    out: dict[int, int] = {}
    for number, cohort in enumerate(schedule(scenario), 1):
        for client in cohort[left[cohort] <= 0].tolist():
            out.setdefault(client, number)
        able = cohort[left[cohort] > 0]
        if len(able) < max(scenario.server.min_replies, 1):
            return Exhaustion(runs_out=tuple(out.items()), last_possible_round=number - 1)
        left[able] -= 1
    return Exhaustion(runs_out=tuple(out.items()), last_possible_round=rounds)


def show(table: Mapping[str, Any]) -> None:
    """Print a plan for people."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if table["unit"] == "none":
        preflight.show(console, table["findings"])
        return
    grid = Table(title="What the run will spend", title_justify="left")
    for heading in ("clients", "records", "sampling rate", "noise", "steps", "rounds", "ε", "ε with spares"):
        grid.add_column(heading, justify="right")
    for account in table["accounts"]:
        grid.add_row(
            str(account["clients"]), str(account["records"] or ""), f"{account['sampling_rate']:.5f}",
            f"{account['noise_multiplier']:.4f}", str(account["steps_per_round"]),
            f"{account['participations']} + {account['reserved'] - account['participations']}",
            f"{account['epsilon']:.3f}", f"{account['epsilon_reserved']:.3f}",
        )  # fmt: skip
    console.print(grid)
    unit, metrics = table["accounts"][0]["protects"], table["accounts"][0]["metrics_noise_multiplier"]
    whole = "" if unit == "record" else ", with all its records"
    console.print(f"Each ε protects one {unit}{whole}, at δ = {table['delta']:g}, {table['adjacency']} adjacency.")
    if metrics is not None:
        console.print(f"In it is the count, with noise {metrics:g}, that each client releases in a round.")
    if table["budget"] is not None:
        console.print(f"Budget: {table['budget']:g}.")
    for account in table["accounts"]:
        if "check" in account:
            console.print(in_words(account["check"]))
    if "ledger" in table:
        _show_ledger(console, table["ledger"])
    if "trade_off" in table or "trials" in table:
        from simulations import tradeoff

        tradeoff.show(console, table)
    preflight.show(console, table["findings"])


def _show_ledger(console: Any, ledger: Mapping[str, Any]) -> None:
    """Accounts with the same figures share a line."""
    from rich.table import Table

    title = f"Ledger {ledger['path']}" + (" is not there yet: a fresh one" if ledger["is_fresh"] else "")
    grid = Table(title=title, title_justify="left", caption_justify="left")
    grid.caption = "From an account's second run on the filter decides, before that ε (PLD). Open runs count in full."
    for heading in ("clients", "ε before", "filter before", "admitted", "ε after", "filter after", "budget", "gate"):
        grid.add_column(heading, justify="left" if heading in {"clients", "gate"} else "right")
    for figures, alike in groupby(sorted(ledger["accounts"], key=_figures), key=_figures):
        clients = [account["client"] for account in alike]
        before, before_filter, admitted, wanted, after, after_filter, budget, gate = figures
        grid.add_row(
            "all" if len(clients) == len(ledger["accounts"]) else _few(clients),
            f"{before:.3f}", f"{before_filter:.3f}", f"{admitted} of {wanted}",
            f"{after:.3f}", f"{after_filter:.3f}", f"{budget:.4g}", gate,
        )  # fmt: skip
    console.print(grid)


def _figures(account: Mapping[str, Any]) -> tuple[Any, ...]:
    keys = (
        "epsilon_before", "filter_epsilon_before", "admitted", "wanted",
        "epsilon_after", "filter_epsilon_after", "budget", "gate",
    )  # fmt: skip
    return tuple(account[key] for key in keys)


def _few(clients: Sequence[int]) -> str:
    more = f" and {len(clients) - FEW} more" if len(clients) > FEW else ""
    return ", ".join(map(str, clients[:FEW])) + more


def _planned(plan: Plan, account: Account) -> dict[str, Any]:
    metrics = account.metrics_event
    return {
        "clients": account.members if plan.unit == "record" else len(plan.records),
        "records": account.records if plan.unit == "record" else None,
        "protects": account.event.unit,
        "sampling_rate": float(account.event.sampling_rate),
        "noise_multiplier": account.event.noise_multiplier,
        "metrics_noise_multiplier": None if metrics is None else metrics.noise_multiplier,
        "steps_per_round": account.event.steps,
        "participations": account.participations,
        "reserved": account.reserved,
        "epsilon": account.epsilon,
        "epsilon_reserved": account.epsilon_reserved,
    }


def _before(books: "Books", name: str, delta: float) -> dict[str, Any]:
    """What an account has spent, and what open runs may still spend of it."""
    from common.privacy.accounting import epsilon
    from common.privacy.admission import account_order
    from common.privacy.events import merged
    from common.privacy.renyi_filter import filter_epsilon

    account = books.accounts.get(name)
    order = None if account is None else account_order(account)
    if account is None or order is None:
        return {"runs_before": 0, "epsilon_before": 0.0, "filter_epsilon_before": 0.0}
    held = merged(account.held())
    return {
        "runs_before": len(account.runs),
        "epsilon_before": epsilon(held, delta=delta),
        "filter_epsilon_before": filter_epsilon(held, order=order, delta=delta),
    }


def _max_median(plan: Plan, name: str) -> dict[str, float] | None:
    import statistics

    values = [getattr(plan.accounts[position], name) for position in plan.account_of]
    return {"max": max(values), "median": statistics.median(values)} if values else None
