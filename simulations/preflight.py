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
figures; that all of them stand together makes the module longer than 250 lines. What is impossible is refused earlier
and is not repeated here:

    common.privacy_table    delta below 1e-10; metrics with unit `client`; both or neither of epsilon and noise
    common.config           weights by records, or batch normalisation, under a unit whose bound they break
    common.privacy.plan     delta above 1/N; a batch above N; a budget below what the plan needs; metrics above epsilon
    client.private          a model that mixes samples or keeps buffers
    simulations.run_ledger  a ledger of another split of the records
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from common.config import Scenario
from common.privacy.odds import FALSE_POSITIVES, largest_posterior, most_hits
from common.privacy.plan import Account, Plan
from common.tasks import task_of

Severity = Literal["refuse", "warn", "ok"]

LARGEST_RATE = Fraction(1, 5)  # of sampling, above which it hides little
LARGEST_EPSILON = 10.0  # odds of 22,000 to 1
SMALL_MODEL = 10_000  # parameters: there is hardly a smaller model, and larger ones fare worse under noise
FEW = 3  # clients that are named
ALLOW_MORE = "Only the data's owner can allow more (privacy.budget). Or plan fewer rounds or more noise: --trade-off."
COLOURS = {"refuse": "bold red", "warn": "yellow"}


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
        return _warn(
            "delta",
            f"{found}: above 1/(10 N) = {1 / (10 * units):.2g}. Publishing each {_unit(plan)} with that "
            f"probability, {plan.delta * units:.2g} of them on average, would count as private.",
            remedy=f"Set privacy.delta to {_rounded_down(1 / (10 * units)):g}.",
        )
    return _ok("delta", f"{found}: at most 1/(10 N).")


def sampling(_: Scenario, plan: Plan) -> Finding:
    """Look for sampling rates at which sampling hides little."""
    rate = max(account.event.sampling_rate for account in plan.accounts)
    if rate <= LARGEST_RATE:
        return _ok("sampling", f"Each step sees a {_unit(plan)} with q = {float(rate):.3g}.")
    return _warn(
        "sampling",
        f"A {_unit(plan)} is in {float(rate):.0%} of all steps: sampling hides "
        f"{'nothing' if rate == 1 else 'little'}, noise alone has to protect it (ε counts that).",
        remedy=f"Try {_size(plan)} lower, until q is at most {float(LARGEST_RATE):g}, with more rounds.",
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
        f"Noise {account.event.noise_multiplier:.3g} C on {float(batch):g} expected {_units(plan)} a step: over the "
        f"run, in {SMALL_MODEL:,} parameters, it is {ratio:.2g} times as long as the signal if all gradients agree"
    )
    if ratio > 1:
        return _warn(
            "noise",
            f"{found}: little can be learnt.",
            remedy=f"Raise {_size(plan)} or privacy.epsilon, or lower data.clients.",
        )
    return _ok("noise", f"{found}.")


def odds(_: Scenario, plan: Plan) -> Finding:
    """Say what the reserved epsilon means to whoever guesses whether somebody is in the data.

    Source: Kairouz et al. 2015, Theorem 2.1, https://arxiv.org/abs/1311.0776, for the true-positive rate.
    """
    epsilon = plan.epsilon_reserved or 0.0
    surest = largest_posterior(epsilon)
    found = (
        f"ε = {epsilon:.3g}: whoever gave even odds that a {_unit(plan)} is in may become {surest:.4g} sure, "
        f"and find up to {most_hits([(epsilon, plan.delta)]):.4g} of them at {FALSE_POSITIVES:.0%} false alarms"
    )
    if epsilon > LARGEST_EPSILON:
        return _warn(
            "epsilon",
            f"{found}: next to nothing is promised.",
            remedy="Lower privacy.epsilon to 8 or less, or raise privacy.noise_multiplier; see --trade-off.",
        )
    return _ok("epsilon", f"{found}.")


