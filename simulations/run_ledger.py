"""A simulated run's ledger: in its folder, or one that several runs share.

A run folder always has `ledger.db`; where `--ledger` names another file it is a link to that. Every virtual owner has
an account of its own in it.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from client.budget import Budget, agreements
from common.config import Scenario
from common.errors import BadInputError, LedgerError, PlanRefusedError
from common.ledger import Ledger
from common.privacy.accounts import account_names, split_of, terms_of
from common.privacy.admission import Admission, admission
from common.privacy.plan import Plan
from common.transparency.books import Account, Books
from common.transparency.database import refuse_lost
from server.run_folder import LEDGER, LEDGER_SEEN

log = logging.getLogger("discreet.simulations")


def attach(folder: Path, ledger: Path | None, scenario: Scenario) -> None:
    """Give a new run's folder its ledger: a new one, or a link to `ledger`, which is made when it is not there."""
    if scenario.privacy.unit == "none":
        return
    path = folder / LEDGER if ledger is None else ledger
    if not path.exists():
        Ledger.create(path).close()
    if ledger is not None:
        (folder / LEDGER).symlink_to(ledger.resolve())


def refuse_unfit(ledger: Path | None, scenario: Scenario) -> None:
    """Refuse, before anything is written, a ledger that does not read or that is about another split of the data."""
    if ledger is None:
        return
    if scenario.privacy.unit == "none":
        raise BadInputError("--ledger: expected none of it with unit 'none', which spends nothing. Leave it out.")
    refuse_lost(ledger)
    if ledger.exists():
        with closing(Ledger(ledger)) as opened:
            refuse_other_split(opened.books, scenario)


def refuse_other_split(books: Books, scenario: Scenario) -> None:
    """Refuse a ledger in which the same records are in other accounts: no account would know all that they spent."""
    for name, account in books.accounts.items():
        terms = account.terms[-1]
        if terms.lineage == scenario.data.lineage_name and terms.version != split_of(scenario):
            raise PlanRefusedError(
                f"The ledger's accounts of {terms.lineage} are for '{terms.version}' (such as {name}), the scenario "
                f"is for '{split_of(scenario)}': a record would be in two accounts, and neither would know all that "
                f"it spent. Keep data, seed and unit as they were, or name another --ledger."
            )


def admissions(books: Books, scenario: Scenario, plan: Plan) -> list[Admission]:
    """Return for each account of a plan how much of it the ledger would admit, under the scenario's terms."""
    terms, names = terms_of(scenario, plan), account_names(scenario, plan)
    answers = []
    for client, name in enumerate(names):
        planned, known = plan.account(client), books.accounts.get(name)
        account = Account(terms=[*(known.terms if known else ()), terms[name]], runs=known.runs if known else {})
        answers.append(admission(account, planned.events, wanted=planned.reserved))
    return answers


@contextmanager
def claim(folder: Path, scenario: Scenario, plan: Plan, *, is_resumed: bool) -> Iterator[Budget | None]:
    """Hold the clients' accounts of a run; None where the clients have none.

    What the ledger looked like is kept in the run's folder: an older copy of it is refused when the run resumes.
    """
    if plan.unit == "none":
        yield None
        return
    with closing(_open(folder, is_resumed=is_resumed)) as ledger:
        if plan.unit == "client":  # the coordinator's own account: it opens the ledger itself
            yield None
            return
        names = account_names(scenario, plan)
        budget = Budget(ledger, run=plan.run, agreements=agreements(plan, names))
        known = ledger.books.accounts if is_resumed else {}  # whose terms may have been changed since
        decided = budget.begin({name: terms for name, terms in terms_of(scenario, plan).items() if name not in known})
        _warn(decided, plan, names)
        yield budget


def end(folder: Path, plan: Plan, budget: Budget | None = None) -> None:
    """Close a run on all its accounts, once it is over; a ledger that is open is not read a second time."""
    if budget is not None:
        budget.end()
    elif plan.unit != "none":
        with closing(Ledger(folder / LEDGER, memory=folder / LEDGER_SEEN)) as ledger:
            ledger.end_run(plan.run)


def _warn(decided: Mapping[str, Admission], plan: Plan, names: Sequence[str]) -> None:
    """Say before anything is trained that a budget will not last."""
    wanted = {name: plan.account(client).reserved for client, name in enumerate(names)}
    short = {name: answer for name, answer in decided.items() if answer.participations < wanted[name]}
    if short:
        name, least = min(short.items(), key=lambda item: item[1].participations)
        log.warning(
            "the ledger admits less than was planned on %d of %d accounts; least on %s: %d of %d participations, then "
            "epsilon is %.3f by PLD and %.3f by the filter, which decides",
            len(short), len(names), name, least.participations, wanted[name], least.epsilon, least.filter_epsilon,
        )  # fmt: skip


def _open(folder: Path, *, is_resumed: bool) -> Ledger:
    seen = folder / LEDGER_SEEN
    if is_resumed and not seen.exists() and (folder / "checkpoint").exists():
        raise LedgerError(
            f"{seen}: expected what the ledger looked like, got no file. The run cannot be resumed safely."
        )
    return Ledger(folder / LEDGER, memory=seen)
