"""The ledger: what is admitted, what is durable, and that whatever is wrong is refused before a record is read."""

import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sample_ledgers import EVENTS, METRICS, OTHER_POLICY, QUIETER, charge, filled, remembered, share, terms

from common import ledger as ledger_module
from common.errors import LedgerError
from common.ledger import Ledger
from common.messages import Refusal
from common.privacy.accounting import epsilon
from common.privacy.admission import account_order
from common.privacy.renyi_filter import filter_epsilon
from common.transparency import database, drafts, export, verification
from common.transparency.entries import PLAN_ROUND, Audit, Opening, Refuse, Reserve, Settle
from common.transparency.notes import Signer

SECOND_MS = 1_000


@pytest.fixture
def path(tmp_path) -> Path:
    """The place of a ledger."""
    return tmp_path / "a.ledger"


@pytest.fixture
def ledger(path):
    """A new ledger with account a, of epsilon 2."""
    opened = Ledger.create(path)
    opened.open_accounts({"a": terms()})
    yield opened
    opened.close()


def statement(path):
    """What a stranger reads in the file."""
    return export.read(path)


def times(count, events=EVENTS):
    """The history of so many participations."""
    return tuple(event.times(count) for event in events)


def sql(path, *statements: str):
    """Change the file behind the ledger's back."""
    with closing(sqlite3.connect(path)) as db:
        for line in statements:
            db.execute(line)
        db.commit()


def without_triggers(path):
    """Take the file's own guards away."""
    with closing(sqlite3.connect(path)) as db:
        names = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")]
        for name in names:
            db.execute(f"DROP TRIGGER {name}")
        db.commit()


def child(body, *arguments: object, launcher=()):
    """Run a program with the ledgers of these tests at hand in a process of its own."""
    program = "import sys, os\nfrom pathlib import Path\nfrom sample_ledgers import *\n" + textwrap.dedent(body)
    folders = [str(Path(__file__).parent), str(Path(ledger_module.__file__).parents[1])]
    return subprocess.Popen(
        [*launcher, sys.executable, "-W", "ignore", "-c", program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(folders)},
    )


def output(process, timeout=120):
    """What a child printed; its own error where it failed."""
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, err
    return out.split()


# Admission


def test_the_first_run_is_admitted_whole_by_pld(ledger):
    """As many as PLD says fit into the budget: n do, and n + 1 would not."""
    decided = ledger.begin_run("r", {"a": share(100)})["a"]
    n = decided.participations
    assert n == 4  # see sample_ledgers: 1.99 for 4, 2.26 for 5
    assert decided.gate == "pld"
    assert decided.epsilon == epsilon(times(n), delta=1e-5) <= 2.0 < epsilon(times(n + 1), delta=1e-5)
    assert ledger.reserve([charge(number) for number in range(1, n + 2)]) == [None] * n + [Refusal.BUDGET_SPENT]


def test_a_run_gets_no_more_than_it_wanted(ledger):
    """Two of the four that would fit."""
    assert ledger.begin_run("r", {"a": share(2)})["a"].participations == 2
    assert ledger.reserve([charge(1), charge(2), charge(3)]) == [None, None, Refusal.BUDGET_SPENT]


def test_the_second_run_is_admitted_by_the_filter(ledger):
    """After the first run what is asked may depend on what it released: n fit by the filter, n + 1 do not."""
    ledger.begin_run("r", {"a": share(1)})
    ledger.reserve([charge(1)])
    ledger.end_run("r")
    decided = ledger.begin_run("s", {"a": share(100, QUIETER)})["a"]
    order, n = account_order(ledger.books.accounts["a"]), decided.participations

    def by_filter(count):
        return filter_epsilon((*times(1), *times(count, QUIETER)), order=order, delta=1e-5)

    assert decided.gate == "filter"
    assert decided.filter_epsilon == pytest.approx(by_filter(n), rel=1e-12)
    assert by_filter(n) <= 2.0 < by_filter(n + 1)
    assert decided.epsilon < decided.filter_epsilon  # PLD would have allowed more
    assert 0 < n < 12  # 1/16 + 12/64 = 4/16: with 12 the account would be where PLD admits 4 of the first
    answers = ledger.reserve([charge(number, run="s", events=QUIETER) for number in range(1, n + 2)])
    assert answers == [None] * n + [Refusal.BUDGET_SPENT]


def test_a_budget_that_pld_has_filled_leaves_nothing_to_the_filter(ledger):
    """The filter is the stricter one: where PLD says 1.99 of 2, it says more than 2."""
    ledger.begin_run("r", {"a": share(4)})
    ledger.reserve([charge(number) for number in (1, 2, 3, 4)])
    ledger.end_run("r")
    assert ledger.begin_run("s", {"a": share(1)})["a"].participations == 0


def test_what_an_open_run_has_reserved_is_not_there_for_another(ledger):
    """A second run beside gets only what the first has not reserved, charged or not."""
    ledger.begin_run("r", {"a": share(4)})
    beside = ledger.begin_run("s", {"a": share(1)})["a"]
    assert (beside.participations, beside.gate) == (0, "filter")
    assert ledger.reserve([charge(1, run="s")]) == [Refusal.BUDGET_SPENT]
    assert ledger.reserve([charge(1)]) == [None]  # the first run has what it was given


