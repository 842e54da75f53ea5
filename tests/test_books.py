"""Books: the rules by which entries add up, and that a refused entry changes nothing."""

import copy
import dataclasses
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_ledgers import EVENTS, METRICS, OTHER_POLICY, POLICY, QUIETER, charge, terms

from common.transparency import drafts
from common.transparency.books import Books
from common.transparency.entries import PLAN_ROUND, Audit, Reserve

TIME = 1_790_000_000_000


def run_of(participations, run="r", account="a", events=EVENTS, policy=POLICY):
    """Draft the reservation of a whole run."""
    return drafts.reserve(
        charge(PLAN_ROUND, account=account, run=run, events=events), policy=policy, participations=participations
    )


def order(number, attempt=1, policy=POLICY, participations=1, **changes: object):
    """Draft the reservation of one order."""
    return drafts.reserve(charge(number, attempt=attempt, **changes), policy=policy, participations=participations)


def expire(number, attempt=1, run="r", account="a"):
    """Draft the end of an order of which nothing was heard."""
    return drafts.expire(account, run, number, attempt)


def audit(account="a"):
    """Draft an audit."""
    return lambda sequence, time_ms: Audit(
        sequence=sequence, time_ms=time_ms, account=account, run="r", findings={"verdict": "not refuted"}
    )


OPEN = drafts.opening("a", terms(), is_change=False)
CHANGE = drafts.opening("a", terms(budget=1.0, policy=OTHER_POLICY), is_change=True)


def books_of(*written: drafts.Draft):
    """Books after some entries, a millisecond apart."""
    books = Books()
    for entry in written:
        books.apply(entry(books.size, TIME + books.size))
    return books


def apply(books, draft):
    """Add one more entry."""
    books.apply(draft(books.size, TIME + books.size))


def state(books):
    """All that books hold, to compare."""
    return copy.deepcopy(vars(books))


def refuse(books, draft, words, **place: int):
    """Assert that an entry is refused in these words and that nothing has changed."""
    before = state(books)
    entry = draft(place.get("sequence", books.size), place.get("time_ms", TIME + books.size))
    with pytest.raises(ValueError, match=words):
        books.apply(entry)
    assert state(books) == before


def test_an_order_is_charged_when_it_is_reserved_and_stays_charged():
    """Neither COMMIT nor EXPIRE nor the end of the run takes a charge back."""
    books = books_of(OPEN, run_of(3))
    account = books.accounts["a"]
    assert account.spent() == ()
    apply(books, order(1))
    apply(books, order(2))
    assert account.spent() == (EVENTS[0].times(2),)
    for settled in (drafts.commit(charge(1)), expire(2), drafts.close("a", "r", 2)):
        apply(books, settled)
        assert account.spent() == (EVENTS[0].times(2),)


def test_what_an_open_run_may_still_charge_is_held():
    """A reserved run counts in full until it is over, then only what it charged."""
    books = books_of(OPEN, run_of(3), order(1), expire(1))
    assert books.accounts["a"].held() == (EVENTS[0].times(3),)
    apply(books, drafts.close("a", "r", 1))
    assert books.accounts["a"].held() == (EVENTS[0].times(1),) == books.accounts["a"].spent()


def test_all_events_of_a_participation_are_charged():
    """The training and its noised count, as often as the order happened."""
    both = (*EVENTS, METRICS)
    books = books_of(OPEN, run_of(2, events=both), order(1, events=both), order(2, events=both))
    assert books.accounts["a"].spent() == (EVENTS[0].times(2), METRICS.times(2))


def test_runs_and_accounts_are_kept_apart():
    """Each run counts on its own account, and the account adds its runs up."""
    books = books_of(
        OPEN,
        drafts.opening("b", terms(lineage="oncology"), is_change=False),
        run_of(1),
        run_of(1, run="s", events=QUIETER),
        run_of(1, account="b"),
        order(1),
        order(1, run="s", events=QUIETER),
        order(1, account="b"),
    )
    assert books.accounts["a"].spent() == (*EVENTS, *QUIETER)
    assert books.accounts["b"].spent() == EVENTS


def test_an_order_is_reserved_once():
    """The same round and attempt of a run a second time is refused, settled or not, over or not."""
    books = books_of(OPEN, run_of(5), order(1))
    refuse(books, order(1), "round 1, attempt 1 is reserved a second time")
    apply(books, drafts.commit(charge(1)))
    refuse(books, order(1), "a second time")
    apply(books, order(1, attempt=2))
    assert books.accounts["a"].runs["r"].charged == 2


def test_a_run_is_charged_at_most_as_often_as_reserved():
    """The third order of a run of two is refused, also when the first two have expired."""
    books = books_of(OPEN, run_of(2), order(1), expire(1), order(2), expire(2))
    refuse(books, order(3), "reserved for 2 participations, and this is one more")


def test_a_run_that_reserved_nothing_charges_nothing():
    """A reservation of 0 participations admits no order."""
    refuse(books_of(OPEN, run_of(0)), order(1), "reserved for 0 participations")