def persons(scenario: Scenario, plan: Plan) -> Finding | None:
    """Look for data in which a person has several records while one record is the unit."""
    task = task_of(scenario.data)
    if plan.unit != "record" or not task.unit_columns:
        return None
    if scenario.privacy.unit_column is not None:
        return _ok("persons", "A person is protected with all its records.")
    column, people = next(iter(task.unit_columns.items()))
    many = f"{task.train_records / people:.0f} of them on average" if task.train_records and people else "several"
    return _warn(
        "persons",
        f"ε holds for one record, and a {column} has {many}. For all of them it is much larger: 2.39, 5.27, 12.2, "
        f"30.0 in a reference run with 1, 2, 4, 8 records a person.",
        remedy=f"Set privacy.unit_column to '{column}' if persons are to be protected (partition 'iid').",
    )


def spare_rounds(scenario: Scenario, _: Plan) -> Finding:
    """Look for a run that one lost round would end."""
    spares = scenario.server.spare_rounds
    if spares == 0:
        return _warn(
            "spare-rounds",
            "No round is spare: a crash or a lost round is charged all the same, and ends the run.",
            remedy="Set server.spare_rounds to 2; it costs a little noise.",
        )
    return _ok("spare-rounds", f"{spares} lost rounds are charged, and run again.")


