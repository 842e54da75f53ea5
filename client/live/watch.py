"""What an owner does of its own accord in an audited run: canaries into the shard, what the pad does into the notebook.

Shapes: P parameters, M canaries.

    watch = watched(policy, scenario, run, ledger=ledger, is_begun=False)     coins are on the disk
    report = trainer.train(order, watch.beside(shard))
    watch.note(order, report)                                                 when the report is stored
"""

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from client.live.notebook import Movement, Notebook, notebook_of
from client.live.room import room_in, unreadable
from client.live.rows import Coins, beside
from client.policy import Policy
from common.config import Scenario
from common.messages import Mechanism, Order, Report
from common.shards import Shard

log = logging.getLogger("discreet.owner")

LINEAR = 5e3  # how far a canary's logit may come: from 1e4 on its gradient would no longer be what it is at 0
STRAY = 10.0  # deviations that noise does not reach
FINEST = 2.0**-23  # of a float32, relative
COARSEST = 1e-3  # of a canary's movement, that rounding may take
SMALLEST = 1e-30  # movement of a canary that float32 still has with all its digits


@dataclass(frozen=True, kw_only=True, eq=False)
class Watch:
    """An audited run, as its owner sees it.

    Args:
        scenario: of the run.
        notebook: where coins and movements are kept.
        is_in_M: the coins.
    """

    scenario: Scenario
    notebook: Notebook
    is_in_M: Coins

    def beside(self, shard: Shard) -> Shard:
        """Return the owner's records with the canaries beside them."""
        return beside(shard, self.is_in_M)

    def note(self, order: Order, report: Report) -> None:
        """Keep how far the pad moved; what keeps it from being kept, or read, is a line in the owner's log."""
        try:
            obstacle = self._obstacle(order, report)
            if obstacle is None:
                moves_M = report.update_P[self._pad].astype(np.float64) / one_movement(self.scenario)
                self.notebook.note(Movement(round=order.round, attempt=order.attempt, moves_M=moves_M))
        except Exception:
            log.exception("run %s, round %d: not audited, it failed", order.run, order.round)
            return
        if obstacle is not None:
            log.warning("run %s, round %d: not audited, %s", order.run, order.round, obstacle)

    def _obstacle(self, order: Order, report: Report) -> str | None:
        """Why an order's movements say nothing of the owner's training, or None."""
        from client.live.probe import can_pull  # torch: only where something is trained

        assert order.mechanism is not None  # noqa: S101 - a run that protects records
        far = float(np.abs(order.weights_P[self._pad]).max())
        if not is_readable(self.scenario, order.mechanism, far=far):
            return "the order's pad lies too far out"
        weights = (order.weights_P, order.weights_P + report.update_P)
        return None if all(can_pull(self.scenario, weights_P) for weights_P in weights) else "the model overflows"

    @property
    def _pad(self) -> slice:
        """Where the canaries' weights are: the pad is the last part of the flat vector."""
        assert self.scenario.audit is not None  # noqa: S101 - there is room
        begin = -self.scenario.audit.canaries
        return slice(begin, begin + len(self.is_in_M) or None)


def watched(policy: Policy, scenario: Scenario, run: str, *, ledger: Path, is_begun: bool) -> Watch | None:
    """Return a run's watch, its coins on the disk, or None where it has no canaries.

    JournalError or OSError where coins cannot be read or written.

    Args:
        policy: the owner's.
        scenario: of the run.
        run: its identifier.
        ledger: the owner's, beside which the notebook lies.
        is_begun: whether an order of the run was charged before.
    """
    count = policy.canaries(room_in(scenario))
    if not count:
        why = unreadable(scenario) if policy.audit.canaries else None
        if why is not None:
            log.warning("run %s: no canaries are put in: %s", run, why)
        return None
    notebook = notebook_of(ledger, run)
    return Watch(scenario=scenario, notebook=notebook, is_in_M=notebook.draw(run, count, is_begun=is_begun))


def one_movement(scenario: Scenario) -> float:
    """Return how far one canary that is in a batch moves its weight of the pad."""
    training = scenario.training
    return training.learning_rate * scenario.privacy.max_grad_norm / training.batch_size


def is_readable(scenario: Scenario, mechanism: Mechanism, *, far: float) -> bool:
    """Say whether canaries pull, and movements are not lost in rounding, from weights as far out as this.

    It depends on what the coordinator sent and not on any noise, so that leaving rounds out favours no outcome.

    Args:
        scenario: of the run.
        mechanism: of the order.
        far: the largest weight of the pad, in absolute value.
    """
    assert scenario.audit is not None  # noqa: S101 - there is room
    one, steps = one_movement(scenario), mechanism.steps
    reach = far + one * (steps + STRAY * mechanism.noise_multiplier * math.sqrt(steps))
    is_linear = scenario.audit.gradient_norm * reach <= LINEAR
    return is_linear and one >= SMALLEST and reach * FINEST <= COARSEST * one