def test_an_ended_run_frees_what_it_did_not_use(ledger):
    """After the end only what was charged counts: nothing was, so that PLD decides anew."""
    ledger.begin_run("r", {"a": share(4)})
    ledger.end_run("r")
    again = ledger.begin_run("s", {"a": share(100)})["a"]
    assert (again.participations, again.gate) == (4, "pld")


def test_an_ended_run_keeps_what_it_charged(ledger):
    """Orders of which nothing was heard expire, and stay charged in full."""
    ledger.begin_run("r", {"a": share(4)})
    ledger.reserve([charge(1), charge(2)])
    ledger.settle([charge(1)])
    ledger.end_run("r")
    run = ledger.books.accounts["a"].runs["r"]
    assert (run.charged, run.unsettled, run.is_closed) == (2, set(), True)
    assert ledger.books.accounts["a"].held() == times(2)
    assert ledger.reserve([charge(3)]) == [Refusal.BUDGET_SPENT]


def test_ending_a_run_twice_or_a_stranger_changes_nothing(ledger):
    """There is nothing to close."""
    ledger.begin_run("r", {"a": share(4)})
    ledger.end_run("r")
    before = ledger.checkpoint
    ledger.end_run("r")
    ledger.end_run("never")
    assert ledger.checkpoint == before


def test_a_run_is_decided_once(ledger):
    """Begun again, after a crash for instance, it keeps what it has; with other events it is refused."""
    ledger.begin_run("r", {"a": share(2)})
    assert ledger.begin_run("r", {"a": share(4)}) == {}
    assert ledger.books.accounts["a"].runs["r"].admitted == 2
    with pytest.raises(LedgerError, match="run r has reserved other events on a"):
        ledger.begin_run("r", {"a": share(2, QUIETER)})


def test_a_run_that_is_refused_on_one_account_begins_on_none(ledger):
    """All shares are written in one transaction."""
    ledger.open_accounts({"b": terms(lineage="oncology")})
    ledger.begin_run("r", {"b": share(1, QUIETER)})
    before = ledger.checkpoint
    with pytest.raises(LedgerError, match="other events on b"):
        ledger.begin_run("r", {"a": share(1), "b": share(1)})
    assert ledger.checkpoint == before
    assert not ledger.books.accounts["a"].runs


def test_accounts_do_not_share_a_budget(ledger):
    """What is spent on one lineage is not missing on another."""
    ledger.open_accounts({"b": terms(lineage="oncology")})
    decided = ledger.begin_run("r", {"a": share(9), "b": share(9)})
    assert {name: answer.participations for name, answer in decided.items()} == {"a": 4, "b": 4}


def test_an_account_that_was_never_opened_is_refused(ledger):
    """A run on it is an error, an order on it is not in the plan."""
    with pytest.raises(LedgerError, match="there is no account b"):
        ledger.begin_run("r", {"b": share(1)})
    assert ledger.reserve([charge(1, account="b")]) == [Refusal.NOT_IN_PLAN]


def test_the_same_order_is_charged_once(ledger):
    """Twice in one call, in two calls, settled or not; another attempt is another order."""
    ledger.begin_run("r", {"a": share(4)})
    assert ledger.reserve([charge(1), charge(1)]) == [None, Refusal.ALREADY_TRAINED]
    ledger.settle([charge(1)])
    assert ledger.reserve([charge(1), charge(1, attempt=2)]) == [Refusal.ALREADY_TRAINED, None]
    assert ledger.books.accounts["a"].runs["r"].charged == 2


@pytest.mark.parametrize(
    "unplanned",
    [charge(1, run="s"), charge(1, events=QUIETER), charge(1, events=(*EVENTS, METRICS)), charge(PLAN_ROUND)],
)
def test_what_is_not_in_the_plan_is_refused(ledger, unplanned):
    """Another run, another mechanism, more than was planned, or a round 0."""
    ledger.begin_run("r", {"a": share(4)})
    assert ledger.reserve([unplanned]) == [Refusal.NOT_IN_PLAN]
    assert ledger.books.accounts["a"].spent() == ()


def test_answers_stand_in_the_order_of_the_questions(ledger):
    """Admitted and refused mixed."""
    ledger.begin_run("r", {"a": share(2)})
    asked = [charge(1, run="s"), charge(2), charge(2), charge(3), charge(4)]
    assert ledger.reserve(asked) == [
        Refusal.NOT_IN_PLAN,
        None,
        Refusal.ALREADY_TRAINED,
        None,
        Refusal.BUDGET_SPENT,
    ]


def test_new_terms_are_noted_and_equal_ones_are_not(ledger):
    """A change of budget is an entry that every report shows; opening again as before is none."""
    ledger.open_accounts({"a": terms()})
    assert ledger.books.size == 1
    ledger.open_accounts({"a": terms(budget=3.0)})
    assert [item.budget for item in ledger.books.accounts["a"].terms] == [2.0, 3.0]


def test_a_new_version_of_the_data_opens_no_fresh_budget(ledger):
    """Everything ever spent on the lineage counts."""
    ledger.begin_run("r", {"a": share(4)})
    ledger.reserve([charge(number) for number in (1, 2, 3, 4)])
    ledger.end_run("r")
    ledger.open_accounts({"a": terms(version="2", policy=OTHER_POLICY)})
    assert ledger.begin_run("s", {"a": share(1)})["a"].participations == 0


