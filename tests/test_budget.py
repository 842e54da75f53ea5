"""Admission: an order is charged durably, or refused."""

import dataclasses
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_reader import charged, charges, kinds, refused, settled

from client.budget import Agreement, Budget, agreements
from common.errors import LedgerError
from common.ledger import Ledger
from common.messages import Mechanism, Order, Refusal
from common.privacy.accounting import epsilon
from common.privacy.events import SampledGaussian
from common.privacy.plan import Account, Plan
from common.transparency.entries import Terms

EVENT = SampledGaussian(noise_multiplier=1.1, sampling_rate=Fraction(1, 10), steps=2)
COUNT = SampledGaussian(noise_multiplier=20.0, sampling_rate=Fraction(1), steps=1)
MECHANISM = Mechanism(sampling_rate=Fraction(1, 10), noise_multiplier=1.1, max_grad_norm=0.5, steps=2)
WEIGHTS = np.zeros(3, np.float32)
NAMES = ("a", "b", "c")  # the accounts of clients 0, 1 and 2
PLENTY = 100.0  # epsilon; one participation costs 1.56


def plan(reserved=2, unit="record", *, counts=False):
    """Three clients of one account each, which may take part `reserved` times."""
    account = Account(
        records=300,
        members=3,
        event=EVENT,
        metrics_event=COUNT if counts else None,
        participations=1,
        reserved=reserved,
        epsilon=1.0,
        epsilon_reserved=1.5,
    )
    return Plan(
        run="r",
        unit=unit,
        delta=1e-5,
        max_grad_norm=0.5,
        records=(300,) * 3,
        accounts=(account,),
        account_of=(0,) * 3,
    )


def terms(budget=PLENTY):
    """What the owners allow, the same for each of the three."""
    allowed = Terms(
        owner="o",
        lineage="x",
        version="1",
        records=300,
        unit="record",
        adjacency="zero-out",
        delta=1e-5,
        budget=budget,
        policy="p",
    )
    return dict.fromkeys(NAMES, allowed)


def order(number=1, client=0, attempt=1, **changes: object):
    """An order as the plan has it, with changes."""
    planned = Order(
        run="r", round=number, attempt=attempt, client=client, weights_P=WEIGHTS, mechanism=MECHANISM
    )  # fmt: skip
    return dataclasses.replace(planned, **changes)


def mechanism(**changes: object):
    """The plan's mechanism, with changes."""
    return dataclasses.replace(MECHANISM, **changes)


def budget_on(ledger, planned, run="r"):
    """A run's claim on the ledger, not begun yet."""
    return Budget(ledger, run=run, agreements=agreements(planned, NAMES))


@pytest.fixture
def path(tmp_path) -> Path:
    """The place of the ledger."""
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger(path) -> Iterator[Ledger]:
    """A new ledger."""
    with closing(Ledger.create(path)) as held:
        yield held


@pytest.fixture
def budget(ledger):
    """A budget of two participations for each of three clients, begun."""
    begun = budget_on(ledger, plan())
    begun.begin(terms())
    return begun


# --- what is agreed ---------------------------------------------------------------------------------------------------


def test_an_agreement_holds_the_numbers_of_the_plan():
    """Each client's mechanism, noise of counts, events and bound come from the plan, its account from the names."""
    agreed = agreements(plan(reserved=4, counts=True), NAMES)
    assert agreed.keys() == {0, 1, 2}
    assert agreed[2] == Agreement(
        account="c",
        mechanism=MECHANISM,
        metrics_noise_multiplier=20.0,
        events=(EVENT, COUNT),
        participations=4,
    )


@pytest.mark.parametrize("unit", ["client", "none"])
def test_other_units_are_not_admitted_here(ledger, unit):
    """A plan in which clients do not protect records agrees nothing, so that this budget admits nothing."""
    planned = plan(unit=unit)
    assert agreements(planned, NAMES) == {}
    opened = budget_on(ledger, planned)
    assert opened.begin(terms()) == {}
    assert opened.reserve([order(), order(mechanism=None)]) == [Refusal.NOT_IN_PLAN] * 2


# --- begin ------------------------------------------------------------------------------------------------------------


def test_beginning_reserves_the_run_before_any_order(ledger, path, budget):
    """Three accounts are opened, and on each of them the run is reserved; no order is charged yet."""
    assert kinds(path) == ["GENESIS"] * 3 + ["RESERVE"] * 3
    assert charged(path) == []
    assert [ledger.books.accounts[name].runs["r"].admitted for name in NAMES] == [2, 2, 2]


