"""What else could be planned: more rounds, other noise, several trials.

    rounds    noise for the same epsilon    epsilon at 3/4, 1, 3/2 and 2 times the planned noise
    60        2.47                          7.9  5.2  3.1  2.2

Figures of the table and the picture are upper bounds on the accountant's coarse grid, up to 1 % above the plan's.
Everything is asked of the plan's most expensive account, with its spare rounds. Longer than 250 lines, because the
table, the picture and the words are of the same figures.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from common.config import Scenario
from common.errors import AccountingError, BadInputError
from common.privacy.accounting import COARSE, epsilon, renyi_epsilon
from common.privacy.calibration import LARGEST_NOISE
from common.privacy.events import History
from common.privacy.plan import Account, Plan

FACTORS = (Fraction(1, 2), Fraction(3, 4), Fraction(1), Fraction(3, 2), Fraction(2))  # of the planned rounds
NOISE_FACTORS = (Fraction(3, 4), Fraction(1), Fraction(3, 2), Fraction(2))  # of the planned noise
CURVE = tuple(Fraction(part, 4) for part in range(1, 9))  # where the picture's lines are computed
CLOSE = 0.995  # of the target, at which the search for noise ends
SEARCHES = 24
MOST_TRIALS = 10_000
PICTURES = (".svg", ".png", ".pdf")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number of rounds.

    Args:
        rounds: of the run.
        reserved: participations of the account, spares included.
        noise_multiplier: enough for the target epsilon, or None where no noise is, or no accountant answers.
        epsilons: one for each of the noise multipliers of the table, or None where no accountant answers.
    """

    rounds: int
    reserved: int
    noise_multiplier: float | None
    epsilons: tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class TradeOff:
    """Rounds, noise and epsilon of one account.

    Args:
        target_epsilon: the scenario's epsilon, else its budget, else what the plan reserves.
        noise_multipliers: around the planned one.
        rows: from few rounds to many.
    """

    target_epsilon: float
    noise_multipliers: tuple[float, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True)
class Trials:
    """Several runs of one plan on the same records, on one ledger.

    Args:
        wanted: how many.
        epsilon: of all of them, when no round is lost.
        epsilon_by: PLD, or RDP where PLD cannot answer.
        filter_epsilon: the same by the Rényi filter, which decides from the second run on.
        budget: lifetime epsilon.
        admitted: how many the budget admits with all their rounds and spares.
        planned_noise_multiplier: of one run.
        noise_multiplier: with which `wanted` of them would be admitted, or None where no noise is enough.
    """

    wanted: int
    epsilon: float
    epsilon_by: str
    filter_epsilon: float
    budget: float
    admitted: int
    planned_noise_multiplier: float
    noise_multiplier: float | None


def trade_off(scenario: Scenario, plan: Plan) -> TradeOff:
    """Return what fewer or more rounds would cost, in noise or in epsilon."""
    account, target = _most_expensive(plan, "--trade-off"), _target(scenario, plan)
    noises = tuple(_rounded_up(float(factor) * account.event.noise_multiplier) for factor in NOISE_FACTORS)
    return TradeOff(
        target_epsilon=target,
        noise_multipliers=noises,
        rows=tuple(
            _row(account, rounds, _reserved(scenario, plan, rounds), target=target, noises=noises, delta=plan.delta)
            for rounds in _rounds(scenario, FACTORS)
        ),
    )


def trials(scenario: Scenario, plan: Plan, *, wanted: int) -> Trials:
    """Return what `wanted` runs of a plan on the same records spend together, and how many of them fit.

    Guarantees:
        `admitted` is what a new ledger admits when one run after the other asks and none loses a round.
    """
    from common.privacy.renyi_filter import filter_epsilon, filter_order

    account = _most_expensive(plan, "--trials")
    budget, all_rounds = scenario.privacy.budget or account.epsilon_reserved, account.participations * wanted
    order = filter_order(account.events, budget=budget, delta=plan.delta)
    tight = _unless_silent(lambda: epsilon(account.history(all_rounds), delta=plan.delta))
    return Trials(
        wanted=wanted,
        epsilon=renyi_epsilon(account.history(all_rounds), delta=plan.delta) if tight is None else tight,
        epsilon_by="RDP" if tight is None else "PLD",
        filter_epsilon=filter_epsilon(account.history(all_rounds), order=order, delta=plan.delta),
        budget=budget,
        admitted=_admitted(account, budget=budget, delta=plan.delta, order=order),
        planned_noise_multiplier=account.event.noise_multiplier,
        noise_multiplier=_noise_for(account, wanted, budget=budget, delta=plan.delta),
    )


