"""The plan of a new run, without what training needs: it answers in a second or two."""

import uuid
from collections.abc import Sequence

from common.config import Scenario
from common.privacy import accounting
from common.privacy.plan import Plan, make_plan
from simulations.partition import declared_records


def plan_of(scenario: Scenario, *, records: Sequence[int] | None = None) -> Plan:
    """Return a new run's plan; `records` in place of what the scenario declares."""
    return make_plan(scenario, records=records or declared_records(scenario), run=uuid.uuid4().hex)


def check_plan(plan: Plan) -> list[accounting.Verdict]:
    """Ask all accountants about each account of a plan; AccountingError when they disagree."""
    return [accounting.check(account.history(account.reserved), delta=plan.delta) for account in plan.accounts]
