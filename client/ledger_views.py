"""What `discreet ledger` shows: balances, the result of a verification, a proof."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.errors import BadInputError
from common.ledger import Ledger
from common.privacy.accounting import Verdict
from common.transparency.entries import type_of
from common.transparency.export import Statement, read
from common.transparency.merkle import consistency_proof, inclusion_proof
from common.transparency.notes import VerifierKey
from common.transparency.verification import Balance, Watch, balances, verify

MANY = 12  # accounts that are shown one by one


def verified(path: Path, *, key: Path | None, extends: Path | None, watch: Watch | None = None) -> dict[str, Any]:
    """Verify a ledger or an export, and return what was found as plain values; LedgerError when it is not whole.

    Args:
        path: a ledger's file or an export of it.
        key: the file of the owner's public key, or None.
        extends: a file with an earlier checkpoint, or None.
        watch: told how many of the distinct histories are done.
    """
    statement = read(path)
    verify(
        statement,
        key=None if key is None else _key(key),
        extends=None if extends is None else _text(extends),
        watch=watch,
    )
    return table_of(statement) | {"signer": "unknown" if key is None else statement.key.name}


def table_of(statement: Statement) -> dict[str, Any]:
    """Return a ledger's balances as plain values."""
    return {
        "origin": statement.checkpoint.origin,
        "size": statement.checkpoint.size,
        "root": statement.checkpoint.root.hex(),
        "key": str(statement.key),
        "accounts": [_account(statement, balance) for balance in balances(statement)],
    }


def proof(path: Path, *, entry: int | None, since: int | None) -> dict[str, Any]:
    """Return the proof that an entry is in a ledger, or that it begins with its first `since` entries.

    Raises:
        BadInputError: no such entry or size, or not exactly one of both was asked for.
        LedgerError: the ledger is not whole.
    """
    if (entry is None) == (since is None):
        raise BadInputError("expected --entry N or --since SIZE, one of them.")
    statement = read(path)
    try:
        if entry is not None:
            hashes = inclusion_proof(statement.leaves, entry)
            asked = {"entry": entry, "leaf": statement.leaves[entry].hex()}
        else:
            hashes = consistency_proof(statement.leaves, since or 0)
            asked = {"since": since or 0}
    except IndexError as error:
        raise BadInputError(f"{path}: {error}.") from error
    return asked | {
        "size": statement.checkpoint.size,
        "root": statement.checkpoint.root.hex(),
        "proof": [item.hex() for item in hashes],
        "checkpoint": statement.note,
    }


def closed(path: Path, run: str) -> str:
    """Close the run whose identifier begins with `run`, and say what that freed; BadInputError unless there is one."""
    with closing(Ledger(path)) as ledger:
        accounts = ledger.books.accounts.values()
        if not run:
            raise BadInputError("expected a run's identifier, or how it begins, got nothing.")
        known = {name for account in accounts for name in account.runs if name.startswith(run)}
        if len(known) != 1:
            raise BadInputError(f"{path}: expected one run that begins with {run!r}, got {len(known)}.")
        (name,) = known
        held = [account.runs[name] for account in accounts if name in account.runs]
        unused = sum(one.admitted - one.charged for one in held if not one.is_closed)
        ledger.end_run(name)
    return f"Run {name} is closed on {len(held)} accounts; {unused} reserved participations are free again."


def show(table: Mapping[str, Any]) -> None:
    """Print balances for people."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    grid = Table(title="What was spent", title_justify="left", box=None, padding=(0, 2, 0, 0))
    grid.add_column("account", no_wrap=True, min_width=20)
    for heading in ("alike", "runs", "refused", "ε", "filter", "budget", "left"):
        grid.add_column(heading, justify="right")
    groups = _alike(table["accounts"])
    for account, names in groups[:MANY]:
        grid.add_row(
            names[0], str(len(names)), str(account["runs"]), str(account["refusals"]), f"{account['epsilon']:.3f}",
            _number(account["filter_epsilon"]), f"{account['budget']:g}", f"{account['left']:.3f}",
        )  # fmt: skip
    if len(groups) > MANY:
        grid.caption = f"the {MANY} that spent most, of {len(groups)} kinds; --json has all"
    console.print(grid)
    most = groups[0][0]
    console.print(f"Each ε protects one {most['unit']}, at δ = {most['delta']:g}, {most['adjacency']} adjacency.")
    console.print(in_words(most))
    console.print("What is left is counted by the filter, which admits every run after an account's first.")
    for entry in table.get("entries", []):
        console.print(_entry_in_words(entry), soft_wrap=True, highlight=False)
    console.print(f"{table['size']} entries, root {table['root']}", soft_wrap=True)
    console.print(f"Signed with {table['key']}", soft_wrap=True)


def show_verified(table: Mapping[str, Any]) -> None:
    """Print the result of a verification for people."""
    from rich.console import Console

    show(table)
    signer = "signer unknown" if table["signer"] == "unknown" else f"signed by {table['signer']}"
    Console().print(f"[bold]Whole, {signer}, and it adds up.[/bold]", soft_wrap=True)
    Console().print(
        "Compare size and root with what a witness, or you, saw before (--extends): an older copy is whole too. That "
        "noise was really drawn, no ledger can show.",
        soft_wrap=True,
    )


def shown(path: Path, *, entries: int) -> dict[str, Any]:
    """Return a ledger's balances and its last entries as plain values."""
    statement = read(path)
    return table_of(statement) | {"entries": _last(statement, entries) if entries else []}