def enough_noise(spent: Callable[[float], float], *, guess: float, target: float) -> float | None:
    """Return a noise multiplier that spends at most `target` and at least 0.995 of it, or None where there is none.

    The secant method on log epsilon against log noise, which is nearly a line.

    >>> enough_noise(lambda noise: 3 / noise, guess=1.0, target=2.0)
    1.5038
    """
    points: list[tuple[float, float]] = []
    noise = _rounded_up(guess)
    for _ in range(SEARCHES):
        ratio = spent(noise) / target
        if CLOSE <= ratio <= 1:
            return noise
        points.append((math.log(noise), math.log(max(ratio, 1e-12) / (CLOSE + 1) * 2)))
        noise = _rounded_up(math.exp(min(max(_next(points), -7.0), math.log(LARGEST_NOISE))))
        if noise >= LARGEST_NOISE:
            return None
    return None


def show(console: Any, table: Mapping[str, Any]) -> None:
    """Print the `trade_off` and the `trials` of a plan's report, those that are there."""
    if "trade_off" in table:
        console.print(_grid(table["trade_off"]))
    if "trials" in table:
        console.print(_in_words(table["trials"]))
        if options := _options(table["trials"]):
            console.print(f"    {options}", soft_wrap=True)
    if "plot" in table:
        console.print(f"Wrote {table['plot']}.", soft_wrap=True)


def plot(scenario: Scenario, plan: Plan, path: Path) -> None:
    """Draw epsilon against rounds for several noise multipliers, with the target; BadInputError for another suffix."""
    if path.suffix.lower() not in PICTURES:
        raise BadInputError(f"--plot: expected a file that ends in {', '.join(PICTURES)}, got '{path}'.")
    account, target = _most_expensive(plan, "--plot"), _target(scenario, plan)
    rounds = _rounds(scenario, CURVE)
    from matplotlib.figure import Figure  # drawn to a file, without a screen

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for factor in NOISE_FACTORS:
        noise = _rounded_up(float(factor) * account.event.noise_multiplier)
        spent = [_spent(account, noise, _reserved(scenario, plan, number), plan.delta) for number in rounds]
        is_planned = factor == 1
        (line,) = axes.plot(
            rounds, [math.nan if value is None else value for value in spent],
            linewidth=2.4 if is_planned else 1.4, marker="o", markersize=3, label=f"noise {noise:.3g}",
        )  # fmt: skip
        if spent[-1] is not None:
            words = f" noise {noise:.3g}" + (" (planned)" if is_planned else "")
            axes.annotate(words, (rounds[-1], spent[-1]), color=line.get_color(), va="center", fontsize=9)
    axes.axhline(target, color="black", linestyle="--", linewidth=1)
    words = f"{'budget' if target == scenario.privacy.budget else 'ε'} {target:.3g}"
    axes.annotate(words, (0, target), xytext=(4, 3), textcoords="offset points", fontsize=9)
    axes.axvline(scenario.run.rounds, color="grey", linestyle=":", linewidth=1)
    axes.set_xlabel("rounds (dotted: planned)")
    axes.set_ylabel(f"ε at δ = {plan.delta:g}, spares included")
    axes.set_title(f"{scenario.run.name}: ε of one {account.event.unit}", loc="left", fontsize=11)
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, rounds[-1] * 1.25)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _grid(table: Mapping[str, Any]) -> Any:
    from rich.table import Table

    grid = Table(title="Rounds, noise and ε (upper bounds on a coarse grid)", title_justify="left")
    for heading in ("rounds", f"noise for ε ≤ {table['target_epsilon']:.4g}"):
        grid.add_column(heading, justify="right")
    for noise in table["noise_multipliers"]:
        grid.add_column(f"ε at noise {noise:.3g}", justify="right")
    for row in table["rows"]:
        needed = "?" if row["noise_multiplier"] is None else f"{row['noise_multiplier']:.4f}"
        spent = ("?" if value is None else f"≤ {value:.2f}" for value in row["epsilons"])
        grid.add_row(str(row["rounds"]), needed, *spent)
    return grid


def _in_words(figures: Mapping[str, Any]) -> str:
    """Say what several trials spend and how many of them fit."""
    wanted, noise = figures["wanted"], figures["noise_multiplier"]
    text = (
        f"{wanted} trials on the same records spend ε = {figures['epsilon']:.3f} together ({figures['epsilon_by']}), "
        f"and {figures['filter_epsilon']:.3f} by the filter, which decides from the second run on. On a fresh ledger "
        f"the budget of {figures['budget']:.4g} admits {figures['admitted']}."
    )
    if figures["admitted"] >= wanted:
        return text
    if noise is None:
        return f"{text} No noise makes room for {wanted}."
    return f"{text} With noise {noise} instead of {figures['planned_noise_multiplier']:.4f} in each, {wanted} fit:"


