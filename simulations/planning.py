"""`discreet plan` and `discreet epsilon`: figures before anything runs."""

import json
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from common.config import Scenario
from common.errors import BadInputError
from common.privacy import accounting
from common.privacy.events import ADJACENCY, MAX_SEGMENTS, History, SampledGaussian
from common.privacy.plan import Plan
from simulations.single_plan import check_plan, plan_of


def report(scenario: Scenario, *, check: bool) -> dict[str, Any]:
    """Return a scenario's plan as plain values; with `check` three accountants answer for each account."""
    plan = plan_of(scenario)
    verdicts = check_plan(plan) if check else []
    accounts = [
        {
            "clients": account.members if plan.unit == "record" else len(plan.records),
            "records": account.records if plan.unit == "record" else None,
            "sampling_rate": float(account.event.sampling_rate),
            "noise_multiplier": account.event.noise_multiplier,
            "steps_per_round": account.event.steps,
            "participations": account.participations,
            "reserved": account.reserved,
            "epsilon": account.epsilon,
            "epsilon_reserved": account.epsilon_reserved,
        }
        | ({"check": verdict_of(verdicts[position])} if check else {})
        for position, account in enumerate(plan.accounts)
    ]
    return {
        "unit": plan.unit,
        "adjacency": ADJACENCY,
        "delta": plan.delta,
        "max_grad_norm": plan.max_grad_norm,
        "budget": scenario.privacy.budget,
        "epsilon": _max_median(plan, "epsilon"),
        "epsilon_reserved": _max_median(plan, "epsilon_reserved"),
        "accounts": accounts,
    }


def show(table: Mapping[str, Any]) -> None:
    """Print a plan for people."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if table["unit"] == "none":
        console.print("Without privacy: no noise, no accounts, and no protection of the records.")
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
    unit = "record" if table["unit"] == "record" else "client, with all its records"
    console.print(f"Each ε protects one {unit}, at δ = {table['delta']:g}, {table['adjacency']} adjacency.")
    if table["budget"] is not None:
        console.print(f"Budget: {table['budget']:g}.")
    for account in table["accounts"]:
        if "check" in account:
            console.print(_in_words(account["check"]))


def history(
    segments: Path | None, noise_multiplier: float | None, sampling_rate: str | None, steps: int | None
) -> History:
    """Return the history that the options of `discreet epsilon` describe, or raise BadInputError."""
    if segments is not None:
        if (noise_multiplier, sampling_rate, steps) != (None, None, None):
            raise BadInputError("--segments: expected it alone, got it with other figures. Leave those out.")
        return _read_segments(segments)
    if noise_multiplier is None or sampling_rate is None or steps is None:
        raise BadInputError("expected --noise-multiplier, --sampling-rate and --steps, or --segments FILE.")
    return (_event({"noise_multiplier": noise_multiplier, "sampling_rate": sampling_rate, "steps": steps}, "options"),)


def verdict(events: History, *, delta: float) -> dict[str, Any]:
    """Return epsilon by three accountants as plain values."""
    return verdict_of(accounting.check(events, delta=delta)) | {"delta": delta, "adjacency": ADJACENCY}


def verdict_of(answer: accounting.Verdict) -> dict[str, Any]:
    """Return a verdict as plain values."""
    return {
        "pld": answer.pld,
        "prv": answer.prv,
        "prv_interval": None if answer.prv_low is None else [answer.prv_low, answer.prv_high],
        "rdp": answer.rdp,
        "unanswered": answer.unanswered,
    }


def show_verdict(table: Mapping[str, Any]) -> None:
    """Print epsilon for people."""
    from rich.console import Console

    Console().print(f"ε = {table['pld']:.4f} at δ = {table['delta']:g}, {table['adjacency']} adjacency")
    Console().print(_in_words(table))


def _in_words(table: Mapping[str, Any]) -> str:
    prv = (
        table["unanswered"]
        or f"PRV {table['prv']:.4f} in [{table['prv_interval'][0]:.4f}, {table['prv_interval'][1]:.4f}]"
    )
    return f"PLD {table['pld']:.4f} (reported), {prv}, RDP {table['rdp']:.4f} (looser bound): they agree."


def _max_median(plan: Plan, name: str) -> dict[str, float] | None:
    import statistics

    values = [getattr(plan.accounts[position], name) for position in plan.account_of]
    return {"max": max(values), "median": statistics.median(values)} if values else None


def _read_segments(path: Path) -> History:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadInputError(f"{path}: expected a JSON list of segments ({error}).") from error
    if not isinstance(values, list) or not 0 < len(values) <= MAX_SEGMENTS:
        raise BadInputError(f"{path}: expected a list of 1 to {MAX_SEGMENTS} segments.")
    return tuple(_event(value, f"{path}: segment {number}") for number, value in enumerate(values, 1))


def _event(value: object, place: str) -> SampledGaussian:
    known = {"noise_multiplier", "sampling_rate", "steps"}
    if not isinstance(value, dict) or value.keys() != known:
        raise BadInputError(f"{place}: expected {{noise_multiplier, sampling_rate, steps}}, got {value}.")
    try:
        if not isinstance(value["steps"], int):
            raise ValueError(f"steps: expected a whole number, got {value['steps']}")  # noqa: TRY301, TRY004
        return SampledGaussian(
            noise_multiplier=float(value["noise_multiplier"]),
            sampling_rate=Fraction(value["sampling_rate"]),
            steps=value["steps"],
        )
    except (ValueError, TypeError, ZeroDivisionError, OverflowError) as error:
        raise BadInputError(f"{place}: {error}.") from error
