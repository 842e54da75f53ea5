"""What a process keeps between orders: the scenarios that it has read, and one trainer with its model."""

from functools import lru_cache

from client.trainer import Trainer
from common.config import Scenario, parse
from common.errors import ModelRefusedError, RefusedError, ScenarioError
from common.messages import Refusal


@lru_cache(maxsize=4)
def scenario_in(text: str) -> Scenario:
    """Return the scenario of a text, or raise RefusedError."""
    try:
        return parse(text)
    except ScenarioError as error:
        raise RefusedError(Refusal.MALFORMED, str(error)) from error


@lru_cache(maxsize=1)
def trainer_of(scenario: Scenario) -> Trainer:
    """Return the resident trainer of this process, or raise RefusedError for a model that is unfit."""
    try:
        return Trainer(scenario)
    except ModelRefusedError as error:
        raise RefusedError(Refusal.MODEL_UNFIT, str(error)) from error
