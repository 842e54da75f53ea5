"""Proposals: what a run would do with an owner's data, and what its policy has against it."""

import math
from dataclasses import dataclass

from client.live.room import room_in
from client.policy import OPENNESS, Metrics, Policy
from common import checks
from common.config import Scenario
from common.errors import AccountingError
from common.privacy.accounting import epsilon
from common.privacy.events import SampledGaussian, Unit
from common.privacy.plan import Plan
from common.transparency.provenance import provenance

Rule = tuple[bool, str, object, object]  # does it hold, what it is about, expected, got


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What a run would do with the owner's data, as the coordinator says it.

    Args:
        run: the run's identifier.
        event: the training of one participation.
        metrics_event: the noised metrics of one participation, or None where it releases none.
        participations: how many are reserved, spares included.
        max_grad_norm: bound on the L2 norm of what one unit adds to a step.
        model: name of the model.
        cohort: clients in a round.
        metrics: what shall leave besides the update.
        code: SHA-256 digest of the client code.
        unit_column: the column that tells persons apart, or None where the unit is no person.
        room: for how many of the owner's canaries there is room (`client.live.room`).
    """

    run: str
    event: SampledGaussian
    metrics_event: SampledGaussian | None = None
    participations: int
    max_grad_norm: float
    model: str
    cohort: int
    metrics: Metrics
    code: str
    unit_column: str | None = None
    room: int = 0

    def __post_init__(self) -> None:
        checks.positive(participations=self.participations, max_grad_norm=self.max_grad_norm, cohort=self.cohort)
        checks.not_negative(room=self.room)
        if self.metrics not in OPENNESS:
            raise ValueError(f"metrics: expected one of {', '.join(OPENNESS)}, got {self.metrics!r}")
        if any(event.unit != self.event.unit for event in self.events):
            raise ValueError(f"metrics_event: expected unit {self.event.unit!r} as in event, got another")

    @property
    def events(self) -> tuple[SampledGaussian, ...]:
        """What one participation does, all of it."""
        return (self.event,) if self.metrics_event is None else (self.event, self.metrics_event)


def proposed(scenario: Scenario, plan: Plan) -> Proposal:
    """Return what a scenario would do with one owner's data, whose plan this is."""
    account = plan.accounts[0]
    return Proposal(
        run=plan.run,
        event=account.event,
        metrics_event=account.metrics_event,
        participations=account.reserved,
        max_grad_norm=plan.max_grad_norm,
        model=scenario.model.name,
        cohort=scenario.server.cohort,
        metrics=scenario.privacy.metrics,
        code=provenance().code,
        unit_column=scenario.privacy.unit_column,
        room=room_in(scenario),
    )


def objections(policy: Policy, proposal: Proposal) -> tuple[str, ...]:
    """Return every reason why a proposal is outside a policy, for the owner's log; empty if it is inside.

    Guarantees:
        A value at its limit is inside.
        What the accountant cannot count is outside.
    """
    return _broken((*_on_privacy(policy, proposal), *_on_the_run(policy, proposal), *_on_epsilon(policy, proposal)))


def objections_without_privacy(
    policy: Policy, *, unit: str, model: str, cohort: int, metrics: Metrics, code: str
) -> tuple[str, ...]:
    """Return every reason why a run that protects no record is outside a policy; empty if it is inside.

    Only unit `none` may be allowed, where the data are public anyway: what protects whole clients is made elsewhere.
    """
    is_allowed = policy.limits.without_privacy and unit == "none"
    expected = f"{policy.unit}, or with limits.without_privacy none"
    run = _of_the_run(policy, model=model, cohort=cohort, metrics=metrics, code=code)
    return _broken(((is_allowed, "unit", expected, unit), *run))


def _broken(rules: tuple[Rule, ...]) -> tuple[str, ...]:
    return tuple(f"{name}: expected {expected}, got {got}" for holds, name, expected, got in rules if not holds)


def _on_privacy(policy: Policy, proposal: Proposal) -> tuple[Rule, ...]:
    """What must hold of one participation's training."""
    limits, data, event = policy.limits, policy.data, proposal.event
    unit, proposed = _protected(policy.unit, data.unit_column), _protected(event.unit, proposal.unit_column)
    adjacency, rate = policy.budget.adjacency, event.sampling_rate
    units, canaries = policy.units(proposal.room), policy.canaries(proposal.room)
    fits, beside = (rate * units).denominator == 1, f" and {canaries} canaries" if canaries else ""
    noise, norm, steps = limits.min_noise_multiplier, limits.max_grad_norm, limits.max_steps_per_round
    return (
        (unit == proposed, "unit", unit, proposed),
        (event.adjacency == adjacency, "adjacency", adjacency, event.adjacency),
        (fits, "sampling_rate", f"a whole number over the {data.records} declared {policy.unit}s{beside}", rate),
        (event.noise_multiplier >= noise, "noise_multiplier", f"at least {noise}", event.noise_multiplier),
        (proposal.max_grad_norm <= norm, "max_grad_norm", f"at most {norm}", proposal.max_grad_norm),
        (event.steps <= steps, "steps", f"at most {steps} a round", event.steps),
    )


def _on_the_run(policy: Policy, proposal: Proposal) -> tuple[Rule, ...]:
    """What must hold of the run around it."""
    is_counted = proposal.metrics != "noisy" or proposal.metrics_event is not None
    run = _of_the_run(
        policy, model=proposal.model, cohort=proposal.cohort, metrics=proposal.metrics, code=proposal.code
    )
    return (*run, (is_counted, "metrics_event", "what the noised metrics cost", "none"))


def _of_the_run(policy: Policy, *, model: str, cohort: int, metrics: Metrics, code: str) -> tuple[Rule, ...]:
    """What must hold of every run, private or not."""
    limits = policy.limits
    is_closed = OPENNESS.index(metrics) <= OPENNESS.index(limits.metrics)
    return (
        (model in limits.models, "model", f"one of {', '.join(limits.models)}", repr(model)),
        (cohort >= limits.min_cohort, "cohort", f"at least {limits.min_cohort}", cohort),
        (is_closed, "metrics", f"{limits.metrics!r} or less open", repr(metrics)),
        (not limits.code or code in limits.code, "code", "one of the digests in limits.code", repr(code)),
    )


def _on_epsilon(policy: Policy, proposal: Proposal) -> tuple[Rule, ...]:
    """What must hold of the whole proposal, every reserved participation counted."""
    most, delta, times = policy.budget.epsilon_per_run, policy.budget.delta, proposal.participations
    try:
        spent = epsilon(tuple(event.times(times) for event in proposal.events), delta=delta)
        figure = f"{spent:.6g}"
    except (AccountingError, ValueError, ArithmeticError, MemoryError) as error:
        spent, figure = math.inf, f"no figure ({error})"
    got = f"{figure} for {times} times {proposal.event.steps} steps at delta {delta}"
    return ((spent <= most, "epsilon", f"at most {most} a run", got),)


def _protected(unit: Unit, column: str | None) -> str:
    return unit if column is None else f"{unit} by column {column!r}"
