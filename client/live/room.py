"""For how many canaries a run has room.

An answer follows from the scenario alone, so that everybody who counts on N comes to the same. Where movements of the
pad could not be read there is room for none: a coordinator that chose the scenario could else have an owner believe in
an audit that saw nothing.
"""

import math

from common.canaries import SMALLEST_ROW
from common.config import Scenario
from common.model_tables import Transformer
from common.tasks import task_of

LEAST_PULL, MOST_PULL = 2.0, 1e3  # a canary's gradient in units of what it is clipped to
SMALLEST_NORM = 1e-2  # below, the 1e-6 of the clipping formula takes a visible part of a canary


def room_in(scenario: Scenario) -> int:
    """Return how many canaries of an owner a run has room for: the size of its pad, or 0 where it could not be read."""
    return 0 if scenario.audit is None or unreadable(scenario) else scenario.audit.canaries


def unreadable(scenario: Scenario) -> str | None:
    """Return why the movements of a scenario's pad would say nothing, or None when they would, or there is no pad."""
    if scenario.audit is None:
        return None
    if scenario.privacy.unit != "record":
        return f"privacy.unit is {scenario.privacy.unit!r}, and no record is protected"
    if scenario.training.optimizer != "sgd":
        return f"training.optimizer is {scenario.training.optimizer!r}, and only under 'sgd' movements can be read"
    norm, pull = scenario.privacy.max_grad_norm, scenario.audit.gradient_norm
    if not (norm >= SMALLEST_NORM and LEAST_PULL * norm <= pull <= MOST_PULL * norm):
        return (
            f"audit.gradient_norm is {pull:g}: expected {LEAST_PULL:g} to {MOST_PULL:g} times a privacy.max_grad_norm "
            f"of {SMALLEST_NORM:g} or more, got {norm:g}"
        )
    if math.prod(record_shape(scenario)) < SMALLEST_ROW:
        return f"a record has fewer than {SMALLEST_ROW} numbers"
    return None


def record_shape(scenario: Scenario) -> tuple[int, ...]:
    """Return the shape of one record."""
    if isinstance(scenario.model, Transformer):
        return (scenario.model.tokens,)
    task = task_of(scenario.data)
    return task.image_shape if task.image_shape is not None else (task.width or 1,)
