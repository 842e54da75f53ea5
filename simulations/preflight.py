"""Preflight checks: what a scenario gets wrong, or should know, before anything runs.

    >>> from common.config import parse
    >>> from simulations.single_plan import plan_of
    >>> scenario = parse('''
    ... run = {name = "x", rounds = 10}
    ... data = {dataset = "digits", clients = 10}
    ... training = {batch_size = 143, local_steps = 1}
    ... privacy = {noise_multiplier = 40.0}''')
    >>> [finding.check for finding in findings(scenario, plan_of(scenario)) if finding.severity == "warn"]
    ['sampling', 'noise']

Each function looks at one thing, returns None where it does not apply, and has the reason and the remedy beside the
figures. What is impossible is refused earlier and is not repeated here:

    common.privacy_table    delta below 1e-10; metrics with unit `client`; both or neither of epsilon and noise
    common.config           weights by records, or batch normalisation, under a unit whose bound they break
    common.privacy.plan     delta above 1/N; a batch above N; a budget below what the plan needs; metrics above epsilon
    client.private          a model that mixes samples or keeps buffers
    simulations.run_ledger  a ledger of another split of the records
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from common.config import Scenario
from common.privacy.plan import Account, Plan
from common.tasks import TASKS

Severity = Literal["refuse", "warn", "ok"]

LARGEST_RATE = Fraction(1, 5)  # of sampling, above which it hides little
LARGEST_EPSILON = 10.0  # odds of 22,000 to 1
SMALL_MODEL = 10_000  # parameters: there is hardly a smaller model, and larger ones fare worse under noise
PRIOR_RATE = 0.01  # of false alarms, at which an attacker's success is stated


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found.

    Args:
        check: its name.
        severity: refuse: nothing would be trained; warn: it runs, and is likely not what is wanted; ok: good to know.
        reason: what was found, in figures.
        remedy: what to do, or empty.
    """

    check: str
    severity: Severity
    reason: str
    remedy: str = ""


def findings(scenario: Scenario, plan: Plan) -> list[Finding]:
    """Return what each check found, in the order of CHECKS; for unit `none` only that there is no privacy."""
    if plan.unit == "none":
        return [_without_privacy()]
    return [found for check in CHECKS if (found := check(scenario, plan)) is not None]


def delta(_: Scenario, plan: Plan) -> Finding:
    """Compare delta with the number of units: a mechanism that publishes each unit with probability delta has it."""
    units = max(account.records for account in plan.accounts)
    found = f"δ = {plan.delta:g} with {units} {_units(plan)}"
    if plan.delta * 10 * units > 1:
        return Finding(
            check="delta",
            severity="warn",
            reason=f"{found}: above 1/(10 N) = {1 / (10 * units):.2g}. With that δ, publishing a few whole units at "
            f"random, {plan.delta * units:.2g} of them on average, would count as private.",
            remedy=f"Set privacy.delta to {_rounded_down(1 / (10 * units)):g}.",
        )
    return Finding(check="delta", severity="ok", reason=f"{found}: at most 1/(10 N).")


def sampling(_: Scenario, plan: Plan) -> Finding:
    """Look for sampling rates at which sampling hides little."""
    rate = max(account.event.sampling_rate for account in plan.accounts)
    if rate <= LARGEST_RATE:
        return Finding(check="sampling", severity="ok", reason=f"Each step sees a {_unit(plan)} with q = {float(rate):.3g}.")
    cohort = plan.unit == "client"
    size = f"{'server.cohort' if cohort else 'training.batch_size'}"
    share = f"{'Every' if rate == 1 else 'A'} {_unit(plan)} is in {'every step' if rate == 1 else f'{float(rate):.0%} of the steps'}"
    return Finding(
        check="sampling",
        severity="warn",
        reason=f"{share}: sampling hides {'nothing' if rate == 1 else 'little'}, noise alone has to protect it.",
        remedy=f"Lower {size} until q is at most {float(LARGEST_RATE):g}, or hold on to it if accuracy says so: "
        f"ε counts it rightly.",
    )


