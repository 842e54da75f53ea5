"""The plan of a new run, without what training needs: it answers in a second or two."""

import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

from common.config import Scenario
from common.privacy import accounting
from common.privacy.plan import Plan, make_plan
from simulations.engine import nursery
from simulations.partition import declared_records


def plan_of(scenario: Scenario, *, records: Sequence[int] | None = None) -> Plan:
    """Return a new run's plan; `records` in place of what the scenario declares."""
    return make_plan(scenario, records=records or declared_records(scenario), run=uuid.uuid4().hex)


def check_plan(plan: Plan) -> list[accounting.Verdict]:
    """Ask all accountants about each account of a plan; AccountingError when they disagree."""
    return [accounting.check(account.history(account.reserved), delta=plan.delta) for account in plan.accounts]


@contextmanager
def checked(plan: Plan, scenario: Scenario) -> Iterator[None]:
    """Do what stands within while another process checks the plan; AccountingError at its end when it is refused.

    The accountants that check take seconds to import, and the process that workers are forked from has the largest of
    them already. Where there are no workers the plan is checked here, first.
    """
    if not plan.accounts or not nursery.is_wanted(scenario):
        check_plan(plan)
        yield
        return
    with ProcessPoolExecutor(1, mp_context=nursery.context()) as pool:
        pending = pool.submit(check_plan, plan)
        yield
        pending.result()
