"""What a live audit costs an owner in accuracy, and what it does to N and to epsilon."""

from collections.abc import Mapping
from typing import Any

from client.live.room import room_in, unreadable
from client.policy import Policy
from common.config import Scenario
from common.errors import DiscreetError
from common.privacy.accounting import bound
from common.privacy.plan import Account, make_plan


def cost(scenario: Scenario, policy: Policy, *, epsilon: float, noise_multiplier: float) -> dict[str, Any] | None:
    """Return what the canaries of a run change, as plain values; None where the policy allows none, or there is no pad.

    Args:
        scenario: what is proposed.
        policy: the owner's.
        epsilon: of the run with the canaries, at the policy's delta.
        noise_multiplier: of the run with the canaries.
    """
    if not policy.audit.canaries or scenario.audit is None:
        return None
    room, records = room_in(scenario), policy.data.records
    units = policy.units(room)
    if not room:
        return {"canaries": 0, "why_none": unreadable(scenario)}
    batch = scenario.training.batch_size
    before = _without(scenario, records)
    return {
        "canaries": policy.canaries(room),
        "why_none": None,
        "units_before": records,
        "units": units,
        "sampling_rate_before": batch / records,
        "sampling_rate": batch / units,
        "share_of_records": records / units,
        "records_per_batch_before": batch,
        "records_per_batch": batch * records / units,
        "noise_multiplier_before": None if before is None else before.event.noise_multiplier,
        "noise_multiplier": noise_multiplier,
        "epsilon_before": None if before is None else bound(before.history(before.reserved), delta=policy.budget.delta),
        "epsilon": epsilon,
        "epsilon_at_most": policy.budget.epsilon_per_run,
        "metrics": scenario.privacy.metrics,
    }


def in_words(table: Mapping[str, Any] | None, *, unit: str) -> list[str]:
    """Say it in sentences for people; nothing where there is nothing to say."""
    if table is None:
        return []
    if table["why_none"] is not None:
        return [f"Live audit: no canaries, since {table['why_none']}."]
    share, per_batch = table["share_of_records"], table["records_per_batch"]
    public = (
        f"Live audit: {table['canaries']} canaries beside {table['units_before']} {unit}s. N goes from "
        f"{table['units_before']} to {table['units']}, the sampling rate from {table['sampling_rate_before']:.5f} to "
        f"{table['sampling_rate']:.5f}."
    )
    accuracy = (
        f"What it costs in accuracy: of an expected batch of {table['records_per_batch_before']}, {per_batch:.1f} are "
        f"{unit}s. They add {share:.3f} times what they would, against the noise: as if the batch were smaller by "
        f"{1 - share:.1%}."
    )
    was = "" if table["epsilon_before"] is None else f" ({table['epsilon_before']:.3f} without canaries)"
    noise = f"noise {table['noise_multiplier']:.4f}"
    noise += "" if table["noise_multiplier_before"] is None else f" (was {table['noise_multiplier_before']:.4f})"
    protection = (
        f"Each {unit} is protected as before: epsilon of the run {table['epsilon']:.3f}{was}, {noise}, at most "
        f"{table['epsilon_at_most']:g} by the policy."
    )
    if table["metrics"] != "none":
        protection += " Metrics on the data count each canary as wrong."
    return [public, accuracy, protection]


def _without(scenario: Scenario, records: int) -> Account | None:
    """The run without canaries, where that can be planned."""
    try:
        return make_plan(scenario, records=(records,), run="without").account(0)
    except DiscreetError:
        return None
