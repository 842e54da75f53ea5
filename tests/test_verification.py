"""Verification: whose ledger it is, that it continues what was seen, and that every account adds up."""

import shutil
from contextlib import closing

import pytest
from sample_ledgers import EVENTS, OTHER_POLICY, POLICY, QUIETER, charge, filled, forged, lines_of, share, terms

from common.errors import LedgerError
from common.ledger import Ledger
from common.privacy import accounting
from common.privacy.accounting import epsilon
from common.privacy.admission import first_order
from common.privacy.event_kinds import RandomizedResponse
from common.privacy.renyi_filter import filter_epsilon
from common.transparency import drafts, export
from common.transparency.entries import PLAN_ROUND
from common.transparency.log import Log
from common.transparency.notes import Signer
from common.transparency.verification import balances, verify

DELTA = 1e-5


@pytest.fixture
def path(tmp_path):
    """The place of a ledger."""
    return tmp_path / "a.ledger"


def written(path, *drafted: drafts.Draft):
    """A ledger of these entries, which nobody admitted; what a stranger reads in it."""
    if not path.exists():
        Ledger.create(path).close()
    with closing(Log(path, memory=None)) as log, log.writing() as write:
        for draft in drafted:
            write(draft)
    return export.read(path)


def opening(account="a", *, is_change=False, **changes: object):
    """Draft an account's terms."""
    return drafts.opening(account, terms(**changes), is_change=is_change)


def spending(times, account="a", run="r", *, events=EVENTS, policy=POLICY, first=1):
    """Draft a run of so many orders that are all charged; a run that is open already goes on from `first`."""
    plan = charge(PLAN_ROUND, account=account, run=run, events=events)
    begins = [drafts.reserve(plan, policy=policy, participations=1_000)] if first == 1 else []
    orders = [charge(number, account=account, run=run, events=events) for number in range(first, first + times)]
    return [*begins, *(drafts.reserve(order, policy=policy) for order in orders)]


def times(count, events=EVENTS):
    """The history of so many participations."""
    return tuple(event.times(count) for event in events)


# The signer


def test_a_ledger_verifies_with_its_key_and_without_one(path):
    """Without a key it is whole, and nobody's."""
    with closing(filled(path)) as ledger:
        key = ledger.key
    assert verify(export.read(path), key=key) is None
    assert verify(export.read(path)) is None


def test_a_ledger_of_another_signer_is_refused(path, tmp_path):
    """Another ledger, or the same entries signed by somebody else under the same name."""
    filled(path).close()
    with closing(Ledger.create(tmp_path / "other")) as ledger:
        other = ledger.key
    with pytest.raises(LedgerError, match=r"signed by discreet/ledger/.*another ledger, or a forged one"):
        verify(export.read(path), key=other)
    export.write(path, tmp_path / "export")
    key = export.read(path).key
    entries = [line["entry"] for line in lines_of(tmp_path / "export") if "entry" in line]
    (tmp_path / "forged").write_bytes(forged(entries, Signer.new(key.name)))
    with pytest.raises(LedgerError, match="a forged one"):
        verify(export.read(tmp_path / "forged"), key=key)


# What was seen before


def test_a_ledger_continues_every_state_it_had(path):
    """Each checkpoint that was ever seen, the newest included."""
    with closing(Ledger.create(path)) as ledger:
        seen = []
        ledger.open_accounts({"a": terms()})
        seen.append(ledger.checkpoint)
        ledger.begin_run("r", {"a": share(3)})
        seen.append(ledger.checkpoint)
        for number in (1, 2, 3):
            ledger.reserve([charge(number)])
            seen.append(ledger.checkpoint)
    statement = export.read(path)
    assert len(set(seen)) == 5
    for note in seen:
        verify(statement, extends=note)


@pytest.fixture
def copies(path, tmp_path):
    """A ledger, a copy of it as it was yesterday, and a copy that went another way; and the newest checkpoint."""
    filled(path).close()
    older, fork = tmp_path / "older", tmp_path / "fork"
    for copy in (older, fork):
        shutil.copy(path, copy)
        shutil.copy(f"{path}.key", f"{copy}.key")
    with closing(Ledger(path)) as ledger, closing(Ledger(fork)) as forked:
        assert ledger.reserve([charge(2, run="s")]) == [None]
        assert forked.reserve([charge(3, run="s")]) == [None]
        return older, fork, ledger.checkpoint


def test_an_older_copy_was_rolled_back(copies):
    """It is whole, and it is not what was seen."""
    older, _, seen = copies
    verify(export.read(older))
    with pytest.raises(LedgerError, match="has 14 entries and was seen with 15: it was rolled back"):
        verify(export.read(older), extends=seen)


