"""`discreet bench dp-step`: a private step against a plain one, and against Opacus's hooks, on one thread."""

import time
from collections.abc import Callable
from fractions import Fraction

import torch

from common.config import Scenario, parse
from common.messages import Mechanism
from simulations.bench import workload as work
from simulations.bench.contest import Figure, alternate, ratio


def figures(repeats: int) -> list[Figure]:
    """Compare a noisy step of the trainer with its plain step."""
    torch.set_num_threads(1)
    plain, private = (
        parse(work.TEXT + 'privacy = {unit = "none"}'),
        parse(work.TEXT + "privacy = {noise_multiplier = 1.0}"),
    )
    mechanism = Mechanism(sampling_rate=Fraction(14, work.RECORDS), noise_multiplier=1.0, max_grad_norm=1.0, steps=40)
    came = alternate({"private": _steps(private, mechanism), "plain": _steps(plain, None)}, repeats)
    return [ratio("private_to_plain_step", came["private"], came["plain"], target=1.6, at_least=False)]


def _steps(scenario: Scenario, mechanism: Mechanism | None) -> Callable[[], float]:
    """A turn of 40 steps of one client; its seconds."""
    from client.trainer import Trainer

    scenario = scenario.model_copy(update={"training": scenario.training.model_copy(update={"local_steps": 40})})
    trainer, shard = Trainer(scenario), work.records(work.RECORDS)
    order = work.order(scenario, 0, mechanism)

    def turn() -> float:
        started = time.perf_counter()
        trainer.train(order, shard)
        return time.perf_counter() - started

    return turn