def test_a_run_is_reserved_once():
    """Neither an open nor a closed run can be reserved again."""
    books = books_of(OPEN, run_of(2))
    refuse(books, run_of(2), "run r is reserved a second time")
    apply(books, drafts.close("a", "r", 0))
    refuse(books, run_of(2), "run r is reserved a second time")


@pytest.mark.parametrize("events", [QUIETER, (*EVENTS, METRICS), (EVENTS[0].times(2),), (METRICS,)])
def test_an_order_is_one_participation_of_its_run(events):
    """Other noise, more events, more steps: not what was reserved."""
    refuse(books_of(OPEN, run_of(9)), order(1, events=events), "not one participation of the run")


@pytest.mark.parametrize("participations", [0, 2])
def test_an_order_counts_once(participations):
    """One entry cannot charge twice, or not at all."""
    refuse(books_of(OPEN, run_of(9)), order(1, participations=participations), "not one participation of the run")


def test_an_order_is_settled_once():
    """After COMMIT or EXPIRE there is nothing left to settle."""
    books = books_of(OPEN, run_of(5), order(1), order(2), drafts.commit(charge(1)), expire(2))
    for draft in (drafts.commit(charge(1)), expire(1), drafts.commit(charge(2)), expire(2)):
        refuse(books, draft, "is not waiting to be settled")


def test_only_what_was_reserved_is_settled():
    """An order that never was, or another attempt at one."""
    books = books_of(OPEN, run_of(5), order(1))
    refuse(books, drafts.commit(charge(2)), "round 2, attempt 1 is not waiting")
    refuse(books, expire(1, attempt=2), "round 1, attempt 2 is not waiting")


def test_a_settlement_counts_once():
    """COMMIT of an order with another count than 1 is refused."""
    books = books_of(OPEN, run_of(5), order(1))
    wrong = drafts.close("a", "r", 2)(books.size, TIME + books.size)
    refuse(books, lambda *_: type(wrong)(**(vars(wrong) | {"round": 1})), "is not waiting to be settled")


def test_a_run_with_unsettled_orders_cannot_be_closed():
    """What was not heard of has to expire first."""
    books = books_of(OPEN, run_of(5), order(1))
    refuse(books, drafts.close("a", "r", 1), "run r cannot be closed with 1 participations")
    apply(books, expire(1))
    apply(books, drafts.close("a", "r", 1))
    assert books.accounts["a"].runs["r"].is_closed


@pytest.mark.parametrize("participations", [0, 2])
def test_a_run_is_closed_with_what_it_charged(participations):
    """Neither fewer nor more."""
    books = books_of(OPEN, run_of(5), order(1), expire(1))
    refuse(books, drafts.close("a", "r", participations), f"cannot be closed with {participations}")


def test_a_run_is_closed_once_and_by_a_commit():
    """A run does not expire, and is over once."""
    books = books_of(OPEN, run_of(5))
    refuse(books, expire(PLAN_ROUND), "cannot be closed")
    apply(books, drafts.close("a", "r", 0))
    refuse(books, drafts.close("a", "r", 0), "cannot be closed")


def test_a_closed_run_takes_no_order():
    """What it did not use is free for others."""
    books = books_of(OPEN, run_of(5), drafts.close("a", "r", 0))
    refuse(books, order(1), "run r is over")


@pytest.mark.parametrize(
    "draft",
    [
        run_of(1, account="b"),
        order(1, account="b"),
        drafts.commit(charge(1, account="b")),
        expire(1, account="b"),
        drafts.close("b", "r", 0),
        drafts.refuse(charge(1, account="b"), "not-in-plan"),
        drafts.opening("b", terms(), is_change=True),
        audit("b"),
    ],
)
def test_an_account_that_was_never_opened_is_refused(draft):
    """By every type but the one that opens it."""
    refuse(books_of(OPEN, run_of(5)), draft, "account b was never opened")


@pytest.mark.parametrize(
    "draft", [order(1, run="s"), drafts.commit(charge(1, run="s")), expire(1, run="s"), drafts.close("a", "s", 0)]
)
def test_a_run_that_was_never_reserved_is_refused(draft):
    """An order needs its run's reservation first."""
    refuse(books_of(OPEN, run_of(5)), draft, "run s has reserved nothing on account a")


def test_an_account_is_opened_once():
    """A second GENESIS would be a fresh budget."""
    refuse(books_of(OPEN, run_of(1)), OPEN, "account a is opened a second time")


@pytest.mark.parametrize("draft", [run_of(1, run="s"), order(1)])
def test_a_charge_names_the_policy_in_force(draft):
    """After a change, what the old policy allowed is no longer written."""
    books = books_of(OPEN, run_of(5), CHANGE)
    refuse(books, draft, "policy: it is not the one in force")


def test_a_change_of_policy_keeps_what_was_spent():
    """Terms follow one another; runs and charges stay, and go on under the new policy."""
    books = books_of(OPEN, run_of(5), order(1), CHANGE)
    account = books.accounts["a"]
    assert [item.budget for item in account.terms] == [2.0, 1.0]
    assert account.terms_at_last_charge == account.terms[0]
    apply(books, order(2, policy=OTHER_POLICY))
    assert account.spent() == (EVENTS[0].times(2),)
    assert account.terms_at_last_charge == account.terms[1]


