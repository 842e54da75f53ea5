"""Who is asked in which round.

Units `record` and `none`: a schedule that follows from the run's seed and keeps each client's participations even, so
that the plan can count on them. No amplification is claimed for it: whoever picks a client knows that it takes part.

Unit `client`: a Poisson cohort, each client independently, drawn from `common.privacy.entropy` and told to nobody.
"""

import numpy as np
import numpy.typing as npt

from common.config import Scenario
from common.privacy.entropy import Entropy
from common.privacy.plan import Plan
from common.seeds import derive

Clients = npt.NDArray[np.intp]


def schedule(scenario: Scenario) -> list[Clients]:
    """Return each round's cohort in increasing order, the first round first.

    Guarantees:
        Each round has exactly `cohort` clients; after any number of rounds two clients' participations differ by at
        most one, so that none exceeds ceil(rounds * cohort / clients).
    """
    generator = np.random.default_rng(derive(scenario.run.seed, "cohorts"))
    taken = np.zeros(scenario.data.clients, np.int64)
    cohorts = []
    for _ in range(scenario.run.rounds):
        fewest_first = np.lexsort((generator.random(len(taken)), taken))
        cohort = np.sort(fewest_first[: scenario.server.cohort])
        taken[cohort] += 1
        cohorts.append(cohort)
    return cohorts


def poisson_cohort(plan: Plan, entropy: Entropy) -> Clients:
    """Return a secret cohort: each client of the population with the plan's sampling rate; it may be empty."""
    return entropy.bernoulli(len(plan.records), probability=plan.accounts[0].event.sampling_rate)