def _options(figures: Mapping[str, Any]) -> str:
    """What makes room for the trials, to be pasted, or nothing."""
    if figures["admitted"] >= figures["wanted"] or figures["noise_multiplier"] is None:
        return ""
    noise, budget = figures["noise_multiplier"], figures["budget"]
    return f"--set privacy.epsilon= --set privacy.noise_multiplier={noise} --set privacy.budget={budget!r}"


def _save(figure: Any, path: Path) -> None:
    from io import BytesIO

    from common.files import write_whole

    picture = BytesIO()
    figure.savefig(picture, format=path.suffix.lower()[1:], dpi=150)
    try:
        write_whole(path, picture.getvalue())
    except OSError as error:
        raise BadInputError(f"--plot: {path} cannot be written ({error}). Name another file.") from error


def _row(
    account: Account, rounds: int, reserved: int, *, target: float, noises: tuple[float, ...], delta: float
) -> Row:
    def spent(noise: float) -> float:
        return epsilon(_with_noise(account, noise).history(reserved), delta=delta, grid=COARSE)

    guess = account.event.noise_multiplier * math.sqrt(reserved / account.reserved)
    return Row(
        rounds=rounds,
        reserved=reserved,
        noise_multiplier=_unless_silent(lambda: enough_noise(spent, guess=guess, target=target)),
        epsilons=tuple(_spent(account, noise, reserved, delta) for noise in noises),
    )


def _spent(account: Account, noise: float, reserved: int, delta: float) -> float | None:
    """Epsilon on the coarse grid."""
    history = _with_noise(account, noise).history(reserved)
    return _unless_silent(lambda: epsilon(history, delta=delta, grid=COARSE))


def _unless_silent(ask: Callable[[], float | None]) -> float | None:
    """An accountant's answer; None where it has none."""
    try:
        return ask()
    except AccountingError:
        return None


def _admitted(account: Account, *, budget: float, delta: float, order: float) -> int:
    """How many trials fit: the first by PLD, which the plan compared with the budget, the others by the filter."""
    from common.privacy.renyi_filter import admissible

    one = account.participations
    after_first = admissible(
        account.history(one), account.events, wanted=MOST_TRIALS * one, budget=budget, delta=delta, order=order
    )
    return 1 + max(0, (after_first - account.reserved + one) // one)


def _noise_for(account: Account, wanted: int, *, budget: float, delta: float) -> float | None:
    """Enough noise for so many trials, by the accountant that admits the last of them."""
    from common.privacy.renyi_filter import filter_epsilon, filter_order

    times = account.participations * (wanted - 1) + account.reserved

    def history(noise: float) -> tuple[History, History]:
        changed = _with_noise(account, noise)
        return changed.events, changed.history(times)

    def spent(noise: float) -> float:
        once, total = history(noise)
        if wanted == 1:
            return epsilon(total, delta=delta)
        return filter_epsilon(total, order=filter_order(once, budget=budget, delta=delta), delta=delta)

    return enough_noise(spent, guess=account.event.noise_multiplier * math.sqrt(wanted), target=budget)


def _with_noise(account: Account, noise_multiplier: float) -> Account:
    return replace(account, event=replace(account.event, noise_multiplier=noise_multiplier))


def _next(points: list[tuple[float, float]]) -> float:
    """Where the line through the last two points crosses zero; after one, a line that falls by 1.2."""
    x, y = points[-1]
    if len(points) == 1:
        return x + y / 1.2
    before_x, before_y = points[-2]
    slope = (y - before_y) / (x - before_x) if x != before_x else -1.2
    return x - y / min(slope, -1e-3)


def _rounds(scenario: Scenario, factors: tuple[Fraction, ...]) -> list[int]:
    return sorted({max(1, round(factor * scenario.run.rounds)) for factor in factors})


def _reserved(scenario: Scenario, plan: Plan, rounds: int) -> int:
    """How many participations a run of so many rounds would reserve, in the planned proportion."""
    once = scenario.run.rounds if plan.unit == "client" else scenario.server.max_participations
    return -(-once * rounds // scenario.run.rounds) + scenario.server.spare_rounds


def _most_expensive(plan: Plan, option: str) -> Account:
    if not plan.accounts:
        raise BadInputError(f"{option}: expected none of it with unit 'none', which spends nothing. Leave it out.")
    return max(plan.accounts, key=lambda account: account.epsilon_reserved)


def _target(scenario: Scenario, plan: Plan) -> float:
    return scenario.privacy.epsilon or scenario.privacy.budget or plan.epsilon_reserved or 0.0


def _rounded_up(noise: float) -> float:
    return math.ceil(noise * 1e4) / 1e4