def test_a_raised_budget_admits_more(ledger):
    """From then on."""
    ledger.begin_run("r", {"a": share(4)})
    ledger.end_run("r")
    ledger.open_accounts({"a": terms(budget=20.0)})
    assert ledger.begin_run("s", {"a": share(20)})["a"].participations == 20


def test_a_lowered_budget_holds_at_once(ledger):
    """What a run had reserved under the old terms is not charged beyond the new ones: the ledger still adds up."""
    ledger.begin_run("r", {"a": share(4)})
    ledger.reserve([charge(1)])
    ledger.open_accounts({"a": terms(budget=1.0, policy=OTHER_POLICY)})  # 1 is 0.92, 2 would be 1.36
    assert ledger.reserve([charge(2)]) == [Refusal.BUDGET_SPENT]
    verification.verify(statement(ledger.path))


def test_terms_that_allow_more_leave_open_runs_open(ledger):
    """A raised budget, or the same one under another name, takes nothing from who has reserved already."""
    ledger.begin_run("r", {"a": share(4)})
    ledger.open_accounts({"a": terms(budget=3.0, policy=OTHER_POLICY)})
    ledger.open_accounts({"a": terms(budget=3.0, version="2")})
    assert ledger.reserve([charge(1)]) == [None]


def test_an_order_that_is_under_way_when_its_run_ends_is_charged_and_settled_in_silence(ledger):
    """Lower terms, or the end of the run, meet an order in training: it has expired, and its report changes nothing."""
    ledger.begin_run("r", {"a": share(4)})
    ledger.reserve([charge(1), charge(2)])
    ledger.end_run("r")
    before = ledger.checkpoint
    ledger.settle([charge(1)], [charge(2)])
    assert ledger.checkpoint == before
    assert ledger.books.accounts["a"].spent() == times(2)


# Refusals and audits


def test_a_refusal_is_noted_once_for_each_run_and_word(ledger):
    """A flood of refused orders writes one entry."""
    ledger.begin_run("r", {"a": share(1)})
    ledger.reserve([charge(number) for number in range(1, 50)])
    ledger.reserve([charge(1), charge(1, run="s"), charge(2, run="s")])
    noted = [(refusal.run, refusal.word) for refusal in ledger.books.accounts["a"].refusals]
    assert noted == [("r", "budget-spent"), ("r", "already-trained"), ("s", "not-in-plan")]


def test_refusals_are_noted_up_to_a_limit(ledger, monkeypatch):
    """Ever new runs fill no disk, and are refused all the same."""
    monkeypatch.setattr(ledger_module, "MAX_REFUSALS", 3)
    answers = ledger.reserve([charge(1, run=f"run-{number}") for number in range(10)])
    assert answers == [Refusal.NOT_IN_PLAN] * 10
    assert len(ledger.books.accounts["a"].refusals) == 3


def test_a_refusal_for_nobodys_account_is_not_noted(ledger):
    """There is no account to note it on."""
    before = ledger.checkpoint
    ledger.refuse(charge(1, account="nobody"), Refusal.OUTSIDE_POLICY)
    ledger.refuse(charge(1), Refusal.OUTSIDE_POLICY)
    assert ledger.books.size == 2
    assert ledger.checkpoint != before


def test_what_an_audit_found_is_noted(ledger):
    """In its own words."""
    ledger.audited("a", "r", {"verdict": "not refuted"})
    (found,) = ledger.books.accounts["a"].audits
    assert (found.run, dict(found.findings)) == ("r", {"verdict": "not refuted"})


def test_what_a_person_decided_is_noted(ledger):
    """By whom, for which purpose and of which scenario; the last decision comes last."""
    for decision in ("approved", "refused"):
        ledger.decided("a", "r", decision=decision, by="Dr Grey", purpose="a trial", scenario="ef" * 32)
    first, last = ledger.books.accounts["a"].approvals
    assert (first.decision, last.decision) == ("approved", "refused")
    assert (last.run, last.by, last.purpose, last.scenario) == ("r", "Dr Grey", "a trial", "ef" * 32)


# What is written


def test_every_type_of_entry_is_written_and_read_again(path, tmp_path):
    """A ledger opened anew has the same books, and signs on."""
    ledger = filled(path)
    before, books = ledger.checkpoint, vars(ledger.books)
    ledger.close()
    kinds = Counter(type(entry) for entry in statement(path).entries)
    assert kinds == {Opening: 3, Reserve: 6, Settle: 3, Refuse: 1, Audit: 1}
    with closing(Ledger(path, memory=remembered(before, tmp_path))) as again:
        assert vars(again.books) == books
        assert again.checkpoint == before
        assert again.reserve([charge(2, run="s")]) == [None]


def test_an_empty_ledger_has_no_checkpoint(path):
    """There is nothing to sign, and nothing to export."""
    with closing(Ledger.create(path)) as ledger:
        assert ledger.books.size == 0
        with pytest.raises(LedgerError, match="the ledger is empty"):
            _ = ledger.checkpoint
        with pytest.raises(LedgerError, match="the ledger is empty"):
            statement(path)