def test_as_much_of_a_run_is_reserved_as_fits(ledger):
    """A budget of exactly three participations' epsilon admits three of five, and the fourth order is refused."""
    three = epsilon((EVENT.times(3),), delta=1e-5)
    begun = budget_on(ledger, plan(reserved=5))
    decided = begun.begin(terms(three))
    assert {(name, admission.participations, admission.gate) for name, admission in decided.items()} == {
        (name, 3, "pld") for name in NAMES
    }
    assert decided["a"].epsilon == three
    answers = begun.reserve([order(number) for number in range(1, 6)])
    assert answers == [None, None, None, Refusal.BUDGET_SPENT, Refusal.BUDGET_SPENT]


def test_a_run_of_which_nothing_fits_is_refused_and_noted(ledger, path):
    """Where one participation costs 1.56 and the budget is 1, each account notes one refusal, and no order passes."""
    begun = budget_on(ledger, plan())
    assert [admission.participations for admission in begun.begin(terms(1.0)).values()] == [0, 0, 0]
    assert refused(path) == [("r", "budget-spent")] * 3
    assert begun.reserve([order(), order(2, client=1)]) == [Refusal.BUDGET_SPENT] * 2
    assert charged(path) == []


def test_what_was_decided_stays_when_the_run_is_begun_again(ledger, path, budget):
    """A resumed run gets the bound that it had, and nothing is written."""
    before = kinds(path)
    assert budget_on(ledger, plan(reserved=9)).begin(terms()) == {}
    assert kinds(path) == before
    assert ledger.books.accounts["a"].runs["r"].admitted == 2


def test_a_run_cannot_be_begun_again_with_other_events(ledger, budget):
    """The same run with a count in addition is not the run that was reserved."""
    with pytest.raises(LedgerError, match="run r has reserved other events on a"):
        budget_on(ledger, plan(counts=True)).begin(terms())


def test_without_a_beginning_nothing_is_admitted(ledger, path):
    """A run that was never reserved has no claim, neither on accounts that are not there nor on those that are."""
    claim = budget_on(ledger, plan())
    assert claim.reserve([order()]) == [Refusal.NOT_IN_PLAN]
    ledger.open_accounts(terms())
    assert claim.reserve([order()]) == [Refusal.NOT_IN_PLAN]
    assert charged(path) == []


# --- orders -----------------------------------------------------------------------------------------------------------


def test_an_order_of_the_plan_is_charged(budget, path):
    """An admitted order is in the ledger with the plan's events, once, when `reserve` has returned."""
    assert budget.reserve([order(number=4, client=2, attempt=3)]) == [None]
    (entry,) = charges(path)
    assert (entry.run, entry.round, entry.attempt, entry.account) == ("r", 4, 3, "c")
    assert (entry.events, entry.participations) == ((EVENT,), 1)


def test_a_count_is_charged_with_the_update(ledger, path):
    """Where a participation releases a count, both events are in its charge."""
    begun = budget_on(ledger, plan(counts=True))
    begun.begin(terms())
    assert begun.reserve([order(), order(2, metrics_noise_multiplier=20.0)]) == [Refusal.NOT_IN_PLAN, None]
    assert [entry.events for entry in charges(path)] == [(EVENT, COUNT)]


def test_answers_are_in_the_order_of_the_questions(budget, path):
    """For each order there is one answer, and only admitted ones are charged."""
    answers = budget.reserve([order(client=0), order(client=1, run="other"), order(client=2), order(client=0)])
    assert answers == [None, Refusal.NOT_IN_PLAN, None, Refusal.ALREADY_TRAINED]
    assert [account for _, _, account in charged(path)] == ["a", "c"]


def test_no_orders_no_charge(budget, path):
    """An empty list is answered with an empty list, and nothing is written."""
    before = kinds(path)
    assert budget.reserve([]) == []
    assert kinds(path) == before


PROGRAM = """
import os, resource, signal, sys
from fractions import Fraction
from pathlib import Path
import numpy as np
from client.budget import Agreement, Budget
from common.errors import LedgerError
from common.ledger import Ledger
from common.messages import Mechanism, Order
from common.privacy.events import SampledGaussian
event = SampledGaussian(noise_multiplier=1.1, sampling_rate=Fraction(1, 10), steps=2)
mechanism = Mechanism(sampling_rate=Fraction(1, 10), noise_multiplier=1.1, max_grad_norm=0.5, steps=2)
order = Order(run="r", round=1, attempt=1, client=0, weights_P=np.zeros(3, np.float32), mechanism=mechanism)
agreement = Agreement(
    account="a", mechanism=mechanism, metrics_noise_multiplier=None, events=(event,), participations=2
)
budget = Budget(Ledger(Path(sys.argv[1])), run="r", agreements={0: agreement})
"""


