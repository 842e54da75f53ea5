"""What travels between coordinator and client.

Shapes: P is the number of parameters of the model.

What may leave a client is exactly `Report`: reading this file answers "what leaks?". Example counts, losses and
accuracies on private data are not in it; one noised count is, where an order asks for it and its account is charged.
A client that will not, or cannot, answer sends one word of `Refusal`. Before a run an organisation sends an `Offer`:
public constants that its policy declares, and nothing that was read from its data.
"""

from dataclasses import dataclass
from enum import Enum
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from common import checks

FloatArray = npt.NDArray[np.float32]


class Refusal(Enum):
    """The fixed vocabulary of why a client has no report; it holds no data."""

    NOT_IN_PLAN = "not-in-plan"
    OUTSIDE_POLICY = "outside-policy"
    BUDGET_SPENT = "budget-spent"
    ALREADY_TRAINED = "already-trained"
    NOT_RECORDED = "not-recorded"
    MALFORMED = "malformed"
    DATA_UNFIT = "data-unfit"
    MODEL_UNFIT = "model-unfit"
    FAILED = "failed"
    WORKER_DIED = "worker-died"
    TIMED_OUT = "timed-out"
    NO_ANSWER = "no-answer"
    FORGED = "forged"
    BUNDLE_REFUSED = "bundle-refused"
    AWAITS_APPROVAL = "awaits-approval"
    REFUSED_BY_OWNER = "refused-by-owner"
    NOT_WITNESSED = "not-witnessed"


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """How one round of one client is made private, or None of it for unit `none`.

    Args:
        sampling_rate: probability that a record, or a person with all its records, is in a step's batch (Poisson), in
            (0, 1].
        noise_multiplier: standard deviation of the noise in units of `max_grad_norm`.
        max_grad_norm: bound on the L2 norm of what one record, or person, adds to a step.
        steps: noisy steps in the round.
    """

    sampling_rate: Fraction
    noise_multiplier: float
    max_grad_norm: float
    steps: int

    def __post_init__(self) -> None:
        checks.fraction(sampling_rate=self.sampling_rate)
        checks.positive(noise_multiplier=self.noise_multiplier, max_grad_norm=self.max_grad_norm, steps=self.steps)


@dataclass(frozen=True, kw_only=True)
class Order:
    """One client's work in one round: train from these weights.

    Args:
        run: the run's identifier.
        round: from 1.
        attempt: from 1; a round that was lost is ordered again with the next number.
        client: position of the client in the run's population, from 0.
        weights_P: the model to start from, flat.
        mechanism: for unit `record`, else None.
        max_update_norm: for unit `client` the L2 ball to which the update is clipped, else None.
        metrics_noise_multiplier: noise of the count that is to come with the update, or None: no count is asked for.
    """

    run: str
    round: int
    attempt: int
    client: int
    weights_P: FloatArray
    mechanism: Mechanism | None = None
    max_update_norm: float | None = None
    metrics_noise_multiplier: float | None = None

    def __post_init__(self) -> None:
        checks.positive(round=self.round, attempt=self.attempt)
        checks.not_negative(client=self.client)
        if self.max_update_norm is not None:
            checks.positive(max_update_norm=self.max_update_norm)
        if self.metrics_noise_multiplier is not None:
            checks.positive(metrics_noise_multiplier=self.metrics_noise_multiplier)


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that leaves a client: which order it answers, the update, and a noised count where one was ordered.

    Args:
        run, round, attempt, client: those of the order.
        update_P: model after local training minus the order's weights, flat.
        correct: how many of the client's own records (of its persons, each with the share of its records) the order's
            weights get right, plus Gaussian noise; withheld, None, unless the order asks for it.
    """

    run: str
    round: int
    attempt: int
    client: int
    update_P: FloatArray
    correct: float | None = None


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What an organisation says before a run: constants that its policy declares, and whether it would take part.

    Args:
        run: the run that was proposed.
        records: declared number of units: of records, or of persons, and of canaries where the run has some.
        policy: SHA-256 of its policy, hexadecimal.
        code: SHA-256 of its client code, hexadecimal.
        refusal: why it would not take part as things are, or None.
    """

    run: str
    records: int
    policy: str
    code: str
    refusal: Refusal | None = None

    def __post_init__(self) -> None:
        checks.positive(records=self.records)