def test_a_call_that_says_nothing_writes_nothing(ledger):
    """No entry, no checkpoint."""
    before = ledger.checkpoint
    assert ledger.reserve([]) == []
    ledger.settle([])
    ledger.open_accounts({})
    assert ledger.begin_run("r", {}) == {}
    assert ledger.checkpoint == before


def test_an_entry_that_breaks_a_rule_leaves_the_file_as_it_was(ledger):
    """Settling what was never reserved is refused, what was to be written with it too."""
    ledger.begin_run("r", {"a": share(2)})
    ledger.reserve([charge(1)])
    before = ledger.checkpoint
    with pytest.raises(LedgerError, match="entry 4 cannot be written: round 2, attempt 1 is not waiting"):
        ledger.settle([charge(1), charge(2)])
    assert ledger.checkpoint == before
    ledger.settle([charge(1)])


@pytest.mark.parametrize("run", ["", "x" * 501, "\ud800", "x" * 100_000])
def test_a_name_that_could_not_be_read_again_is_never_written(ledger, path, run):
    """Whatever a coordinator calls its run: the entry is refused, and the ledger still reads."""
    for write in (
        lambda: ledger.begin_run(run, {"a": share(1)}),
        lambda: ledger.reserve([charge(1, run=run)]),
        lambda: ledger.refuse(charge(1, run=run), Refusal.OUTSIDE_POLICY),
        lambda: ledger.audited("a", run, {"verdict": "refuted"}),
    ):
        with pytest.raises(LedgerError):
            write()
    assert statement(path).books.size == 1
    Ledger(path).close()


@pytest.mark.parametrize("number", [-1, 2**53, 2**63, 10**30])
def test_a_number_that_could_not_be_read_again_is_never_written(ledger, path, number):
    """Rounds and attempts beyond what is read, however they got here."""
    ledger.begin_run("r", {"a": share(3)})
    for order in (charge(number), charge(1, attempt=number)):
        with pytest.raises(LedgerError):
            ledger.reserve([order])
    Ledger(path).close()


def test_terms_that_could_not_be_read_again_are_never_written(ledger, path):
    """An owner without a name, an adjacency that is not counted, a run of no events."""
    for account, changes in (("b", {"owner": ""}), ("c", {"adjacency": "replace-one"}), ("d", {"unit": "hospital"})):
        with pytest.raises(LedgerError):
            ledger.open_accounts({account: terms(**changes)})
    with pytest.raises(LedgerError):
        ledger.begin_run("r", {"a": share(1, ())})
    Ledger(path).close()


def test_the_file_refuses_to_be_changed(path):
    """Triggers of its own refuse UPDATE and DELETE, on every table."""
    filled(path).close()
    values = {"entries": "body = x'00'", "checkpoints": "note = 'x'", "identity": "key = 'x'"}
    for table, value in values.items():
        for line in (f"UPDATE {table} SET {value}", f"DELETE FROM {table}"):  # noqa: S608 - our own words
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                sql(path, line)
    Ledger(path).close()


def test_an_order_has_one_reservation_in_the_file(path):
    """The file itself refuses a second one, whoever writes it."""
    filled(path).close()
    columns = "type, account, run, round, attempt, body"
    again = f"INSERT INTO entries SELECT 99, {columns} FROM entries WHERE sequence = 3"  # noqa: S608 - our own words
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        sql(path, again)


def test_writes_wait_for_the_disk(ledger):
    """The connection syncs at every commit, to a log beside the file."""
    db = ledger._log._db
    assert db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


# Keys


def test_the_private_key_is_for_its_owners_eyes(ledger, path):
    """Mode 0600; the public key reads back as the ledger's."""
    private, public = database.key_files(path)
    assert private.stat().st_mode & 0o777 == 0o600
    assert public.read_text() == f"{ledger.key}\n"
    assert str(private) == f"{path}.key"


def break_key(private, how):
    """Spoil a private key."""
    match how:
        case "missing":
            private.unlink()
        case "foreign":
            private.write_bytes(Signer.new(Signer.from_pem("x", private.read_bytes()).key.name).pem())
        case "folder":
            private.unlink()
            private.mkdir()
        case "cut off":
            private.write_bytes(private.read_bytes()[:-40])
        case _:
            private.write_bytes({"empty": b"", "garbled": b"\xff\x00garbage"}[how])


@pytest.mark.parametrize("how", ["missing", "foreign", "empty", "garbled", "cut off", "folder"])
def test_without_its_own_private_key_a_ledger_is_refused(path, how):
    """Nothing could be signed."""
    filled(path).close()
    break_key(Path(f"{path}.key"), how)
    with pytest.raises(LedgerError, match=r"a\.ledger\.key: expected the (ledger's )?private key"):
        Ledger(path)


def test_a_ledger_is_made_once(ledger, path):
    """Neither over a ledger, nor over the key of one that was lost."""
    with pytest.raises(LedgerError, match="expected no file, got one"):
        Ledger.create(path)
    path.unlink()
    with pytest.raises(LedgerError, match=r"was lost\. Nothing was trained; bring it back"):
        Ledger.create(path)