def test_another_history_of_the_same_length_is_a_fork(copies):
    """Both copies are whole and signed with the same key: only what was seen tells them apart."""
    _, fork, seen = copies
    verify(export.read(fork))
    with pytest.raises(
        LedgerError, match="first 15 entries are not those that were seen before: the ledger was forked"
    ):
        verify(export.read(fork), extends=seen)


def test_another_longer_history_is_a_fork(copies):
    """However many entries follow."""
    _, fork, seen = copies
    with closing(Ledger(fork)) as forked:
        forked.settle([charge(1, run="s"), charge(3, run="s")])
    with pytest.raises(LedgerError, match="the ledger was forked"):
        verify(export.read(fork), extends=seen)


def test_a_checkpoint_that_is_none_of_this_ledger_is_refused(path, tmp_path):
    """Of another ledger, cut off, or no checkpoint."""
    filled(path).close()
    with closing(filled(tmp_path / "other")) as other:
        seen = other.checkpoint
    own = export.read(path).note
    for note in (seen, own[:-2], own.replace("\n14\n", "\n13\n"), "", "garbage"):
        with pytest.raises(LedgerError, match="The earlier checkpoint is not of this ledger"):
            verify(export.read(path), extends=note)


# What was spent


def test_an_account_that_overspends_is_named(path):
    """4 times are 1.99 of 2, 5 times are 2.26: account b does not add up, a does."""
    statement = written(path, opening("a"), opening("b"), *spending(4, "a"), *spending(5, "b"))
    with pytest.raises(LedgerError, match=r"Account b does not add up: it spent epsilon 2\.2\d+ .*allowed 2\.0000"):
        verify(statement)
    assert [round(balance.verdict.reported, 2) for balance in balances(statement)] == [1.99, 2.26]


def test_an_account_that_spends_all_of_its_budget_adds_up(path):
    """One more than the budget allows by the last digit, and the budget itself."""
    spent = epsilon(times(3), delta=DELTA)
    verify(written(path, opening(budget=spent), *spending(3)))
    short = path.with_name("short")
    with pytest.raises(LedgerError, match="Account a does not add up"):
        verify(written(short, opening(budget=spent * (1 - 1e-6)), *spending(3)))


def test_from_the_second_run_on_the_filter_decides(path):
    """What PLD would still allow, and the filter does not, was not admitted by any ledger."""
    order = first_order(EVENTS, 2.0, DELTA)
    n = next(
        n for n in range(1, 20) if filter_epsilon((*EVENTS, *times(n, QUIETER)), order=order, delta=DELTA) > 2.0
    )  # fmt: skip
    assert epsilon((*EVENTS, *times(n, QUIETER)), delta=DELTA) < 2.0
    verify(written(path, opening(), *spending(1), *spending(n - 1, run="s", events=QUIETER)))
    with pytest.raises(LedgerError, match="Account a does not add up"):
        verify(written(path, *spending(1, run="s", events=QUIETER, first=n)))


def test_what_is_reserved_and_not_charged_is_not_spent(path):
    """A run of a thousand participations that charged three."""
    verify(written(path, opening(), *spending(3)))


def test_lowering_the_budget_after_spending_is_no_error(path):
    """The owner may forbid what is to come, not what has been."""
    verify(written(path, opening(), *spending(4), opening(is_change=True, budget=0.5, policy=OTHER_POLICY)))


def test_spending_after_the_budget_was_lowered_is_an_error(path):
    """Also in a run that was reserved before."""
    lowered = opening(is_change=True, budget=1.0, policy=OTHER_POLICY)
    statement = written(path, opening(), *spending(1), lowered, *spending(1, policy=OTHER_POLICY, first=2))
    with pytest.raises(LedgerError, match=r"Account a does not add up: it spent epsilon 1\.3\d+ .*allowed 1\.0000"):
        verify(statement)


def test_raising_the_budget_after_overspending_does_not_mend_it(path):
    """What was charged was not allowed when it was charged."""
    raised = opening(is_change=True, budget=5.0, policy=OTHER_POLICY)
    with pytest.raises(LedgerError, match="Account a does not add up"):
        verify(written(path, opening(), *spending(5), raised))


def test_a_raised_budget_allows_more(path):
    """From then on."""
    raised = opening(is_change=True, budget=5.0, policy=OTHER_POLICY)
    verify(written(path, opening(), *spending(4), raised, *spending(2, policy=OTHER_POLICY, first=5)))


def test_a_smaller_delta_after_spending_is_no_error(path):
    """What was spent was within what the owner allowed then, at the delta of then."""
    stricter = opening(is_change=True, delta=1e-7, policy=OTHER_POLICY)
    verify(written(path, opening(), *spending(4), stricter))