UNITS = ("record", "person", "client")


@pytest.mark.parametrize("account_unit", UNITS)
@pytest.mark.parametrize("event_unit", UNITS)
def test_an_event_protects_at_least_the_unit_of_its_account(account_unit, event_unit):
    """What protects a person protects each of its records, and not the other way round: record, person, client."""
    opened = drafts.opening("a", terms(unit=account_unit), is_change=False)
    events = (dataclasses.replace(EVENTS[0], unit=event_unit),)
    if UNITS.index(event_unit) >= UNITS.index(account_unit):
        books = books_of(opened, run_of(1, events=events), order(1, events=events))
        assert books.accounts["a"].spent() == events
    else:
        words = f"unit {event_unit} does not protect the account's {account_unit}"
        refuse(books_of(opened), run_of(1, events=events), words)
        refuse(books_of(opened), run_of(1, events=(*events, dataclasses.replace(METRICS, unit="client"))), words)


def test_an_account_that_was_charged_for_records_never_protects_persons():
    """What was charged so far says nothing about them; before any charge, and for a smaller unit, it may change."""
    person = drafts.opening("a", terms(unit="person"), is_change=True)
    apply(books_of(OPEN), person)
    apply(books_of(OPEN, run_of(1), drafts.close("a", "r", 0)), person)
    refuse(books_of(OPEN, run_of(1)), person, "unit: what was charged so far protects a record and no person")
    refuse(books_of(OPEN, run_of(1), order(1)), person, "unit: what was charged so far protects a record")
    events = (dataclasses.replace(EVENTS[0], unit="person"),)
    opened = drafts.opening("a", terms(unit="person"), is_change=False)
    apply(
        books_of(opened, run_of(1, events=events), order(1, events=events)),
        drafts.opening("a", terms(), is_change=True),
    )


def test_an_account_is_about_one_lineage():
    """Other data have an account of their own."""
    other = drafts.opening("a", terms(lineage="oncology"), is_change=True)
    refuse(books_of(OPEN, run_of(1)), other, "lineage: the account is about cardiology")


@pytest.mark.parametrize("step", [-1, 1, 5])
def test_sequence_numbers_have_no_gap(step):
    """An entry left out or written twice is refused."""
    books = books_of(OPEN, run_of(5))
    refuse(books, order(1), f"expected sequence 2, got {2 + step}", sequence=2 + step)


def test_time_does_not_run_backwards():
    """It may stand still."""
    books = books_of(OPEN, run_of(5))
    refuse(books, order(1), "time runs backwards", time_ms=TIME)
    books.apply(order(1)(2, TIME + 1))
    assert books.time_ms == TIME + 1


def test_refusals_and_audits_charge_nothing():
    """They are noted beside."""
    books = books_of(OPEN, drafts.refuse(charge(1), "not-in-plan"), audit())
    account = books.accounts["a"]
    assert account.spent() == account.held() == ()
    assert [refusal.word for refusal in account.refusals] == ["not-in-plan"]
    assert [dict(audit.findings) for audit in account.audits] == [{"verdict": "not refuted"}]


ANYTHING = st.one_of(
    st.builds(run_of, st.integers(0, 3), run=st.sampled_from("rs"), account=st.sampled_from("ab")),
    st.builds(order, st.integers(1, 3), attempt=st.integers(1, 2), run=st.sampled_from("rs")),
    st.builds(order, st.integers(1, 3), policy=st.just(OTHER_POLICY), events=st.sampled_from([EVENTS, QUIETER])),
    st.builds(lambda number, run: drafts.commit(charge(number, run=run)), st.integers(1, 3), st.sampled_from("rs")),
    st.builds(expire, st.integers(1, 3), attempt=st.integers(1, 2), run=st.sampled_from("rs")),
    st.builds(drafts.close, st.just("a"), st.sampled_from("rs"), st.integers(0, 3)),
    st.sampled_from([OPEN, CHANGE, drafts.opening("b", terms(), is_change=False), audit()]),
)


@given(written=st.lists(ANYTHING, max_size=40))
def test_no_sequence_of_entries_breaks_the_rules(written):
    """Whatever is tried in whatever order: no run is charged beyond its reservation, and no refusal leaves a trace."""
    books, reserved = Books(), Counter()
    for draft in written:
        before, entry = state(books), draft(books.size, TIME + books.size)
        try:
            books.apply(entry)
        except ValueError:
            assert state(books) == before
            continue
        reserved[entry.account, getattr(entry, "run", "")] += isinstance(entry, Reserve) and entry.round > 0
    for name, account in books.accounts.items():
        for run_name, run in account.runs.items():
            assert run.charged == reserved[name, run_name] == len(run.seen) <= run.admitted
            assert run.unsettled <= run.seen
            assert not (run.is_closed and run.unsettled)
        assert sum(event.steps for event in account.spent()) <= sum(event.steps for event in account.held())