def noise(scenario: Scenario, plan: Plan) -> Finding:
    """Compare the length of a run's noise with the longest way that its gradients can go.

    A step's mean of clipped gradients is at most C long; its noise has standard deviation z C / B in each of P
    parameters, so it is about z C sqrt(P) / B long. Over n steps of one client and a mean over m clients the gradients
    add up to at most n C, the noise, which has no direction, to z C sqrt(P) / B * sqrt(n / m). Their ratio is
    z sqrt(P) / (B sqrt(n m)): above 1 the noise is longer than any signal. For unit `client` B is the cohort, m is 1.
    """
    ratio, account = max(
        ((_drowning(scenario, plan, account), account) for account in plan.accounts), key=lambda pair: pair[0]
    )
    batch = account.event.sampling_rate * account.records
    found = (
        f"Noise {account.event.noise_multiplier:.3g} C on {float(batch):g} expected {_units(plan)} a step: over the run it "
        f"is {ratio:.2g} times as long as the gradients of {SMALL_MODEL:,} parameters can be if they all agree"
    )
    if ratio > 1:
        return Finding(
            check="noise",
            severity="warn",
            reason=f"{found}: little can be learnt.",
            remedy=f"Raise {'server.cohort' if plan.unit == 'client' else 'training.batch_size'}, privacy.epsilon or the "
            f"number of records behind a client.",
        )
    return Finding(check="noise", severity="ok", reason=f"{found}.")


def odds(_: Scenario, plan: Plan) -> Finding:
    """Say what the reserved epsilon means to whoever guesses whether somebody is in the data.

    Source: Kairouz et al. 2015, Theorem 2.1, https://arxiv.org/abs/1311.0776, for the true-positive rate.
    """
    epsilon = plan.epsilon_reserved or 0.0
    found = (
        f"ε = {epsilon:.3g}: whoever gave even odds that a {_unit(plan)} is in may become {posterior(epsilon):.4%} sure, "
        f"and tell {detection(epsilon, plan.delta):.1%} of them at {PRIOR_RATE:.0%} false alarms"
    )
    if epsilon > LARGEST_EPSILON:
        return Finding(
            check="epsilon",
            severity="warn",
            reason=f"{found}: next to nothing is promised.",
            remedy="Lower privacy.epsilon to 8 or less, or raise privacy.noise_multiplier; see --trade-off.",
        )
    return Finding(check="epsilon", severity="ok", reason=f"{found}.")


def persons(scenario: Scenario, plan: Plan) -> Finding | None:
    """Look for data in which a person has several records while one record is the unit."""
    task = TASKS[scenario.data.dataset]
    if plan.unit != "record" or not task.unit_columns:
        return None
    if scenario.privacy.unit_column is not None:
        return Finding(check="persons", severity="ok", reason="A person is protected with all its records.")
    column, people = next(iter(task.unit_columns.items()))
    return Finding(
        check="persons",
        severity="warn",
        reason=f"ε holds for one record, and a {column} has {task.train_records / people:.0f} of them on average. For m "
        f"records of a person it is larger: 2.39, 5.27, 12.2, 30.0 in the reference run for m = 1, 2, 4, 8.",
        remedy=f"Set privacy.unit_column to '{column}' if persons are to be protected.",
    )


def spare_rounds(scenario: Scenario, _: Plan) -> Finding:
    """Look for a run that one lost round would end."""
    spares = scenario.server.spare_rounds
    if spares == 0:
        return Finding(
            check="spare-rounds",
            severity="warn",
            reason="No round is spare: a crash or a lost round is charged all the same, and ends the run.",
            remedy="Set server.spare_rounds to 2; it costs a little noise.",
        )
    return Finding(check="spare-rounds", severity="ok", reason=f"{spares} lost rounds are charged, and run again.")