def test_two_ledgers_have_two_keys_and_origins(tmp_path):
    """Neither can be taken for the other."""
    with closing(Ledger.create(tmp_path / "1")) as one, closing(Ledger.create(tmp_path / "2")) as two:
        assert one.key.name != two.key.name
        assert one.key.public != two.key.public


def test_a_link_to_a_ledger_finds_its_key(path, tmp_path):
    """The key lies beside the file, not beside the link."""
    filled(path).close()
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "link").symlink_to(path)
    with closing(Ledger(folder / "link")) as ledger:
        assert ledger.reserve([charge(2, run="s")]) == [None]


# Files that are no ledger


def make_file(path, how):
    """Put something else in the place of a ledger."""
    match how:
        case "missing":
            path.unlink()
        case "folder":
            path.unlink()
            path.mkdir()
        case "other SQLite file":
            path.unlink()
            sql(path, "CREATE TABLE entries (sequence INTEGER, body BLOB)")
        case "half":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        case _:
            path.write_bytes({"empty": b"", "garbage": b"garbage" * 9999, "text": b"SQLite format 3\x00 not"}[how])


@pytest.mark.parametrize("how", ["missing", "folder", "other SQLite file", "half", "empty", "garbage", "text"])
def test_a_file_that_is_no_ledger_is_refused(path, how):
    """It is never taken for an empty ledger, and never made into one."""
    filled(path).close()
    make_file(path, how)
    was = path.read_bytes() if path.is_file() else None
    with pytest.raises(LedgerError, match=r"a\.ledger: .*Nothing was trained"):
        Ledger(path)
    with pytest.raises(LedgerError, match=r"a\.ledger: "):
        export.read(path)
    assert (path.read_bytes() if path.is_file() else None) == was


def test_a_ledger_of_a_newer_version_is_refused(path):
    """What a newer Discreet wrote may mean something else, to who opens it and to who reads it."""
    filled(path).close()
    sql(path, "PRAGMA user_version = 2")
    with pytest.raises(LedgerError, match="expected a ledger of version 1, got 2"):
        Ledger(path)
    with pytest.raises(LedgerError, match="version"):
        export.read(path)


def test_a_ledger_with_two_identities_is_refused(path):
    """It has one key, from its making on."""
    filled(path).close()
    without_triggers(path)
    sql(path, "INSERT INTO identity VALUES ('x', 'y')")
    for opens in (Ledger, export.read):
        with pytest.raises(LedgerError):
            opens(path)


TAMPERINGS = {
    "a body": "UPDATE entries SET body = CAST(replace(body, '\"round\":1', '\"round\":9') AS BLOB) WHERE sequence = 3",
    "a body of text": "UPDATE entries SET body = x'5b5d' WHERE sequence = 3",
    "an entry missing in the middle": "DELETE FROM entries WHERE sequence = 5",
    "the last entry missing": "DELETE FROM entries WHERE sequence = 13",
    "the last checkpoint missing": "DELETE FROM checkpoints WHERE size = 14",
    "all checkpoints missing": "DELETE FROM checkpoints",
    "another size": "UPDATE checkpoints SET note = replace(note, char(10) || '14', char(10) || '15') WHERE size = 14",
    "a garbled checkpoint": "UPDATE checkpoints SET note = 'x' WHERE size = 14",
    "two entries swapped": "UPDATE entries SET sequence = CASE sequence WHEN 0 THEN -1 ELSE 100 END WHERE sequence < 2",
    "an entry more": "INSERT INTO entries SELECT 14, type, account, run, 9, 9, body FROM entries WHERE sequence = 13",
    "the key": "UPDATE identity SET key = replace(key, 'discreet', 'discrete')",
}


@pytest.mark.parametrize("how", TAMPERINGS)
def test_a_ledger_that_was_changed_behind_its_back_is_refused(path, how):
    """With the triggers gone every change shows, to who opens it, to who reads it and to who exports and verifies."""
    filled(path).close()
    without_triggers(path)
    sql(path, TAMPERINGS[how])
    for opens in (Ledger, export.read):
        with pytest.raises(LedgerError):
            opens(path)


def test_a_change_names_the_entry(path):
    """The owner knows where to look."""
    filled(path).close()
    without_triggers(path)
    sql(path, "UPDATE entries SET body = CAST(replace(body, '\"time\":', '\"tine\":') AS BLOB) WHERE sequence = 7")
    for opens in (Ledger, export.read):
        with pytest.raises(LedgerError, match="entry 7"):
            opens(path)


def test_a_type_of_a_newer_version_is_refused(path):
    """An entry that this version does not know is never skipped."""
    filled(path).close()
    without_triggers(path)
    sql(path, "UPDATE entries SET body = CAST(replace(body, 'REFUSE', 'REFUND') AS BLOB) WHERE sequence = 5")
    for opens in (Ledger, export.read):
        with pytest.raises(LedgerError, match=r"entry 5.*REFUND"):
            opens(path)


# Older and other copies