def child(path, body):
    """Run a program with a budget on the ledger in a process of its own, and return how it ended."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM + body, str(path)], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_charge_survives_a_killed_process(budget, path):
    """When `reserve` has answered None and the process is killed at once, the charge is still there."""
    ended = child(path, "if budget.reserve([order]) == [None]: os.kill(os.getpid(), signal.SIGKILL)")
    assert ended.returncode == -9, ended.stderr
    assert budget.reserve([order(), order(attempt=2), order(attempt=3)]) == [
        Refusal.ALREADY_TRAINED,
        None,
        Refusal.BUDGET_SPENT,  # two were reserved, and the first was charged before the crash
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"run": "another"},
        {"client": 3},
        {"client": 10**9},
        {"mechanism": None},
        {"mechanism": mechanism(sampling_rate=Fraction(1, 11))},
        {"mechanism": mechanism(sampling_rate=Fraction(1, 9))},
        {"mechanism": mechanism(noise_multiplier=1.0999999999999999)},  # the float next to 1.1
        {"mechanism": mechanism(noise_multiplier=2.0)},  # more noise is another order too: clients alter nothing
        {"mechanism": mechanism(max_grad_norm=0.6)},
        {"mechanism": mechanism(steps=1)},
        {"mechanism": mechanism(steps=3)},
        {"max_update_norm": 1.0},  # it belongs to unit client
        {"metrics_noise_multiplier": 20.0},  # the plan releases no count
    ],
    ids=str,
)
def test_an_order_that_differs_from_the_plan_is_refused(budget, path, changes):
    """Another run, client, rate, noise, clip, count or number of steps is not in the plan, and nothing is written."""
    before = kinds(path)
    assert budget.reserve([order(**changes)]) == [Refusal.NOT_IN_PLAN]
    assert kinds(path) == before


def test_the_same_order_is_refused_the_second_time(budget):
    """One order is one charge, in two calls, in one call, and with other weights."""
    assert budget.reserve([order()]) == [None]
    assert budget.reserve([order()]) == [Refusal.ALREADY_TRAINED]
    assert budget.reserve([order(weights_P=np.ones(3, np.float32))]) == [Refusal.ALREADY_TRAINED]
    assert budget.reserve([order(client=1), order(client=1)]) == [None, Refusal.ALREADY_TRAINED]


def test_a_settled_order_is_refused_the_second_time_too(budget):
    """Whether it was carried out or came to nothing, the same order never trains again."""
    budget.reserve([order(), order(client=1)])
    budget.settle([order()], [order(client=1)])
    assert budget.reserve([order(), order(client=1)]) == [Refusal.ALREADY_TRAINED] * 2


def test_a_spent_account_is_refused(budget, path):
    """After two participations client 0 is refused, in whatever round; client 1 is not."""
    assert budget.reserve([order(1), order(2)]) == [None, None]
    assert budget.reserve([order(3), order(1, attempt=2)]) == [Refusal.BUDGET_SPENT] * 2
    assert budget.reserve([order(1, client=1)]) == [None]
    assert len(charged(path)) == 3


def test_the_bound_holds_within_one_call(budget):
    """Five orders at once for one client get two charges."""
    answers = budget.reserve([order(number) for number in range(1, 6)])
    assert answers == [None, None, *[Refusal.BUDGET_SPENT] * 3]


def test_a_repeated_attempt_is_charged_again(budget):
    """A lost round that is ordered again is a second charge: nothing is refunded."""
    assert budget.reserve([order(1, attempt=1)]) == [None]
    budget.settle([], [order(1, attempt=1)])
    assert budget.reserve([order(1, attempt=2)]) == [None]
    assert budget.reserve([order(2)]) == [Refusal.BUDGET_SPENT]


questions = st.lists(
    st.lists(
        st.builds(
            order,
            number=st.integers(1, 4),
            client=st.integers(0, 3),
            attempt=st.integers(1, 3),
            run=st.sampled_from(["r", "r", "r", "s"]),
        ),
        max_size=6,
    ),
    max_size=6,
)


@settings(max_examples=25, deadline=None)
@given(calls=questions, reserved=st.integers(0, 4), reopen=st.lists(st.booleans(), min_size=6, max_size=6))
def test_no_account_is_charged_beyond_its_reserve_whatever_is_asked(tmp_path_factory, calls, reserved, reopen):
    """In whatever order, with restarts in between: at most `reserved` charges each, one per order, all on the disk."""
    path = tmp_path_factory.mktemp("budget") / "ledger.db"
    ledger = Ledger.create(path)
    opened = budget_on(ledger, plan(reserved))
    opened.begin(terms())
    admitted = []
    for call, restart in zip(calls, reopen, strict=False):
        admitted += [question for question, answer in zip(call, opened.reserve(call), strict=True) if answer is None]
        if restart:
            ledger.close()
            ledger = Ledger(path)
            opened = budget_on(ledger, plan(reserved))
            assert opened.begin(terms()).keys() == (set() if reserved else set(NAMES))
    ledger.close()
    on_disk = charged(path)
    assert on_disk == [(question.round, question.attempt, NAMES[question.client]) for question in admitted]
    assert len(set(on_disk)) == len(on_disk)
    assert all(count <= reserved for count in Counter(account for *_, account in on_disk).values())
    assert all(question.run == "r" and question.client < 3 for question in admitted)


def test_two_holders_of_one_ledger_share_its_bound(budget, path):
    """What another process has charged since counts: two participations are two, whoever asks."""
    with closing(Ledger(path)) as other:
        theirs = budget_on(other, plan())
        assert budget.reserve([order(1)]) == [None]
        assert theirs.reserve([order(1), order(2), order(3)]) == [
            Refusal.ALREADY_TRAINED,
            None,
            Refusal.BUDGET_SPENT,
        ]
        assert budget.reserve([order(2), order(4)]) == [Refusal.ALREADY_TRAINED, Refusal.BUDGET_SPENT]


def test_a_full_disk_admits_nothing(budget, path):
    """When the charge cannot be written, `reserve` raises instead of answering None, and nothing is charged."""
    body = """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
