"""A page for people: what an attacker sees of a model, and of an update.

One HTML file that asks no network for anything and runs no script. Its words are in `templates/attack.html`.
"""

from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.console import Console
from rich.table import Table

from common.config import Scenario
from common.errors import BadInputError
from common.files import write_whole
from simulations import report
from simulations.attack import pictures as drawing
from simulations.attack.attack import PICTURES, Attacked, Findings, Stage, attack, refuse_unfit
from simulations.attack.inversion import Inverted
from simulations.attack.roc import RATES, Hits

ILLUSTRATION = (
    "An illustration, not a verification: attacks on a finished model find little even where the noise is left out, so "
    "that finding nothing proves nothing. `discreet audit` is the tool that can refute a claim."
)

RECOGNISABLE = 0.1  # of the error of an even grey


def make(
    scenario: Scenario, *, shadows: int, pictures: int = PICTURES, out: Path | None = None, stage: Stage
) -> tuple[Findings, Path]:
    """Attack a scenario's training and write the page; return what was found, and where the page is.

    Raises:
        BadInputError: another unit than single records, or a page that cannot be written; nothing was trained.
        DataMissingError: the data set is not there.
    """
    refuse_unfit(scenario)
    path = out or Path("runs") / f"{scenario.run.name}-attack-{datetime.now(UTC):%Y%m%d-%H%M%S}.html"
    report.refuse_other_file(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        findings = attack(scenario, shadows=shadows, pictures=pictures, stage=stage)
        write_whole(path, render(findings))
    except OSError as error:
        raise BadInputError(f"{path}: the page cannot be written ({error}). Name another file with --out.") from error
    return findings, path


def render(findings: Findings) -> str:
    """Return the page."""
    environment = report.environment()
    environment.filters["percent"] = percent
    drawn = Markup(drawing.curves(findings, label=_label(findings)))  # noqa: S704 - our own drawing, escaped
    return environment.get_template("attack.html").render(
        found=findings,
        rows=_rows(findings),
        limits=None if findings.limit is None else list(zip(RATES, findings.limit.hits, strict=True)),
        drawn=drawn,
        shown=[_shown(findings, inverted) for inverted in findings.pictures],
        rates=RATES,
        recovered=_recovered(findings.pictures),
        height=findings.pictures[0].original_CHW.shape[1] if findings.pictures else 1,
        width=findings.pictures[0].original_CHW.shape[2] if findings.pictures else 1,
        version=version("discreet"),
    )


def percent(share: float) -> str:
    """Write a measured share as per cent, rounded to two digits: 0.13 %, 2.6 %, 87 %; less than 0.01 % is near 0."""
    if 0 < share < 1e-4:  # noqa: PLR2004 - no count here shows so little
        return "~0 %"
    return f"{float(f'{100 * share:.2g}'):g} %"


def show(findings: Findings, path: Path) -> None:
    """Print the figures for people, and where the page is."""
    console = Console(highlight=False)
    table = Table(title=f"What an attacker recognises of {findings.records:,} records", title_justify="left")
    for heading in ("models", "attack", "AUC", *(f"{percent(rate)} wrongly accused" for rate in RATES)):
        table.add_column(heading, justify="left" if heading in {"models", "attack"} else "right", overflow="fold")
    for words, attack_words, area, hits in _rows(findings):
        table.add_row(words, attack_words, f"{area:.3f}", *(_interval(one) for one in hits))
    if findings.limit is not None:
        most = (f"at most {report.percent_up(share)}" for share in findings.limit.hits)
        table.add_row("private", "any attack at all", "", *most)
    console.print(table)
    if findings.pictures:
        console.print(_errors(findings.pictures))
    console.print(ILLUSTRATION)
    console.print(f"Page: {path}", soft_wrap=True)


def _rows(findings: Findings) -> list[tuple[str, str, float, tuple[Hits, ...]]]:
    """Which models, which attack, its area, its hits."""
    ways: list[tuple[str, Attacked]] = [("noise left out" if findings.private else "no privacy", findings.unprotected)]
    ways += [("private", findings.private)] if findings.private else []
    return [
        row
        for words, way in ways
        for row in (
            (words, "likelihood ratio", way.likelihood_ratio.area, way.likelihood_ratio_hits),
            (words, "loss threshold", way.loss.area, way.loss_hits),
        )
    ]


def _label(findings: Findings) -> str:
    """The curves in one sentence, for those who do not see them."""
    found = [f"{percent(hits[0].value)} by {words} ({which})" for which, words, _, hits in _rows(findings)]
    return f"Recognised while {percent(RATES[0])} are wrongly accused: {', '.join(found)}."


def _shown(findings: Findings, inverted: Inverted) -> dict[str, Any]:
    """A picture's three faces as they go into the page."""
    private = inverted.private_CHW
    return {
        "inverted": inverted,
        "original": drawing.png(inverted.original_CHW, findings.pixels),
        "found": drawing.png(inverted.found_CHW, findings.pixels),
        "private": None if private is None else drawing.png(private, findings.pixels),
    }


def _recovered(inverted: tuple[Inverted, ...]) -> str:
    """What the errors say, in words."""
    found = sum(one.error < RECOGNISABLE * one.blind_error for one in inverted)
    words = f"Unprotected, {found} of {len(inverted)} pictures came back: less than a tenth of an even grey's error"
    private = [one for one in inverted if one.private_error is not None]
    if not private:
        return f"{words}."
    hidden = sum((one.private_error or 0.0) >= one.blind_error for one in private)
    return f"{words}. Under noise, {hidden} of {len(private)} are no better than that grey."


def _interval(hits: Hits) -> str:
    return f"{percent(hits.value)}\n({percent(hits.low)} to {percent(hits.high)})"


def _errors(inverted: tuple[Inverted, ...]) -> str:
    """What the inversion reached, in one line."""
    plain = ", ".join(f"{one.error:.4f}" for one in inverted)
    blind = ", ".join(f"{one.blind_error:.3f}" for one in inverted)
    private = ", ".join(f"{one.private_error:.3f}" for one in inverted if one.private_error is not None)
    return (
        f"Pictures from one update, mean squared error (black to white is 1): {plain} unprotected"
        f"{f', {private} private' if private else ''}; an even grey has {blind}."
    )