def test_a_larger_delta_after_overspending_does_not_hide_it(path):
    """5 times are 2.26 at the delta of then, however small they look at another one."""
    laxer = opening(is_change=True, delta=1e-3, policy=OTHER_POLICY)
    with pytest.raises(LedgerError, match="Account a does not add up"):
        verify(written(path, opening(), *spending(5), laxer))


def test_a_history_that_cannot_be_counted_is_an_error(path):
    """A delta below which rounding decides: no figure, no verification."""
    statement = written(path, opening(delta=1e-11), *spending(1))
    with pytest.raises(LedgerError, match="The ledger cannot be counted: "):
        verify(statement)
    later = opening(is_change=True, policy=OTHER_POLICY)  # of an ordinary delta: what was charged is still not counted
    with pytest.raises(LedgerError, match="The ledger cannot be counted: "):
        verify(written(path, later))


def test_what_pld_cannot_count_is_counted_by_rdp(path):
    """Randomised response at truth 1/2 of two answers: pure epsilon ln 3, of which the ledger knows a bound."""
    response = (RandomizedResponse(noise_parameter=0.5, buckets=2),)
    statement = written(path, opening(budget=1.2), *spending(1, events=response))
    (balance,) = balances(statement)
    assert balance.verdict.pld is None
    assert balance.verdict.reported == balance.verdict.rdp == pytest.approx(1.0986, abs=1e-3)
    verify(statement)


# Balances


def test_a_balance_is_what_three_accountants_say(path):
    """The account's own figures, and what is left by the one that admits the next run."""
    over = [drafts.expire("a", "r", 1, 1), drafts.close("a", "r", 1)]
    statement = written(path, opening("a"), opening("b", budget=7.0), *spending(1, "a"), *over)
    a, b = balances(statement)
    assert a.verdict == accounting.check(EVENTS, delta=DELTA)
    assert a.filter_epsilon == filter_epsilon(EVENTS, order=first_order(EVENTS, 2.0, DELTA), delta=DELTA)
    assert (a.account, a.runs, a.budget, a.left) == ("a", 1, 2.0, 2.0 - a.filter_epsilon)
    assert (b.account, b.runs, b.filter_epsilon, b.left, b.verdict.reported) == ("b", 0, None, 7.0, 0.0)


def test_what_an_open_run_has_reserved_is_not_left(path):
    """One was charged and two were reserved: the second is not there for the next run."""
    plan = drafts.reserve(charge(PLAN_ROUND), policy=POLICY, participations=2)
    (balance,) = balances(written(path, opening(), plan, *spending(1, first=1)[1:]))
    order = first_order(EVENTS, 2.0, DELTA)
    assert balance.filter_epsilon == filter_epsilon(times(1), order=order, delta=DELTA)
    assert balance.left == 2.0 - filter_epsilon(times(2), order=order, delta=DELTA)


def test_nothing_is_left_of_an_overspent_account(path):
    """What is left is never negative."""
    (balance,) = balances(written(path, opening(), *spending(9)))
    assert balance.left == 0.0


def test_a_run_that_charged_nothing_is_none(path):
    """It has reserved, and it has spent nothing."""
    (balance,) = balances(written(path, opening(), *spending(0), *spending(2, run="s")))
    assert balance.runs == 1


def test_accountants_are_asked_once_for_each_distinct_history(path, monkeypatch):
    """Forty accounts of two histories, one of them in two orders of events: two questions, each told to the watcher."""
    asked, watched = [], []
    check = accounting.check
    monkeypatch.setattr(accounting, "check", lambda *args, **named: asked.append(args) or check(*args, **named))
    names = [f"client-{number:06d}" for number in range(40)]
    mixed = [
        draft
        for number, name in enumerate(names)
        for draft in (
            [*spending(1, name), *spending(1, name, "s", events=QUIETER)]
            if number % 4 == 0
            else [*spending(1, name, "s", events=QUIETER), *spending(1, name)]
            if number % 4 == 1
            else spending(1, name)
        )
    ]
    statement = written(path, *(opening(name) for name in names), *mixed)
    verify(statement, watch=lambda done, total: watched.append((done, total)))
    assert len(asked) == 2
    assert watched == [(1, 2), (2, 2)]


def test_an_altered_file_does_not_get_as_far_as_the_accountants(path):
    """`read` refuses it: there is nothing to verify."""
    filled(path).close()
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"budget":"2.0"', b'"budget":"9.0"', 1))
    with pytest.raises(LedgerError, match=r"entry 0|checkpoint after entry 1"):
        verify(export.read(path))