def test_an_older_copy_is_refused_where_a_newer_was_seen(path, tmp_path):
    """Yesterday's file, restored, has spent less."""
    ledger = filled(path)
    ledger.close()
    older = tmp_path / "older"
    shutil.copy(path, older)
    shutil.copy(f"{path}.key", f"{older}.key")
    with closing(Ledger(path)) as newer:
        newer.reserve([charge(2, run="s")])
        seen = newer.checkpoint
    Ledger(path, memory=remembered(seen, tmp_path)).close()
    with pytest.raises(LedgerError, match="it has 14 entries and was seen with 15: this is an older copy"):
        Ledger(older, memory=remembered(seen, tmp_path))
    with closing(Ledger(older)) as forked:
        forked.reserve([charge(3, run="s")])
    with pytest.raises(LedgerError, match="the ledger was forked"):
        Ledger(older, memory=remembered(seen, tmp_path))


def test_a_checkpoint_of_another_ledger_is_refused(path, tmp_path):
    """It says nothing about this one."""
    filled(path).close()
    with closing(filled(tmp_path / "other")) as other:
        seen = other.checkpoint
    for note in (seen, "", "garbage", seen[:-2]):
        with pytest.raises(LedgerError, match="not of this ledger"):
            Ledger(path, memory=remembered(note, tmp_path))


def test_a_ledger_that_is_replaced_while_open_is_refused(ledger, path):
    """By a copy of itself, or by nothing."""
    ledger.begin_run("r", {"a": share(2)})
    copy = path.with_name("copy")
    shutil.copy(path, copy)
    copy.replace(path)
    with pytest.raises(LedgerError, match="the file was replaced or removed while it was open"):
        ledger.reserve([charge(1)])
    path.unlink()
    with pytest.raises(LedgerError, match="the file was replaced or removed while it was open"):
        _ = ledger.books


def test_entries_that_vanish_while_a_ledger_is_open_are_missed(ledger, path):
    """Rolled back in place, to fewer entries and an older checkpoint, it does not charge as if nothing had happened."""
    ledger.begin_run("r", {"a": share(3)})
    ledger.reserve([charge(1)])
    ledger.reserve([charge(2)])
    without_triggers(path)
    sql(path, "DELETE FROM entries WHERE sequence = 3", "DELETE FROM checkpoints WHERE size = 4")
    with pytest.raises(LedgerError, match="not whole"):
        ledger.reserve([charge(3)])


# The clock


def test_a_clock_that_was_set_back_is_refused(ledger, monkeypatch):
    """Nothing is charged by a clock that runs before the last entry; set right, it goes on."""
    ledger.begin_run("r", {"a": share(3)})
    now = ledger.books.time_ms
    clock = "common.transparency.log.time.time_ns"
    monkeypatch.setattr(clock, lambda: (now - 3_600 * SECOND_MS) * 1_000_000)
    with pytest.raises(LedgerError, match="the clock is 3600 s before the last entry"):
        ledger.reserve([charge(1)])
    assert ledger.books.size == 2
    monkeypatch.setattr(clock, lambda: now * 1_000_000)
    assert ledger.reserve([charge(1)]) == [None]


def test_a_clock_that_was_corrected_a_little_stands_still(ledger, monkeypatch):
    """Two seconds are what a time server corrects; entries never go back."""
    ledger.begin_run("r", {"a": share(3)})
    now = ledger.books.time_ms
    clock = "common.transparency.log.time.time_ns"
    monkeypatch.setattr(clock, lambda: (now - 2 * SECOND_MS) * 1_000_000)
    assert ledger.reserve([charge(1)]) == [None]
    assert ledger.books.time_ms == now
    monkeypatch.setattr(clock, lambda: (now - 2 * SECOND_MS - 1) * 1_000_000)
    with pytest.raises(LedgerError, match="before the last entry"):
        ledger.reserve([charge(2)])


# Disks


FULL = """
    import resource, signal
    path = Path(sys.argv[1])
    ledger = Ledger(path)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    size = Path(f"{path}-wal").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        print(ledger.reserve([charge(2, run="s")]))
    except Exception as error:
        print(type(error).__name__)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(ledger.reserve([charge(2, run="s")]) == [None])
"""


def test_a_full_disk_refuses_and_loses_nothing(path):
    """A charge that does not fit is refused, what was there is whole, and with room again it goes on."""
    with closing(filled(path)) as held:  # while it is open, the log beside the file stays
        assert output(child(FULL, path)) == ["LedgerError", "True"]
        assert held.books.accounts["a"].runs["s"].charged == 2
    assert statement(path).books.accounts["a"].runs["s"].charged == 2


TINY = """
    import shutil, subprocess
    folder = Path(sys.argv[1])
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(folder)], capture_output=True).returncode:
        sys.exit(77)
    ledger = filled(folder / "a.ledger")
    ballast = folder / "ballast"
    charged = 1
    ledger.open_accounts({"c": terms(budget=50.0, lineage="c")})
    ledger.begin_run("r", {"c": share(100)})
    try:
        with ballast.open("wb") as file:
            while True:
                file.write(bytes(1024))
                file.flush()
    except OSError:
        pass
    answers = []
    for number in range(1, 101):
        try:
            answers += ledger.reserve([charge(number, account="c")])
        except Exception as error:
            print(type(error).__name__)
            break
    ballast.unlink()
    again = Ledger(folder / "a.ledger")
    print(len(answers) == again.books.accounts["c"].runs["r"].charged)
    print(again.reserve([charge(number + 1, account="c")]) == [None])
    from common.transparency.export import read
    print(read(folder / "a.ledger").books.accounts["c"].runs["r"].charged == len(answers) + 1)
"""


