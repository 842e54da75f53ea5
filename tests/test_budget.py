"""Admission: an order is charged durably, or refused."""

import dataclasses
import subprocess
import sys
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.budget import Budget, account_name
from common.errors import RunFailedError
from common.messages import Mechanism, Order, Refusal
from common.privacy.event_log import Entry, EventLog, read_entries
from common.privacy.events import SampledGaussian
from common.privacy.plan import Account, Plan
from common.privacy.plan_file import to_json

EVENT = SampledGaussian(noise_multiplier=1.1, sampling_rate=Fraction(1, 10), steps=2)
MECHANISM = Mechanism(sampling_rate=Fraction(1, 10), noise_multiplier=1.1, max_grad_norm=0.5, steps=2)
WEIGHTS = np.zeros(3, np.float32)


def plan(reserved=2, unit="record"):
    """Three clients of one account each, which may take part `reserved` times."""
    account = Account(
        records=300, members=3, event=EVENT, participations=1, reserved=reserved, epsilon=1.0, epsilon_reserved=1.5
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


def order(number=1, client=0, attempt=1, **changes: object):
    """An order as the plan has it, with changes."""
    planned = Order(
        run="r", round=number, attempt=attempt, client=client, weights_P=WEIGHTS, mechanism=MECHANISM
    )  # fmt: skip
    return dataclasses.replace(planned, **changes)


def mechanism(**changes: object):
    """The plan's mechanism, with changes."""
    return dataclasses.replace(MECHANISM, **changes)


@pytest.fixture
def events(tmp_path):
    """The place of the event log."""
    return tmp_path / "events.jsonl"


@pytest.fixture
def budget(events):
    """A budget of two participations for each of three clients."""
    opened = Budget(plan(), EventLog(events))
    yield opened
    opened.close()


def test_an_order_of_the_plan_is_charged(budget, events):
    """An admitted order is in the event log as the plan's event, when `reserve` has returned."""
    assert budget.reserve([order(number=4, client=2, attempt=3)]) == [None]
    assert read_entries(events) == [Entry(run="r", round=4, attempt=3, account="client-000002", event=EVENT)]


def test_answers_are_in_the_order_of_the_questions(budget, events):
    """For each order there is one answer, and only admitted ones are charged."""
    answers = budget.reserve([order(client=0), order(client=1, run="other"), order(client=2), order(client=0)])
    assert answers == [None, Refusal.NOT_IN_PLAN, None, Refusal.ALREADY_TRAINED]
    assert [entry.account for entry in read_entries(events)] == ["client-000000", "client-000002"]


def test_no_orders_no_charge(budget, events):
    """An empty list is answered with an empty list."""
    assert budget.reserve([]) == []
    assert events.read_bytes() == b""


def test_a_charge_survives_a_killed_process(tmp_path, events):
    """When `reserve` has answered None and the process is killed at once, the charge is still there."""
    (tmp_path / "plan.json").write_text(to_json(plan()))
    program = """
import os, signal, sys
from fractions import Fraction
from pathlib import Path
import numpy as np
from client.budget import Budget
from common.messages import Mechanism, Order
mechanism = Mechanism(sampling_rate=Fraction(1, 10), noise_multiplier=1.1, max_grad_norm=0.5, steps=2)
order = Order(run="r", round=1, attempt=1, client=0, weights_P=np.zeros(3, np.float32), mechanism=mechanism)
budget = Budget.open(Path(sys.argv[1]), Path(sys.argv[2]))
if budget.reserve([order]) == [None]:
    os.kill(os.getpid(), signal.SIGKILL)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "plan.json"), str(events)]
    assert subprocess.run(command, timeout=60, check=False).returncode == -9
    reopened = Budget.open(tmp_path / "plan.json", events)
    assert reopened.reserve([order(), order(attempt=2), order(attempt=3)]) == [
        Refusal.ALREADY_TRAINED,
        None,
        Refusal.BUDGET_SPENT,  # two were reserved, and the first was charged before the crash
    ]
    reopened.close()


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
    ],
    ids=str,
)
def test_an_order_that_differs_from_the_plan_is_refused(budget, events, changes):
    """Another run, client, rate, noise, clip or number of steps is not in the plan, and is not charged."""
    assert budget.reserve([order(**changes)]) == [Refusal.NOT_IN_PLAN]
    assert events.read_bytes() == b""


def test_an_order_with_a_number_that_the_plan_lacks_is_refused(budget, events):
    """A bound on the whole update belongs to unit client: with unit record the plan has none."""
    assert budget.reserve([order(max_update_norm=1.0)]) == [Refusal.NOT_IN_PLAN]
    assert events.read_bytes() == b""


@pytest.mark.parametrize("unit", ["client", "none"])
def test_other_units_are_not_admitted_here(events, unit):
    """A plan in which clients do not protect records has no orders that this budget admits."""
    opened = Budget(plan(unit=unit), EventLog(events))
    assert opened.reserve([order(), order(mechanism=None)]) == [Refusal.NOT_IN_PLAN] * 2
    opened.close()


def test_the_same_order_is_refused_the_second_time(budget):
    """One order is one charge, in two calls, in one call, and with other weights."""
    assert budget.reserve([order()]) == [None]
    assert budget.reserve([order()]) == [Refusal.ALREADY_TRAINED]
    assert budget.reserve([order(weights_P=np.ones(3, np.float32))]) == [Refusal.ALREADY_TRAINED]
    assert budget.reserve([order(client=1), order(client=1)]) == [None, Refusal.ALREADY_TRAINED]


def test_a_spent_account_is_refused(budget, events):
    """After two participations client 0 is refused, in whatever round; client 1 is not."""
    assert budget.reserve([order(1), order(2)]) == [None, None]
    assert budget.reserve([order(3), order(1, attempt=2)]) == [Refusal.BUDGET_SPENT] * 2
    assert budget.reserve([order(1, client=1)]) == [None]
    assert len(read_entries(events)) == 3


def test_the_bound_holds_within_one_call(budget):
    """Five orders at once for one client get two charges."""
    answers = budget.reserve([order(number) for number in range(1, 6)])
    assert answers == [None, None, *[Refusal.BUDGET_SPENT] * 3]


def test_a_repeated_attempt_is_charged_again(budget):
    """A lost round that is ordered again is a second charge: nothing is refunded."""
    assert budget.reserve([order(1, attempt=1)]) == [None]
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


@settings(max_examples=40, deadline=None)
@given(calls=questions, reserved=st.integers(0, 4), reopen=st.lists(st.booleans(), min_size=6, max_size=6))
def test_no_account_is_charged_beyond_its_reserve_whatever_is_asked(tmp_path_factory, calls, reserved, reopen):
    """In whatever order, with restarts in between: at most `reserved` charges each, one per order, all on the disk."""
    path = tmp_path_factory.mktemp("budget") / "events.jsonl"
    opened = Budget(plan(reserved), EventLog(path))
    admitted = []
    for call, restart in zip(calls, reopen, strict=False):
        admitted += [question for question, answer in zip(call, opened.reserve(call), strict=True) if answer is None]
        if restart:
            opened.close()
            opened = Budget(plan(reserved), EventLog(path))
    opened.close()
    charged = [(entry.round, entry.attempt, entry.account) for entry in read_entries(path)]
    assert charged == [(question.round, question.attempt, account_name(question.client)) for question in admitted]
    assert len(set(charged)) == len(charged)
    assert all(count <= reserved for count in Counter(account for *_, account in charged).values())
    assert all(question.run == "r" and question.client < 3 for question in admitted)


def test_a_full_disk_admits_nothing(tmp_path, events):
    """When the charge cannot be written, `reserve` raises instead of answering None."""
    (tmp_path / "plan.json").write_text(to_json(plan()))
    program = """
import resource, signal, sys
from fractions import Fraction
from pathlib import Path
import numpy as np
from client.budget import Budget
from common.errors import RunFailedError
from common.messages import Mechanism, Order
mechanism = Mechanism(sampling_rate=Fraction(1, 10), noise_multiplier=1.1, max_grad_norm=0.5, steps=2)
order = Order(run="r", round=1, attempt=1, client=0, weights_P=np.zeros(3, np.float32), mechanism=mechanism)
budget = Budget.open(Path(sys.argv[1]), Path(sys.argv[2]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
try:
    print(budget.reserve([order]))
except RunFailedError:
    print("refused")
"""
    command = [sys.executable, "-c", program, str(tmp_path / "plan.json"), str(events)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.stdout == "refused\n"
    assert read_entries(events) == []


def test_two_budgets_of_one_log_do_not_exist(budget, events):
    """A second budget on the same log is refused: charges are counted in one place."""
    with pytest.raises(RunFailedError, match="another process"):
        Budget(plan(), EventLog(events))
    assert budget.reserve([order()]) == [None]


@pytest.mark.parametrize("content", [None, "", "{}", "[]", "3"])
def test_a_plan_that_does_not_read_opens_no_budget(tmp_path, events, content):
    """Without a plan there is no bound, hence no budget."""
    path = tmp_path / "plan.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises((OSError, ValueError, KeyError, TypeError)):
        Budget.open(path, events)


def test_admission_imports_neither_torch_nor_an_accountant():
    """The process that admits orders is small: torch, Opacus and dp-accounting stay out of it."""
    program = (
        "import client.budget, sys; print(sorted({'torch', 'opacus', 'dp_accounting', 'flwr'} & sys.modules.keys()))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert ended.stdout == "[]\n", ended.stderr


def test_account_names_sort_like_clients():
    """Names are padded, so that a sorted log is in the order of clients."""
    assert account_name(0) == "client-000000"
    assert sorted([account_name(10), account_name(9)]) == [account_name(9), account_name(10)]