def participations(scenario: Scenario, plan: Plan) -> Finding | None:
    """Look for noise that pays for rounds in which nobody is asked."""
    if plan.unit == "client":
        return None
    needed = -(-scenario.run.rounds * scenario.server.cohort // scenario.data.clients)
    planned = scenario.server.max_participations
    if planned > needed:
        return Finding(
            check="participations",
            severity="warn",
            reason=f"Each client is asked at most {needed} times, and noise is planned for {planned}.",
            remedy="Leave server.max_participations out; spares have a key of their own, server.spare_rounds.",
        )
    return Finding(check="participations", severity="ok", reason=f"Each client is asked at most {needed} times.")


def cohorts(scenario: Scenario, plan: Plan) -> Finding:
    """Say whether sampling clients is counted."""
    some = scenario.server.cohort < scenario.data.clients
    if plan.unit == "client":
        reason = "The trusted server draws cohorts in secret, and everybody is charged each round: amplification counts."
    elif some:
        reason = "The server chooses who takes part: that a client was left out of a round is no secret and saves no ε."
    else:
        reason = "Everybody takes part in every round."
    return Finding(check="cohorts", severity="ok", reason=reason)


def weighting(scenario: Scenario, _: Plan) -> Finding:
    """Say why the weights of the mean are safe."""
    by_records = scenario.server.weighting == "records"
    reason = (
        "Weights are declared sizes, on updates that are private already: post-processing."
        if by_records
        else "All updates weigh the same."
    )
    return Finding(check="weighting", severity="ok", reason=reason)


def optimizers(scenario: Scenario, _: Plan) -> Finding:
    """Say why momentum, Adam and averages of models are safe."""
    used = f"{scenario.training.optimizer} at the clients, {scenario.server.optimizer} at the server"
    return Finding(
        check="optimizers", severity="ok", reason=f"Noise comes first ({used}): what optimisers make of it is free."
    )


def metrics(scenario: Scenario, plan: Plan) -> Finding:
    """Say what is released of figures on private data."""
    planned = plan.accounts[0]
    if planned.metrics_event is None:
        reason = "Losses and accuracies on private data are withheld; the public test set costs nothing."
    else:
        share = planned.metrics_event.noise_multiplier
        reason = f"Each participation releases a count with noise of {share:g} {_units(plan)}; it is in every ε of this plan."
    if scenario.privacy.unit == "client":
        reason = "No client reports figures on its data; the public test set costs nothing."
    return Finding(check="metrics", severity="ok", reason=reason)


def tuning(scenario: Scenario, plan: Plan) -> Finding:
    """Remind that each run on the same records counts, a sweep's trials and seeds too."""
    budget = scenario.privacy.budget or plan.epsilon_reserved or 0.0
    return Finding(
        check="tuning",
        severity="ok",
        reason=f"This is one run. Each trial and seed on the same records counts towards the budget of {budget:.3g}.",
        remedy="Ask for all of them with --trials N; tune on public data where there is some.",
    )


def randomness(scenario: Scenario, _: Plan) -> Finding:
    """Name the generator of noise and batches."""
    return Finding(
        check="randomness",
        severity="ok",
        reason=f"Noise and private sampling, on device '{scenario.engine.device}' as on any: AES-256 in counter mode "
        f"under a key of the operating system, drawn on the CPU in double precision. The run's seed reaches neither.",
    )


def posterior(epsilon: float) -> float:
    """Return the largest certainty that a 50 % prior can become, e^eps / (1 + e^eps)."""
    return 1 / (1 + math.exp(-epsilon))


def detection(epsilon: float, target_delta: float, *, false_alarms: float = PRIOR_RATE) -> float:
    """Return the largest true-positive rate of any attack with this rate of false alarms.

    >>> round(detection(math.log(9), 0.0, false_alarms=0.05), 6)  # 9 * 0.05, below 1 - 0.95 / 9
    0.45
    """
    by_alarms = target_delta + math.exp(min(epsilon, 700)) * false_alarms
    by_silence = 1 - math.exp(-epsilon) * (1 - target_delta - false_alarms)
    return min(by_alarms, by_silence, 1.0)


Check = Callable[[Scenario, Plan], Finding | None]
CHECKS: tuple[Check, ...] = (
    delta, sampling, noise, odds, persons, spare_rounds, participations,
    cohorts, weighting, optimizers, metrics, tuning, randomness,
)  # fmt: skip


def show(console: Any, found: list[dict[str, str]]) -> None:
    """Print what is refused or warned of."""
    colours = {"refuse": "red", "warn": "yellow"}
    for finding in found:
        if finding["severity"] in colours:
            colour = colours[finding["severity"]]
            console.print(f"[{colour}]{finding['severity']}[/{colour}] {finding['check']}: {finding['reason']}", end=" ")
            console.print(finding["remedy"], style="dim")


def _without_privacy() -> Finding:
    return Finding(
        check="unit",
        severity="warn",
        reason="Without privacy: no noise, no accounts, and no protection of the records.",
        remedy="Set privacy.unit to 'record' or 'client', and privacy.epsilon.",
    )


def _drowning(scenario: Scenario, plan: Plan, account: Account) -> float:
    """How long the noise of a run is against its longest signal: z sqrt(P) / (B sqrt(n m))."""
    batch = float(account.event.sampling_rate * account.records)
    mean_over = 1 if plan.unit == "client" else scenario.server.cohort
    steps = account.event.steps * scenario.run.rounds
    return account.event.noise_multiplier * math.sqrt(SMALL_MODEL) / (batch * math.sqrt(steps * mean_over))


def _unit(plan: Plan) -> str:
    return plan.accounts[0].event.unit


def _units(plan: Plan) -> str:
    return f"{_unit(plan)}s"


def _rounded_down(value: float) -> float:
    """The largest 1eX or 5eX that is not above it."""
    power = 10.0 ** math.floor(math.log10(value))
    return 5 * power if 5 * power <= value else power