def test_a_disk_that_really_is_full_refuses_and_loses_nothing(tmp_path):
    """On a file system of 400 KB, filled to the last byte: what was answered with None is there, and nothing else."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    if shutil.which("unshare") is None:
        pytest.skip("no unshare to mount a small file system with")
    process = child(TINY, folder, launcher=("unshare", "--mount"))
    out, err = process.communicate(timeout=120)
    if process.returncode in {1, 77} and not out and ("unshare" in err or process.returncode == 77):
        pytest.skip("this user may not mount a small file system")
    assert process.returncode == 0, err
    assert out.split() == ["LedgerError", "True", "True", "True"]


READ_ONLY = """
    try:
        Ledger(Path(sys.argv[1])).reserve([charge(2, run="s")])
    except Exception as error:
        print(type(error).__name__)
"""
AS_ANYBODY = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")  # root, but bound by permissions


@pytest.mark.parametrize(("what", "mode"), [("file", 0o444), ("folder", 0o555)])
def test_a_ledger_that_cannot_be_written_is_refused(path, what, mode):
    """A file or a folder that its user may only read: LedgerError before anything is charged."""
    filled(path).close()
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("root writes everywhere, and there is no setpriv to hold it back")
    guarded = path if what == "file" else path.parent
    mode_before = guarded.stat().st_mode
    guarded.chmod(mode)
    try:
        assert output(child(READ_ONLY, path, launcher=AS_ANYBODY if os.geteuid() == 0 else ())) == ["LedgerError"]
    finally:
        guarded.chmod(mode_before)
    assert statement(path).books.accounts["a"].runs["s"].charged == 1


@pytest.mark.parametrize("place", ["/proc/a.ledger", "/dev/null/a.ledger"])
def test_a_ledger_is_not_made_where_nothing_can_be_written(place):
    """LedgerError, for whatever reason."""
    with pytest.raises(LedgerError, match=r"cannot be made|expected no file"):
        Ledger.create(Path(place))


def test_a_ledger_that_could_not_be_made_leaves_nothing_behind(tmp_path):
    """Neither a ledger without a key nor a key without a ledger: the next try succeeds."""
    path = tmp_path / "a.ledger"
    Path(f"{path}.pub").mkdir()  # in the way of the public key
    with pytest.raises(LedgerError, match="cannot be made"):
        Ledger.create(path)
    Path(f"{path}.pub").rmdir()
    assert list(tmp_path.iterdir()) == []
    Ledger.create(path).close()


# Several at once


RACER = """
    import time
    path, name = Path(sys.argv[1]), int(sys.argv[2])
    ledger = Ledger(path)
    print("ready", flush=True)
    while not Path(sys.argv[3]).exists():
        time.sleep(0.001)
    mine = []
    for number in range(1, 1000):
        (refusal,) = ledger.reserve([charge(number, attempt=name)])
        if refusal is not None:
            break
        mine.append(number)
    print(refusal.value, len(mine))
"""


def test_processes_that_race_for_the_last_participations_share_exactly_them(path):
    """Four processes ask for single orders until they are refused: together they get what was admitted, none twice."""
    with closing(Ledger.create(path)) as ledger:
        ledger.open_accounts({"a": terms(budget=20.0)})
        admitted = ledger.begin_run("r", {"a": share(60)})["a"].participations
        assert admitted == 60
    start = path.with_name("start")
    racers = [child(RACER, path, name, start) for name in (1, 2, 3, 4)]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    start.touch()
    answers = [output(racer) for racer in racers]
    assert [word for word, _ in answers] == ["budget-spent"] * 4
    counts = {name: int(count) for name, (_, count) in enumerate(answers, 1)}
    run = statement(path).books.accounts["a"].runs["r"]
    assert run.charged == admitted == sum(counts.values()) == len(run.seen)
    assert Counter(attempt for _, attempt in run.seen) == Counter({name: n for name, n in counts.items() if n})


BEGINNER = """
    import time
    path, name = Path(sys.argv[1]), sys.argv[2]
    ledger = Ledger(path)
    from common.privacy.admission import admission
    admission(ledger.books.accounts["a"], EVENTS, wanted=1)  # what is slow is done before the start
    print("ready", flush=True)
    while not Path(sys.argv[3]).exists():
        time.sleep(0.001)
    print(ledger.begin_run(name, {"a": share(20)})["a"].participations)
