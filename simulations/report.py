"""One page for a data-protection officer: what was spent on whose data, what is left, and what it means.

    write(Path("runs/digits"))           runs/digits/report.html
    write(Path("cardiology.jsonl"))      cardiology.jsonl.report.html

The page is one HTML file that asks no network for anything and runs no script; the same ledger gives the same bytes.
Its words are in `templates/report.html`. Every figure is rounded against us: what was spent up, what is left down.
A little over 250 lines: what is refused, and what is shown, belong together.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from common.config import Scenario, load
from common.errors import BadInputError, ScenarioError
from common.files import write_whole
from common.privacy.odds import FALSE_POSITIVES
from common.privacy.plan import Plan
from common.privacy.plan_file import from_json_text
from common.transparency.entries import Terms
from common.transparency.export import BEGINNING, SQLITE, read
from common.transparency.verification import Balance
from server.coordinator import run_record
from server.run_folder import LEDGER
from simulations import report_charts as charts
from simulations.report_facts import LedgerFacts, Odds, epsilons_of, facts

TOP = 20  # accounts that are shown one by one
START = b"<!doctype html>"
_MANY = 8  # accounts from which on their spread is drawn
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True, kw_only=True)
class Course:
    """How a run went, as its folder tells.

    Args:
        scenario, plan: what was to be done, and to be spent.
        rounds: a line a round, as in rounds.csv, or None before the first; `done` is how many.
        attempts: how many rounds were begun, those that were lost included.
        refused: orders that clients turned down, or None where that is not for every reader.
    """

    scenario: Scenario
    plan: Plan
    rounds: pd.DataFrame | None
    done: int
    attempts: int
    refused: int | None


def write(source: Path, *, out: Path | None = None) -> Path:
    """Write the page of a run's folder, a ledger or an export, and return where it is.

    Raises:
        BadInputError: `source` is none of these, or `out` cannot be written, or is a file that is no report.
        LedgerError: the ledger is not whole; no page of it is made.
    """
    beside = source / "report.html" if source.is_dir() else source.with_name(f"{source.name}.report.html")
    path = out or beside
    refuse_other_file(path)
    page = render(source)  # before anything is written
    try:
        write_whole(path, page)
    except OSError as error:
        raise BadInputError(f"{path}: the report cannot be written ({error}). Name another file with --out.") from error
    return path


def render(source: Path) -> str:
    """Return the page of a run's folder, a ledger or an export."""
    course = _course(source) if source.is_dir() else None
    is_private = course is None or course.plan.unit != "none"
    ledger = facts(read(_ledger(source))) if is_private else None
    return (
        environment()
        .get_template("report.html")
        .render(
            source=source.resolve().name,
            course=course,
            ledger=ledger,
            spread=_spread(ledger, course),
            groups=[] if ledger is None else _groups(ledger),
            drawn=[] if course is None or course.rounds is None else _safe(charts.of_rounds(course.rounds)),
            trade_off=None if ledger is None else _trade_off(ledger.account.odds),
            false_positives=FALSE_POSITIVES,
            top=TOP,
            version=version("discreet"),
        )
    )


def _ledger(source: Path) -> Path:
    """Return the file to read, or raise BadInputError for what is no ledger at all."""
    if source.is_dir():
        if (source / run_record.RUN).exists():
            raise BadInputError(
                f"{source}: expected a simulated run, got one across organisations, whose ledgers are with them. Each "
                f"reports on its own: discreet report ledger.db. Who took part is in {run_record.ORGANISATIONS}."
            )
        return source / LEDGER
    try:
        with source.open("rb") as file:
            head = file.read(len(SQLITE))
    except OSError as error:
        raise BadInputError(f"{source}: expected a run's folder, a ledger or an export of one ({error}).") from error
    if head != SQLITE and head[: len(BEGINNING)] != BEGINNING:
        raise BadInputError(f"{source}: expected a run's folder, a ledger or an export of one, got another file.")
    return source


def _course(folder: Path) -> Course:
    """Read a run's folder, or raise BadInputError."""
    missing = [name for name in ("scenario.toml", "plan.json") if not (folder / name).is_file()]
    if missing:
        raise BadInputError(
            f"{folder}: expected a run's folder, with scenario.toml and plan.json, got no {missing[0]}."
        )
    try:
        plan = from_json_text((folder / "plan.json").read_text())
        rounds, clients = _table(folder / "rounds.csv"), _table(folder / "clients.csv")
        attempts = folder / "checkpoint" / "attempts.txt"
        is_secret = plan.unit == "client"  # who takes part is what hides a client
        return Course(
            scenario=load(folder / "scenario.toml"),
            plan=plan,
            rounds=rounds,
            done=0 if rounds is None else len(rounds),
            attempts=len(attempts.read_text().splitlines()) if attempts.exists() else 0,
            refused=None if is_secret or clients is None else int(clients["refusals"].sum()),
        )
    except (OSError, ValueError, KeyError, TypeError, ScenarioError) as error:
        raise BadInputError(f"{folder}: expected the files of a run, got one that does not read ({error}).") from error