def participations(scenario: Scenario, plan: Plan) -> Finding | None:
    """Look for noise that pays for rounds in which nobody is asked."""
    if plan.unit == "client":
        return None
    needed = -(-scenario.run.rounds * scenario.server.cohort // scenario.data.clients)
    planned = scenario.server.max_participations
    if planned > needed:
        return _warn(
            "participations",
            f"Each client is asked at most {needed} times, and noise is planned for {planned}.",
            remedy="Leave server.max_participations out; spares have a key of their own, server.spare_rounds.",
        )
    return _ok("participations", f"Each client is asked at most {needed} times.")


def cohorts(scenario: Scenario, plan: Plan) -> Finding:
    """Say whether sampling clients is counted."""
    if plan.unit == "client":
        reason = "The trusted server draws cohorts in secret and charges everybody each round: amplification counts."
    elif scenario.server.cohort < scenario.data.clients:
        reason = "The server chooses who takes part: that a client was left out of a round is no secret and saves no ε."
    else:
        reason = "Everybody takes part in every round."
    return _ok("cohorts", reason)


def weighting(scenario: Scenario, _: Plan) -> Finding:
    """Say why the weights of the mean are safe."""
    if scenario.server.weighting == "records":
        return _ok("weighting", "Weights are declared sizes, on updates that are private already: post-processing.")
    return _ok("weighting", "All updates weigh the same.")


def optimizers(scenario: Scenario, _: Plan) -> Finding:
    """Say why momentum, Adam and averages of models are safe."""
    used = f"{scenario.training.optimizer} at the clients, {scenario.server.optimizer} at the server"
    return _ok("optimizers", f"Noise comes first ({used}): what optimisers make of it is free.")


def metrics(scenario: Scenario, plan: Plan) -> Finding:
    """Say what is released of figures on private data."""
    planned = plan.accounts[0]
    if planned.metrics_event is None:
        reason = "Losses and accuracies on private data are withheld; the public test set costs nothing."
    else:
        std = planned.metrics_event.noise_multiplier
        reason = f"Each participation releases a count with noise of {std:g} {_units(plan)}; every ε here counts it."
    if scenario.privacy.unit == "client":
        reason = "No client reports figures on its data; the public test set costs nothing."
    return _ok("metrics", reason)


def tuning(scenario: Scenario, plan: Plan) -> Finding:
    """Remind that each run on the same records counts, a sweep's trials and seeds too."""
    budget = scenario.privacy.budget or plan.epsilon_reserved or 0.0
    return _ok(
        "tuning",
        f"This is one run. Each trial and seed on the same records counts towards the budget of {budget:.3g}.",
        remedy="Ask for all of them with --trials N; tune on public data where there is some.",
    )


def randomness(scenario: Scenario, _: Plan) -> Finding:
    """Name the generator of noise and batches."""
    return _ok(
        "randomness",
        f"Noise and private sampling, on device '{scenario.engine.device}' as on any: AES-256 in counter mode "
        f"under a key of the operating system, drawn on the CPU in double precision. The run's seed reaches neither.",
    )


def precision(_: Scenario, plan: Plan) -> Finding | None:
    """Name another precision than single."""
    if plan.precision == "float32":
        return None
    return _ok(
        "precision",
        f"Layers compute in {plan.precision}; norms, clipped sums and weights are single precision and noise is "
        f"double, so that every ε holds as it stands.",
    )


Check = Callable[[Scenario, Plan], Finding | None]
CHECKS: tuple[Check, ...] = (
    delta, sampling, noise, odds, persons, spare_rounds, participations,
    cohorts, weighting, optimizers, metrics, tuning, randomness, precision,
)  # fmt: skip


def ledger(preview: Mapping[str, Any], *, rounds: int) -> Finding:
    """Say who runs out first, and in which round, by the preview of `simulations.planning`."""
    out, last = preview["runs_out"], preview["last_possible_round"]
    if not out and any(account["admitted"] < account["wanted"] for account in preview["accounts"]):
        return _warn(
            "ledger",
            "Nobody runs out while no round is lost, but not all spare rounds fit into what is left.",
            remedy=ALLOW_MORE,
        )
    if not out:
        return _ok("ledger", "All that is planned fits into what is left.")
    if last == 0:
        return Finding(
            check="ledger",
            severity="refuse",
            reason=f"{_first_out(out, rounds)} The run ends before anything is trained.",
            remedy=ALLOW_MORE,
        )
    end = f" After round {last} too few are left to go on." if last < rounds else ""
    return _warn("ledger", _first_out(out, rounds) + end, remedy=ALLOW_MORE)


def show(console: Any, found: Sequence[Mapping[str, str]]) -> None:
    """Print what is refused or warned of."""
    from rich.text import Text

    for finding in found:
        if finding["severity"] in COLOURS:
            text = Text.assemble(
                (finding["severity"], COLOURS[finding["severity"]]),
                f" {finding['check']}: {finding['reason']} ",
                (finding["remedy"], "italic"),
            )
            console.print(text)


def _first_out(out: Sequence[Mapping[str, int]], rounds: int) -> str:
    """Who runs out first, in words."""
    first = out[0]
    if len(out) == 1:
        return f"Client {first['client']} runs out in round {first['round']} of {rounds}; from then on it refuses."
    if out[-1]["round"] == first["round"]:
        return f"{len(out)} clients run out in round {first['round']} of {rounds}; from then on they refuse."
    then = ", ".join(f"client {place['client']} in round {place['round']}" for place in out[1:FEW])
    more = f" and {len(out) - FEW} more" if len(out) > FEW else ""
    return (
        f"Client {first['client']} runs out in round {first['round']} of {rounds}; from then on it refuses. "
        f"After it {then}{more}."
    )


def _ok(check: str, reason: str, *, remedy: str = "") -> Finding:
    return Finding(check=check, severity="ok", reason=reason, remedy=remedy)


def _warn(check: str, reason: str, *, remedy: str) -> Finding:
    return Finding(check=check, severity="warn", reason=reason, remedy=remedy)


def _without_privacy() -> Finding:
    return _warn(
        "unit",
        "Without privacy: no noise, no accounts, and no protection of the records.",
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


def _size(plan: Plan) -> str:
    """The key that decides how many units a step sees."""
    return "server.cohort" if plan.unit == "client" else "training.batch_size"


def _units(plan: Plan) -> str:
    return f"{_unit(plan)}s"


def _rounded_down(value: float) -> float:
    """The largest 1eX or 5eX that is not above it."""
    power = 10.0 ** math.floor(math.log10(value))
    return 5 * power if 5 * power <= value else power
