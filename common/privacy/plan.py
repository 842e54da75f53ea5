"""The plan: what a run will spend, decided before any data is read.

    >>> from common.config import parse
    >>> scenario = parse('''
    ... run = {name = "x", rounds = 10}
    ... data = {dataset = "mnist", clients = 10}
    ... training = {batch_size = 60, local_steps = 4}
    ... privacy = {epsilon = 2.0}''')
    >>> plan = make_plan(scenario, records=(6000,) * 10, run="doctest")
    >>> plan.accounts[0].event.sampling_rate, plan.accounts[0].reserved
    (Fraction(1, 100), 12)

A plan is a frozen value: sampling rates, noise, steps and bounds come from it and never from the data. The number of
records of a client is a declared public constant. A round that is lost is charged and run again; `spare_rounds` of the
scenario are reserved for that, so the plan knows two figures: what is spent when no round is lost, and what is
reserved. Only the second is compared with the budget. A little over 250 lines: a plan and its making belong together.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from common.config import Scenario, Training
from common.errors import PlanRefusedError, ScenarioError
from common.messages import Mechanism
from common.privacy.accounting import COARSE, epsilon
from common.privacy.calibration import AIM, calibrate
from common.privacy.events import History, SampledGaussian, Unit
from common.privacy_table import Privacy

POPULATION = "population"


@dataclass(frozen=True, kw_only=True)
class Account:
    """What is planned for each of `members` accounts that are alike.

    Args:
        records: privacy units behind the account: a client's records or persons, or for unit `client` the clients.
        members: how many accounts are alike.
        event: the training of one participation in one round.
        participations: how many are scheduled.
        reserved: how many are allowed at most, spares included.
        epsilon: spent when no round is lost.
        epsilon_reserved: spent when every spare round was needed.
        metrics_event: the noised count that each participation releases beside its update, or None.
    """

    records: int
    members: int
    event: SampledGaussian
    participations: int
    reserved: int
    epsilon: float
    epsilon_reserved: float
    metrics_event: SampledGaussian | None = None

    @property
    def events(self) -> History:
        """What one participation in one round does, all of it."""
        return (self.event,) if self.metrics_event is None else (self.event, self.metrics_event)

    def history(self, times: int) -> History:
        """Return the events of `times` participations."""
        return tuple(event.times(times) for event in self.events) if times else ()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run's privacy, decided.

    Args:
        run: the run's identifier.
        unit: who makes it private: record (the client, its records or persons), client (the server) or none.
        delta: of every epsilon in the plan.
        max_grad_norm: clip of a record's gradient, or of a client's update.
        records: declared number of records of each client, or of its persons where they are the unit.
        accounts: the distinct accounts; none for unit `none`, one for unit `client`.
        account_of: for each client its position in `accounts`.
        precision: in which layers compute; what is clipped, summed and noised is single precision or better.
    """

    run: str
    unit: str
    delta: float
    max_grad_norm: float
    records: tuple[int, ...]
    accounts: tuple[Account, ...]
    account_of: tuple[int, ...]
    precision: str = "float32"

    def account(self, client: int) -> Account:
        """Return the account of a client."""
        return self.accounts[self.account_of[client]]

    def mechanism(self, client: int) -> Mechanism | None:
        """Return how one round of a client is made private by the client itself, or None if it is not."""
        if self.unit != "record":
            return None
        event = self.account(client).event
        return Mechanism(
            sampling_rate=event.sampling_rate,
            noise_multiplier=event.noise_multiplier,
            max_grad_norm=self.max_grad_norm,
            steps=event.steps,
        )

    def metrics_noise_multiplier(self, client: int) -> float | None:
        """Return the noise of the count that a client releases with each update, or None where it releases none."""
        event = self.account(client).metrics_event if self.account_of else None
        return None if event is None else event.noise_multiplier

    @property
    def epsilon(self) -> float | None:
        """The largest epsilon of any account when no round is lost; None for unit `none`."""
        return max((account.epsilon for account in self.accounts), default=None)

    @property
    def epsilon_reserved(self) -> float | None:
        """The largest epsilon of any account when every spare round is needed; None for unit `none`."""
        return max((account.epsilon_reserved for account in self.accounts), default=None)


def local_steps(training: Training, *, records: int) -> int:
    """Return how many steps a client with `records` records, or so many persons as the unit, takes in a round."""
    if training.local_steps is not None:
        return training.local_steps
    return (training.local_epochs or 1) * math.ceil(records / training.batch_size)