def _table(path: Path) -> pd.DataFrame | None:
    table = pd.read_csv(path) if path.exists() else pd.DataFrame()
    return None if table.empty else table


def _spread(ledger: LedgerFacts | None, course: Course | None) -> dict[str, Any] | None:
    """How epsilon differs between accounts: of the run where there is one, else of all that was spent."""
    if ledger is None or len(ledger.balances) == 1:
        return None
    run = None if course is None else course.plan.run
    values = (
        [balance.verdict.reported for balance in ledger.balances] if run is None else epsilons_of(ledger.statement, run)
    )
    table = pd.Series(values, dtype=float)
    if table.empty:
        return None
    quantiles = {share: table.quantile(share, interpolation="higher") for share in (0, 0.25, 0.5, 0.75, 1)}
    label = f"How ε is spread over {len(values)} accounts: from {min(values):.3f} to {max(values):.3f}"
    is_drawn = len(values) >= _MANY and max(values) > min(values)
    drawn = Markup(charts.spread("spread", values=values, axis="ε", label=label)) if is_drawn else None  # noqa: S704 - our own drawing, escaped
    return {"of_run": run is not None, "accounts": len(values), "quantiles": quantiles, "drawn": drawn}


def _groups(ledger: LedgerFacts) -> list[tuple[Balance, Terms, int]]:
    """Accounts whose figures are the same: the first of them, and how many they are."""
    groups: dict[tuple[object, ...], tuple[Balance, Terms, int]] = {}
    for balance in ledger.balances:
        terms = ledger.statement.books.accounts[balance.account].terms[-1]
        key = (*(value for field, value in vars(balance).items() if field != "account"), terms.records, terms.unit)
        first = groups.get(key, (balance, terms, 0))
        groups[key] = (*first[:2], first[2] + 1)
    return list(groups.values())


def _safe(drawn: list[tuple[str, str]]) -> list[tuple[Markup, str]]:
    return [(Markup(svg), caption) for svg, caption in drawn]  # noqa: S704 - our own drawing, escaped


def _trade_off(odds: Odds) -> Markup:
    words = f"{percent_up(odds.hits)} at {FALSE_POSITIVES:.0%}"
    return Markup(charts.of_odds(odds, words=words))  # noqa: S704 - as above


def refuse_other_file(path: Path) -> None:
    """Refuse to write over anything that is no page of ours: a slip of the hand must not cost a ledger."""
    if path.is_dir() or (path.exists() and path.read_bytes()[: len(START)] != START):
        raise BadInputError(
            f"{path}: expected a new file, or an earlier report or page to replace, got something else. Move it."
        )


def environment() -> Environment:
    """Return what fills in the pages' templates."""
    templates = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(
        loader=templates, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    filters = (up, down, percent_up, small, one_in, when, count)
    environment.filters.update({made.__name__: made for made in filters})
    return environment


def up(number: float, places: int = 3) -> str:
    """Write a bound, rounded up."""
    return _rounded(number, places, ROUND_CEILING)


def down(number: float, places: int = 3) -> str:
    """Write what is left, rounded down."""
    return _rounded(number, places, ROUND_FLOOR)


def _rounded(number: float, places: int, how: str) -> str:
    return (
        "∞"
        if number == float("inf")
        else f"{Decimal(repr(float(number))).quantize(Decimal(1).scaleb(-places), rounding=how):,}"
    )


def percent_up(share: float) -> str:
    """Write a share as per cent, rounded up, with as many digits as tell it from 100 %."""
    gap = Decimal(1) - Decimal(repr(float(share)))
    places = min(max(2, 1 - (100 * gap).adjusted()), 6) if gap > 0 else 0
    text = _rounded(share, places + 2, ROUND_CEILING)
    return f"{Decimal(text) * 100:.{places}f} %" if Decimal(text) < 1 else "100 %"


def small(number: float) -> str:
    """Write a small number with three digits, rounded up: 0.00143, 10⁻⁵, 2·10⁻⁵."""
    exact = Decimal(repr(float(number)))
    digits = exact.quantize(Decimal(1).scaleb(exact.adjusted() - 2), rounding=ROUND_CEILING)
    mantissa, _, exponent = f"{float(digits):.3g}".partition("e")
    if not exponent:
        return mantissa
    power = "10" + str(int(exponent)).translate(_RAISED)
    return power if mantissa == "1" else f"{mantissa}·{power}"


def one_in(probability: float) -> str:
    """Write a probability as one in so many."""
    return f"1 in {int(1 / Decimal(repr(float(probability)))):,}"


def when(time_ms: int) -> str:
    """Write a time of a ledger."""
    return f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"


def count(number: int) -> str:
    """Write a whole number, its thousands apart."""
    return f"{number:,}"