try:
    print(budget.reserve([order]))
except LedgerError:
    print("refused")
"""
    ended = child(path, body)
    assert ended.stdout == "refused\n", ended.stderr
    assert charged(path) == []
    assert budget.reserve([order()]) == [None]


# --- what became of orders --------------------------------------------------------------------------------------------


def test_orders_are_settled_and_stay_charged(ledger, budget, path):
    """What was carried out is committed, what came to nothing expires, and neither gives anything back."""
    budget.reserve([order(1), order(1, client=1)])
    budget.settle([order(1)], [order(1, client=1)])
    assert settled(path) == [("COMMIT", 1, 1, "a"), ("EXPIRE", 1, 1, "b")]
    assert [ledger.books.accounts[name].runs["r"].charged for name in NAMES] == [1, 1, 0]
    assert ledger.books.accounts["b"].spent() == (EVENT,)


def test_an_order_that_was_not_charged_cannot_be_settled(budget, path):
    """A settlement without a charge is no entry: the ledger refuses it and stays as it was."""
    before = kinds(path)
    with pytest.raises(LedgerError, match="round 1, attempt 1 is not waiting to be settled"):
        budget.settle([order()])
    assert kinds(path) == before


def test_the_end_of_a_run_expires_what_was_not_heard_of(ledger, budget, path):
    """An order that was charged and never settled expires, then the run is closed on every account."""
    budget.reserve([order(1), order(2)])
    budget.settle([order(1)])
    budget.end()
    assert settled(path) == [
        ("COMMIT", 1, 1, "a"),
        ("EXPIRE", 2, 1, "a"),
        ("COMMIT", 0, 1, "a"),
        ("COMMIT", 0, 1, "b"),
        ("COMMIT", 0, 1, "c"),
    ]
    assert budget.reserve([order(1, client=1)]) == [Refusal.BUDGET_SPENT]


def test_what_a_run_did_not_use_is_free_again_at_its_end(ledger):
    """While the first run is open its reserve counts; when it ended after one of ten, the next run gets more."""
    first = budget_on(ledger, plan(reserved=10))
    first.begin(terms(4.0))
    first.reserve([order()])

    def admitted(run):
        begun = budget_on(ledger, plan(reserved=1000), run=run).begin(terms(4.0))
        return begun["a"].participations, begun["a"].gate

    while_open, gate = admitted("s")
    ledger.end_run("s")
    first.end()
    assert (gate, admitted("t")) == ("filter", (while_open + 9, "filter"))


def test_admission_imports_no_torch():
    """The process that admits orders is small: torch, Opacus and Flower stay out of it, dp-accounting until asked."""
    program = (
        "import client.budget, sys; print(sorted({'torch', 'opacus', 'dp_accounting', 'flwr'} & sys.modules.keys()))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert ended.stdout == "[]\n", ended.stderr
