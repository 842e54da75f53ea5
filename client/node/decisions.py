"""What `discreet runs`, `approve` and `refuse` do: a person looks at proposed runs and decides.

The decision is written to the ledger first, under the account that the run would charge; the node sees it a moment
later. Whoever decides is named, and named in the ledger for good.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from client import policy as policies
from client.live.room import room_in
from client.node import settings as node_settings
from client.node.approvals import APPROVALS, Approvals, Proposed
from client.policy import Policy
from common.errors import BadInputError, DiscreetError
from common.transparency.entries import Decision

LONGEST_NAME = 200


def runs(node: Path, policy: Path) -> list[dict[str, Any]]:
    """Return the runs that were proposed to a node, the newest first, and what each would cost."""
    rules = policies.load(policy)
    with closing(_approvals(node)) as approvals:
        return [_row(proposed, rules) for proposed in approvals.all()]


def decide(node: Path, policy: Path, run: str, *, decision: Decision, by: str) -> str:
    """Approve or refuse the run whose identifier begins with `run`, and say so; BadInputError unless there is one."""
    from client.owner import terms_of
    from common.ledger import Ledger

    if not by.strip() or not by.isprintable() or len(by) > LONGEST_NAME:
        raise BadInputError(f"--by: expected the name of who decides, up to {LONGEST_NAME} characters, got {by!r}.")
    settings, rules = node_settings.read(node), policies.load(policy)
    with closing(_approvals(node)) as approvals:
        proposed = approvals.beginning_with(run)
        account = rules.data.lineage
        with closing(Ledger(settings.ledger, memory=settings.ledger_seen)) as ledger:
            if account not in ledger.books.accounts:
                ledger.open_accounts({account: terms_of(rules)})
            ledger.decided(
                account,
                proposed.run,
                decision=decision,
                by=by,
                purpose=proposed.purpose,
                scenario=proposed.digest,
            )
        approvals.decide(proposed.run, decision=decision, by=by)
    return (
        f"Run {proposed.run[:8]} ({proposed.purpose or 'no purpose given'}) is {decision} by {by}; the ledger "
        f"{settings.ledger} keeps it."
    )


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print proposed runs for people."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not rows:
        console.print("No run was proposed that asks for an approval.")
        return
    grid = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("run", "asked", "by", "for", "ε at most", "decision"):
        grid.add_column(heading, overflow="fold")
    for row in rows:
        decided = f"{row['decision']} by {row['by']}" if row["decision"] else "waits for you"
        cost = row["objection"] or ("none: no privacy" if row["epsilon"] is None else f"{row['epsilon']:.3f}")
        grid.add_row(row["run"][:12], row["asked"], row["coordinator"], row["purpose"], cost, decided)
    console.print(grid)
    console.print("Decide with: discreet approve RUN --by NAME, or: discreet refuse RUN --by NAME")


def _approvals(node: Path) -> Approvals:
    state = node_settings.read(node).state
    node_settings.make_private(state)
    return Approvals(state / APPROVALS)


def _row(proposed: Proposed, policy: Policy) -> dict[str, Any]:
    return {
        "run": proposed.run,
        "purpose": proposed.purpose,
        "coordinator": proposed.coordinator,
        "asked": f"{datetime.fromtimestamp(proposed.asked, UTC):%Y-%m-%d %H:%M} UTC",
        "scenario": proposed.digest,
        "decision": proposed.decision,
        "by": proposed.by,
        **_cost(proposed, policy),
    }


def _cost(proposed: Proposed, policy: Policy) -> dict[str, Any]:
    """What a run would cost this owner, every participation counted; why not, where that cannot be said."""
    from common.config import parse
    from common.privacy.accounting import epsilon
    from common.privacy.plan import make_plan

    try:
        scenario = parse(proposed.scenario)
        if scenario.privacy.unit == "none":
            return {"epsilon": None, "rounds": scenario.run.rounds, "objection": ""}
        plan = make_plan(scenario, records=(policy.units(room_in(scenario)),), run=proposed.run)
        account = plan.account(0)
        spent = epsilon(account.history(account.reserved), delta=policy.budget.delta)
    except DiscreetError as error:
        return {"epsilon": None, "rounds": None, "objection": str(error)}
    return {"epsilon": spent, "rounds": scenario.run.rounds, "objection": ""}