def _last(statement: Statement, count: int) -> list[dict[str, Any]]:
    return [
        {
            "sequence": entry.sequence,
            "type": type_of(entry),
            "account": entry.account,
            "time_ms": entry.time_ms,
            "run": getattr(entry, "run", None),
            "round": getattr(entry, "round", None),
            "word": getattr(entry, "word", None),
            "decision": getattr(entry, "decision", None),
            "by": getattr(entry, "by", None),
        }
        for entry in statement.entries[-count:]
    ]


def in_words(account: Mapping[str, Any]) -> str:
    """Say what three accountants answer for one account."""
    check = account["check"]
    parts = [f"{name.upper()} {check[name]:.4f}" for name in ("pld", "prv", "rdp") if check[name] is not None]
    silent = f" {check['unanswered']}." if check["unanswered"] else ""
    return f"{', '.join(parts)}; reported is {check['reported_by'].upper()}.{silent}"


def _entry_in_words(entry: Mapping[str, Any]) -> str:
    when = datetime.fromtimestamp(entry["time_ms"] / 1000, UTC)
    number = "" if entry["round"] is None else f", round {entry['round']}"
    order = "" if entry["run"] is None else f" run {entry['run'][:8]}{number}"
    decided = "" if entry["decision"] is None else f" {entry['decision']} by {entry['by']}"
    head = f"{entry['sequence']:>7} {when:%Y-%m-%d %H:%M:%S} {entry['type']:<8} {entry['account']}"
    return f"{head}{order}{decided} {entry['word'] or ''}".rstrip()


def _alike(accounts: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], list[str]]]:
    """Accounts whose figures are equal, with their names; those that spent most come first."""
    groups: dict[tuple[object, ...], tuple[Mapping[str, Any], list[str]]] = {}
    for account in accounts:
        figures = tuple(account[name] for name in ("unit", "delta", "runs", "epsilon", "budget", "refusals"))
        groups.setdefault(figures, (account, []))[1].append(account["account"])
    return sorted(groups.values(), key=lambda group: -group[0]["epsilon"])


def _account(statement: Statement, balance: Balance) -> dict[str, Any]:
    account = statement.books.accounts[balance.account]
    terms = account.terms[-1]
    return {
        "account": balance.account,
        "owner": terms.owner,
        "lineage": terms.lineage,
        "version": terms.version,
        "unit": terms.unit,
        "adjacency": terms.adjacency,
        "delta": terms.delta,
        "records": terms.records,
        "runs": balance.runs,
        "epsilon": balance.verdict.reported,
        "filter_epsilon": balance.filter_epsilon,
        "budget": balance.budget,
        "left": balance.left,
        "policy_changes": len(account.terms) - 1,
        "refusals": len(account.refusals),
        "approvals": [
            {"run": one.run, "decision": one.decision, "by": one.by, "purpose": one.purpose, "scenario": one.scenario}
            for one in account.approvals
        ],
        "unsettled": sum(len(run.unsettled) for run in account.runs.values()),
        "check": _check(balance.verdict),
    }


def _check(verdict: Verdict) -> dict[str, Any]:
    return {
        "pld": verdict.pld,
        "prv": verdict.prv,
        "prv_interval": None if verdict.prv_low is None else [verdict.prv_low, verdict.prv_high],
        "rdp": verdict.rdp,
        "reported_by": verdict.reported_by,
        "unanswered": verdict.unanswered,
    }


def _key(path: Path) -> VerifierKey:
    try:
        return VerifierKey.parse(_text(path))
    except ValueError as error:
        raise BadInputError(f"{path}: expected a public key as in the ledger's .pub file ({error}).") from error


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path}: cannot be read ({error}).") from error


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
