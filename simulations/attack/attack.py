"""Everything that `discreet attack` does, and what it found.

An illustration, never a verification: attacks on a finished model find little even where the noise is left out, so
that finding nothing says nothing. `discreet audit` is the tool that can refute a claim.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from common.config import Scenario
from common.errors import BadInputError
from common.messages import Mechanism
from common.privacy.odds import Pair, best_guess, most_hits
from common.privacy.plan import Account, Plan
from common.shards import Shard
from simulations import datasets
from simulations.attack.inversion import Inverted, PixelRange, different, invert, obstacle_to, range_of
from simulations.attack.membership import by_likelihood_ratio, by_loss
from simulations.attack.roc import RATES, Curve, Hits, hits_at
from simulations.attack.shadows import Shadows, cast, one_thread
from simulations.report_facts import odds

PICTURES = 3

# Says what is being done, and returns what to call when one of so many parts of it is done.
Stage = Callable[[str, int], Callable[[], None]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Attacked:
    """Two membership attacks on models that were trained in one way.

    Args:
        loss, likelihood_ratio: curves over all models.
        loss_hits, likelihood_ratio_hits: one for each of `RATES`.
        accuracy: of the models on public test data.
    """

    loss: Curve
    likelihood_ratio: Curve
    loss_hits: tuple[Hits, ...]
    likelihood_ratio_hits: tuple[Hits, ...]
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class Limit:
    """What no attack can pass, from the history of what a model's training spends.

    Args:
        pairs: epsilon and delta that hold at once; the first is the scenario's own delta.
        hits: the highest true-positive rate at each of `RATES`.
        guess: how often a guess at even odds is right at most.
    """

    pairs: tuple[Pair, ...]
    hits: tuple[float, ...]
    guess: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Findings:
    """What was found.

    Args:
        scenario: whose training was attacked.
        models: trained in each way; each was attacked once, with the others as shadows.
        records: those that were in or out; `members` of them each model was trained on.
        unprotected: with the noise left out, or all there is with unit `none`.
        private: as the scenario has it, or None with unit `none`.
        limit: of the private ones.
        pictures: of the gradient inversion; empty where `why_no_pictures` says why.
        why_no_pictures: or empty.
        pixels: from black to white.
    """

    scenario: Scenario
    models: int
    records: int
    members: int
    unprotected: Attacked
    private: Attacked | None
    limit: Limit | None
    pictures: tuple[Inverted, ...]
    why_no_pictures: str
    pixels: PixelRange

    def to_json(self) -> dict[str, Any]:
        """Return what `attack --json` prints."""
        membership = {
            "models": self.models,
            "records": self.records,
            "members": self.members,
            "unprotected": _attacked_json(self.unprotected),
            "private": None if self.private is None else _attacked_json(self.private),
            "limit": None if self.limit is None else _limit_json(self.limit),
        }
        pictures = [
            {
                "label": picture.label,
                "unprotected_error": picture.error,
                "private_error": picture.private_error,
                "blind_error": picture.blind_error,
            }
            for picture in self.pictures
        ]
        return {
            "illustration": True,
            "is_verification": False,
            "scenario": self.scenario.run.name,
            "attacks": {
                "membership_inference": membership,
                "gradient_inversion": {"pictures": pictures, "left_out_because": self.why_no_pictures or None},
            },
        }


def attack(scenario: Scenario, *, shadows: int, pictures: int = PICTURES, stage: Stage) -> Findings:
    """Attack what a scenario trains, on its own records.

    Args:
        scenario: with unit `record`, for single records, or `none`.
        shadows: models that help to attack each other model.
        pictures: of so many classes updates are inverted.
        stage: is told how far it is.

    Raises:
        BadInputError: another unit.
        DataMissingError: the data set is not there.
    """
    refuse_unfit(scenario)
    dataset = datasets.load(scenario)
    workers = _workers(scenario)

    def trained(name: str, *, is_noised: bool) -> Shadows:
        is_done = stage(name, shadows + 1)
        return cast(scenario, dataset, models=shadows + 1, is_noised=is_noised, workers=workers, is_done=is_done)

    is_private = scenario.privacy.unit == "record"
    private = trained("private models", is_noised=True) if is_private else None
    unprotected = trained("models without noise" if is_private else "models", is_noised=False)
    plan = unprotected.plan
    worst = max(range(len(plan.records)), key=lambda client: plan.account(client).epsilon) if is_private else None
    inverted, why_not = _pictures(
        scenario, dataset.test, count=pictures, mechanism=None if worst is None else plan.mechanism(worst), stage=stage
    )
    return Findings(
        scenario=scenario,
        models=shadows + 1,
        records=unprotected.is_in_MN.shape[1],
        members=int(unprotected.is_in_MN[0].sum()),
        unprotected=attacked(unprotected),
        private=None if private is None else attacked(private),
        limit=None if worst is None else _limit(plan, plan.account(worst)),
        pictures=inverted,
        why_no_pictures=why_not,
        pixels=range_of(dataset.test),
    )


def refuse_unfit(scenario: Scenario) -> None:
    """Raise BadInputError where epsilon is not about single records, which is what is attacked."""
    if scenario.privacy.unit == "client":
        raise BadInputError(
            "privacy.unit: expected 'record' or 'none', got 'client'. The attacks look for single records, and epsilon "
            "is about whole clients: attack the same scenario with --set privacy.unit=record."
        )
    if scenario.privacy.unit_column is not None:
        raise BadInputError(
            f"privacy.unit_column: expected none of it, got '{scenario.privacy.unit_column}'. The attacks look for "
            f"single records, and epsilon is about persons: leave it out with --set privacy.unit_column="
        )


def attacked(shadows: Shadows) -> Attacked:
    """Attack every model, with the others as its shadows."""
    loss = by_loss(shadows.confidence_MN, shadows.is_in_MN)
    ratio = by_likelihood_ratio(shadows.confidence_MN, shadows.is_in_MN)
    members = int(shadows.is_in_MN[0].sum())  # all models have the same records: those of one count as independent
    others = shadows.is_in_MN.shape[1] - members

    def hits(curve: Curve) -> tuple[Hits, ...]:
        return tuple(hits_at(curve, rate, members=members, others=others) for rate in RATES)

    return Attacked(
        loss=loss,
        likelihood_ratio=ratio,
        loss_hits=hits(loss),
        likelihood_ratio_hits=hits(ratio),
        accuracy=shadows.accuracy,
    )


def _limit(plan: Plan, account: Account) -> Limit:
    bounds = odds(account.history(account.participations), delta=plan.delta, reported=account.epsilon)
    return Limit(
        pairs=bounds.pairs,
        hits=tuple(most_hits(bounds.pairs, rate) for rate in RATES),
        guess=best_guess(bounds.pairs),
    )


def _pictures(
    scenario: Scenario, test: Shard, *, count: int, mechanism: Mechanism | None, stage: Stage
) -> tuple[tuple[Inverted, ...], str]:
    """Invert updates of a few public test images, or say why not."""
    obstacle = obstacle_to(scenario)
    if obstacle:
        return (), obstacle
    records, pictures = different(test, count=count), []
    is_done = stage("pictures", len(records))
    for record in records:
        with one_thread():
            pictures.append(invert(scenario, record, mechanism=mechanism, pixels=range_of(test)))
        is_done()
    return tuple(pictures), ""


def _workers(scenario: Scenario) -> int:
    """One process where the scenario asks for it, or has a graphics processor; else one a core."""
    if scenario.engine.kind == "sequential" or scenario.engine.device == "cuda":
        return 1
    return scenario.engine.workers or os.cpu_count() or 1


def _attacked_json(found: Attacked) -> dict[str, Any]:
    return {
        "accuracy": found.accuracy,
        "loss": _curve_json(found.loss, found.loss_hits),
        "likelihood_ratio": _curve_json(found.likelihood_ratio, found.likelihood_ratio_hits),
    }


def _curve_json(curve: Curve, hits: tuple[Hits, ...]) -> dict[str, Any]:
    rates = {f"{one.rate:g}": {"value": one.value, "low": one.low, "high": one.high} for one in hits}
    return {"auc": curve.area, "true_positive_rate": rates}


def _limit_json(limit: Limit) -> dict[str, Any]:
    epsilon, delta = limit.pairs[0]
    rates = {f"{rate:g}": most for rate, most in zip(RATES, limit.hits, strict=True)}
    return {"epsilon": epsilon, "delta": delta, "true_positive_rate": rates, "guess": limit.guess}
