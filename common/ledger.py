"""The ledger: what was spent on an owner's data, in a file that cannot be changed unnoticed.

    ledger = Ledger.create(path)
    ledger.open_accounts({"cardiology": terms})
    ledger.begin_run("run-7", {"cardiology": Share(events=events, wanted=42)})
    refusals = ledger.reserve([charge])      durable: only now may a record be read
    ledger.settle([charge])                  the report may leave
    ledger.end_run("run-7")                  what was not used is free again

Append-only, one Merkle tree over all entries, a signed checkpoint with every write. Every write first takes up what
other processes have written, under the file's lock: two processes cannot both spend the last of a budget.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from common.errors import LedgerError
from common.messages import Refusal
from common.privacy.admission import Admission, admission
from common.privacy.events import History
from common.transparency import database, drafts
from common.transparency.books import Account, Books
from common.transparency.drafts import Charge
from common.transparency.entries import PLAN_ROUND, Audit, Decision, Terms
from common.transparency.log import Extension, Log, Write

MAX_REFUSALS = 1_000  # that are noted for one account


@dataclass(frozen=True, kw_only=True)
class Share:
    """What a run asks of an account: these events, up to `wanted` times."""

    events: History
    wanted: int


class _RehearsalEnd(Exception):  # noqa: N818 - no error
    """Ends a transaction that was only tried."""


class Ledger:
    """One owner's ledger.

    Guarantees:
        When `reserve` returns None for a charge, that charge survives a crash of the machine.
        No account is charged beyond what `begin_run` admitted, by however many processes, in whatever order.
        A file that is not whole, or whose clock runs backwards, raises LedgerError before anything is charged.
    """

    def __init__(self, path: Path, *, memory: Path | None = None) -> None:
        """Open an existing ledger and check all of it, or raise LedgerError.

        Args:
            path: the SQLite file.
            memory: a file elsewhere that holds the newest checkpoint that was seen, and is kept up: an older copy of
                the ledger, or one with another history, is refused.
        """
        self._log = Log(path, memory=memory)
        self.path, self.key = path, self._log.key

    @classmethod
    def create(cls, path: Path) -> "Ledger":
        """Make a new ledger and its keys, and open it; LedgerError when there is one, or was one."""
        database.make(path)
        return cls(path)

    def close(self) -> None:
        """Let go of the file."""
        self._log.close()

    @property
    def books(self) -> Books:
        """What the entries add up to, those of other processes included."""
        with self._log.reading():
            return self._log.books

    @property
    def checkpoint(self) -> str:
        """The newest signed checkpoint; LedgerError before the first entry."""
        with self._log.reading():
            note = self._log.newest()
        if note is None:
            raise LedgerError(f"{self.path}: the ledger is empty: there is nothing to sign yet.")
        return note

    def extension(self, old_size: int) -> Extension:
        """Return the newest checkpoint, and the proof that it only adds to the first `old_size` entries.

        RolledBackError when the ledger has fewer entries, LedgerError when it has none.
        """
        with self._log.reading():
            return self._log.extension(old_size)

    def open_accounts(self, terms: Mapping[str, Terms]) -> None:
        """Open accounts that are not there yet; where the terms are others than before, note the change.

        Terms that allow less end the account's open runs: what they had reserved was decided under the old ones.
        """
        with self._log.writing() as write:
            self._open_accounts(write, terms)

    def begin_run(self, run: str, shares: Mapping[str, Share]) -> dict[str, Admission]:
        """Reserve a run on its accounts, as much of it as fits; return what was decided now.

        An account that has reserved for this run already is left as it is; LedgerError if the events are others.
        """
        with self._log.writing() as write:
            return self._begin_run(write, run, shares)

    def foreseen(self, terms: Mapping[str, Terms], charge: Charge, *, wanted: int) -> Refusal | None:
        """Return what opening the accounts, beginning the run and this order would come to, and write nothing."""
        answer = None
        with suppress(_RehearsalEnd), self._log.writing() as write:
            self._open_accounts(write, terms)
            self._begin_run(write, charge.run, {charge.account: Share(events=charge.events, wanted=wanted)})
            answer = self._refusal(charge)
            raise _RehearsalEnd  # the transaction is rolled back
        return answer

    def reserve(self, charges: Sequence[Charge]) -> list[Refusal | None]:
        """Charge what was admitted, all in one durable write; for each charge None, or why not."""
        answers: list[Refusal | None] = []
        with self._log.writing() as write:
            for charge in charges:
                word = self._refusal(charge)
                answers.append(word)
                if word is None:
                    write(drafts.reserve(charge, policy=self._account(charge.account).terms[-1].policy))
                else:
                    self._note_refusal(write, charge, word)
        return answers

    def settle(self, committed: Sequence[Charge], expired: Sequence[Charge] = ()) -> None:
        """Say which charged orders were carried out, and of which nothing more will be heard.

        Where a run was closed meanwhile its orders have expired, and stay so.
        """
        with self._log.writing() as write:
            for charge in committed:
                if not self._is_over(charge):
                    write(drafts.commit(charge))
            for charge in expired:
                if not self._is_over(charge):
                    write(drafts.expire(charge.account, charge.run, charge.round, charge.attempt))

    def refuse(self, charge: Charge, word: Refusal) -> None:
        """Note that an order or a run was turned down."""
        with self._log.writing() as write:
            self._note_refusal(write, charge, word)

    def end_run(self, run: str) -> None:
        """Close a run on all its accounts: what was not heard of expires, what was not used is free again."""
        with self._log.writing() as write:
            for name, account in self._log.books.accounts.items():
                if run in account.runs and not account.runs[run].is_closed:
                    _close(write, name, account, run)

    def audited(self, account: str, run: str, findings: Mapping[str, str]) -> None:
        """Note what an empirical audit of a run found: texts under names of ASCII letters."""
        with self._log.writing() as write:
            write(
                lambda sequence, time_ms: Audit(
                    sequence=sequence, time_ms=time_ms, account=account, run=run, findings=findings
                )
            )

    def decided(self, account: str, run: str, *, decision: Decision, by: str, purpose: str, scenario: str) -> None:
        """Note what a person decided on a run, of which the scenario's text has this SHA-256."""
        with self._log.writing() as write:
            write(drafts.approval(account, run, decision=decision, by=by, purpose=purpose, scenario=scenario))

    def _open_accounts(self, write: Write, terms: Mapping[str, Terms]) -> None:
        for name, wanted in terms.items():
            known = self._log.books.accounts.get(name)
            if known is None:
                write(drafts.opening(name, wanted, is_change=False))
            elif known.terms[-1] != wanted:
                if wanted.budget < known.terms[-1].budget or wanted.delta < known.terms[-1].delta:
                    for run in [run for run, one in known.runs.items() if not one.is_closed]:
                        _close(write, name, known, run)
                write(drafts.opening(name, wanted, is_change=True))

    def _begin_run(self, write: Write, run: str, shares: Mapping[str, Share]) -> dict[str, Admission]:
        decided: dict[str, Admission] = {}
        for name, share in shares.items():
            account = self._account(name)
            if run in account.runs:
                if account.runs[run].events != share.events:
                    raise LedgerError(f"{self.path}: run {run} has reserved other events on {name}.")
                continue
            decided[name] = answer = admission(account, share.events, wanted=share.wanted)
            whole = Charge(account=name, run=run, round=PLAN_ROUND, attempt=1, events=share.events)
            if answer.participations:
                policy = account.terms[-1].policy
                write(drafts.reserve(whole, policy=policy, participations=answer.participations))
            else:
                self._note_refusal(write, whole, Refusal.BUDGET_SPENT)
        return decided

    def _is_over(self, charge: Charge) -> bool:
        run = self._account(charge.account).runs.get(charge.run)
        return run is not None and run.is_closed

    def _account(self, name: str) -> Account:
        if name not in self._log.books.accounts:
            raise LedgerError(f"{self.path}: there is no account {name}. Nothing was trained.")
        return self._log.books.accounts[name]

    def _refusal(self, charge: Charge) -> Refusal | None:
        account = self._log.books.accounts.get(charge.account)
        if account is None:
            return Refusal.NOT_IN_PLAN
        run = account.runs.get(charge.run)
        if run is None:
            was_too_much = _has_refused(account, charge.run, Refusal.BUDGET_SPENT)
            return Refusal.BUDGET_SPENT if was_too_much else Refusal.NOT_IN_PLAN
        if run.events != charge.events or charge.round == PLAN_ROUND:
            return Refusal.NOT_IN_PLAN
        if (charge.round, charge.attempt) in run.seen:
            return Refusal.ALREADY_TRAINED
        return Refusal.BUDGET_SPENT if run.is_closed or run.charged >= run.admitted else None

    def _note_refusal(self, write: Write, charge: Charge, word: Refusal) -> None:
        """Note a refusal once for each run and word, and not without end: a flood of orders fills no disk."""
        account = self._log.books.accounts.get(charge.account)
        if account is None or len(account.refusals) >= MAX_REFUSALS or _has_refused(account, charge.run, word):
            return
        write(drafts.refuse(charge, word.value))


def _close(write: Write, name: str, account: Account, run: str) -> None:
    for number, attempt in sorted(account.runs[run].unsettled):
        write(drafts.expire(name, run, number, attempt))
    write(drafts.close(name, run, account.runs[run].charged))


def _has_refused(account: Account, run: str, word: Refusal) -> bool:
    return any(refusal.run == run and refusal.word == word.value for refusal in account.refusals)