def make_plan(scenario: Scenario, *, records: Sequence[int], run: str) -> Plan:
    """Decide what each client spends, or refuse.

    Guarantees:
        Every account's `epsilon_reserved` is at most the scenario's epsilon, where that is given.
        One accountant's answer serves all accounts that are alike.

    Raises:
        ScenarioError: an impossible value: a batch larger than a client's records, a delta above 1/N.
        PlanRefusedError: the plan would spend more than the budget, or the metrics alone more than epsilon.

    Args:
        scenario: the run.
        records: declared number of records of each client, or of its persons where they are the unit.
        run: the run's identifier.
    """
    privacy = scenario.privacy
    accounts: tuple[Account, ...] = ()
    account_of: tuple[int, ...] = ()
    if privacy.unit == "client":
        accounts, account_of = (_population(scenario),), (0,) * scenario.data.clients
    elif privacy.unit == "record":
        sizes = sorted(set(records))
        accounts = tuple(_silo(scenario, size, members=records.count(size)) for size in sizes)
        account_of = tuple(sizes.index(size) for size in records)
    plan = Plan(
        run=run,
        unit=privacy.unit,
        delta=privacy.delta,
        max_grad_norm=privacy.max_grad_norm,
        records=tuple(records),
        accounts=accounts,
        account_of=account_of,
        precision=scenario.training.precision,
    )
    _within_budget(plan, privacy)
    return plan


def _silo(scenario: Scenario, records: int, *, members: int) -> Account:
    """The account of a client that makes its own records, or persons, private (threat model T1)."""
    training = scenario.training
    unit: Unit = "record" if scenario.privacy.unit_column is None else "person"
    if training.batch_size > records:
        raise ScenarioError(
            f"training.batch_size: expected at most the {records} {unit}s of the smallest client, got "
            f"{training.batch_size}. Lower it, or data.clients."
        )
    shape = SampledGaussian(
        noise_multiplier=1.0,
        sampling_rate=Fraction(training.batch_size, records),
        steps=local_steps(training, records=records),
        unit=unit,
    )
    return _account(scenario, shape, units=records, members=members, participations=scenario.server.max_participations)


def _population(scenario: Scenario) -> Account:
    """The one account of all clients, charged every round whoever takes part (threat model T2)."""
    clients = scenario.data.clients
    shape = SampledGaussian(
        noise_multiplier=1.0, sampling_rate=Fraction(scenario.server.cohort, clients), steps=1, unit="client"
    )
    return _account(scenario, shape, units=clients, members=1, participations=scenario.run.rounds)


def _account(scenario: Scenario, shape: SampledGaussian, *, units: int, members: int, participations: int) -> Account:
    """Fill in noise and epsilon."""
    privacy = scenario.privacy
    if privacy.delta > 1 / units:
        raise ScenarioError(
            f"privacy.delta: expected at most 1/{units} = {1 / units:.3g} for {units} {shape.unit}s, got "
            f"{privacy.delta}. A delta of {1 / (10 * units):.1g} is usual."
        )
    reserved = participations + scenario.server.spare_rounds
    metrics = _metrics(privacy, shape.unit, times=reserved)
    noise = privacy.noise_multiplier or calibrate(
        shape.times(reserved),
        target_epsilon=privacy.epsilon or 1.0,
        delta=privacy.delta,
        beside=() if metrics is None else (metrics.times(reserved),),
    )
    account = Account(
        records=units,
        members=members,
        event=replace(shape, noise_multiplier=noise),
        participations=participations,
        reserved=reserved,
        epsilon=0.0,
        epsilon_reserved=0.0,
        metrics_event=metrics,
    )
    return replace(
        account,
        epsilon=epsilon(account.history(participations), delta=privacy.delta),
        epsilon_reserved=epsilon(account.history(reserved), delta=privacy.delta),
    )


def _metrics(privacy: Privacy, unit: Unit, *, times: int) -> SampledGaussian | None:
    """The count of one participation, or None; PlanRefusedError where `times` of it leave nothing to train with."""
    if privacy.metrics_noise_multiplier is None:
        return None
    event = SampledGaussian(
        noise_multiplier=privacy.metrics_noise_multiplier, sampling_rate=Fraction(1), steps=1, unit=unit
    )
    if privacy.epsilon is not None:
        alone = epsilon((event.times(times),), delta=privacy.delta, grid=COARSE)
        if alone > AIM * privacy.epsilon:
            raise PlanRefusedError(
                f"The metrics of {times} rounds alone need epsilon {alone:.3f} and privacy.epsilon is "
                f"{privacy.epsilon:.3f}. Raise privacy.metrics_noise_multiplier, or set privacy.metrics to 'none'."
            )
    return event


def _within_budget(plan: Plan, privacy: Privacy) -> None:
    if privacy.budget is not None and plan.epsilon_reserved is not None and plan.epsilon_reserved > privacy.budget:
        raise PlanRefusedError(
            f"The plan needs epsilon {plan.epsilon_reserved:.3f} and the budget is {privacy.budget:.3f}. "
            f"Lower run.rounds or privacy.epsilon, or raise privacy.budget."
        )