"""


def test_processes_that_begin_runs_at_once_stay_within_the_budget(path):
    """Three runs of three processes: what they reserve together fits, by the filter that admits all but the first."""
    with closing(Ledger.create(path)) as ledger:
        ledger.open_accounts({"a": terms(budget=6.0)})
    start = path.with_name("start")
    beginners = [child(BEGINNER, path, name, start) for name in ("r", "s", "t")]
    for beginner in beginners:
        assert beginner.stdout.readline() == "ready\n"
    start.touch()
    admitted = [int(output(beginner)[0]) for beginner in beginners]
    account = statement(path).books.accounts["a"]
    assert sorted(run.admitted for run in account.runs.values()) == sorted(n for n in admitted if n)
    held = account.held()
    assert sum(admitted) == sum(event.steps for event in held)
    assert 20 < sum(admitted) < 60  # all of the first, some of the second
    assert filter_epsilon(held, order=account_order(account), delta=1e-5) <= 6.0


def test_a_ledger_takes_up_what_another_process_wrote(ledger, path):
    """Two opened ledgers of one file are one ledger, in both directions."""
    with closing(Ledger(path)) as other:
        other.begin_run("r", {"a": share(2)})
        assert ledger.reserve([charge(1)]) == [None]
        assert other.reserve([charge(1), charge(2), charge(3)]) == [Refusal.ALREADY_TRAINED, None, Refusal.BUDGET_SPENT]
        assert ledger.checkpoint == other.checkpoint
        assert vars(ledger.books) == vars(other.books)


def test_reading_while_another_writes_always_sees_a_whole_ledger(path):
    """A reader in a thread of its own never sees half a transaction, and never less than before."""
    with closing(Ledger.create(path)) as ledger:
        ledger.open_accounts({"a": terms(budget=50.0)})
        ledger.begin_run("r", {"a": share(100)})
        sizes: dict[str, list[int]] = {"ledger": [], "file": []}
        failures: list[BaseException] = []
        done = threading.Event()

        def read(name, size):
            try:
                while not done.is_set():
                    sizes[name].append(size())
            except BaseException as error:  # noqa: BLE001 - shown below
                failures.append(error)

        def with_a_ledger():
            with closing(Ledger(path)) as mine:
                read("ledger", lambda: mine.books.size)

        readers = [
            threading.Thread(target=with_a_ledger),
            threading.Thread(target=read, args=("file", lambda: statement(path).books.size)),
        ]
        for reader in readers:
            reader.start()
        for number in range(1, 41):
            assert ledger.reserve([charge(2 * number), charge(2 * number + 1)]) == [None, None]
        done.set()
        for reader in readers:
            reader.join()
    assert failures == []
    for seen in sizes.values():
        assert seen == sorted(seen)
        assert {size % 2 for size in seen} == {0}  # two entries before, and two with each write
        assert len(set(seen)) > 1


WAITING = """
    ledger = Ledger(Path(sys.argv[1]))
    print("ready", flush=True)
    print(ledger.reserve([charge(2, run="s")])[0].value)
"""


def test_a_writer_that_holds_the_lock_is_waited_for_and_not_overtaken(path):
    """A second process that writes meanwhile waits, and then sees what was written."""
    with closing(filled(path)) as ledger:
        with ledger._log.writing() as write:
            waiting = child(WAITING, path)
            assert waiting.stdout.readline() == "ready\n"
            time.sleep(0.3)  # by now it waits for the lock
            write(drafts.reserve(charge(2, run="s"), policy=OTHER_POLICY))
        assert output(waiting) == ["already-trained"]


# Everything together


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("terms"), st.sampled_from([0.5, 1.0, 2.0, 3.0]), st.sampled_from([1e-5, 1e-6])),
        st.tuples(st.just("begin"), st.sampled_from("rst"), st.integers(1, 6)),
        st.tuples(st.just("reserve"), st.sampled_from("rst"), st.integers(1, 9)),
        st.tuples(st.just("settle"), st.sampled_from("rst"), st.integers(1, 9)),
        st.tuples(st.just("end"), st.sampled_from("rst"), st.just(0)),
    ),
    max_size=25,
)
KIND = {"r": EVENTS, "s": QUIETER, "t": (*EVENTS, METRICS)}


def act(ledger, action):
    """Do one thing to a ledger, refused or not."""
    what, where, number = action
    match what:
        case "terms":
            ledger.open_accounts({"a": terms(budget=where, delta=number, policy=f"{where} {number}")})
        case "begin":
            ledger.begin_run(where, {"a": share(number, KIND[where])})
        case "reserve":
            ledger.reserve([charge(number, run=where, events=KIND[where])])
        case "settle":
            ledger.settle([charge(number, run=where, events=KIND[where])])
        case "end":
            ledger.end_run(where)


@settings(max_examples=12, deadline=None)
@given(actions=ACTIONS)
@example(actions=[("begin", "r", 4), ("reserve", "r", 1), ("terms", 0.5, 1e-5), ("reserve", "r", 2), ("end", "r", 0)])
@example(actions=[("begin", "r", 4), *(("reserve", "r", n) for n in (1, 2, 3, 4)), ("terms", 2.0, 1e-6)])
@example(
    actions=[("begin", "r", 4), *(("reserve", "r", n) for n in (1, 2, 3, 4)), ("terms", 3.0, 1e-6), ("begin", "s", 3)]
)
def test_whatever_a_ledger_admitted_verifies(tmp_path_factory, actions):
    """Runs begun, ended, mixed, and terms changed in between: what the ledger wrote adds up for a stranger."""
    path = tmp_path_factory.mktemp("any") / "a.ledger"
    with closing(Ledger.create(path)) as ledger:
        ledger.open_accounts({"a": terms()})
        for action in actions:
            try:
                act(ledger, action)
            except LedgerError:
                assert action[0] in {"begin", "settle"}
        books = vars(ledger.books)
    found = statement(path)
    assert vars(found.books) == books
    verification.verify(found, key=ledger.key)
