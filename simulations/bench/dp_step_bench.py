"""`discreet bench dp-step`: a private step against a plain one of the same layout, and against Opacus's hooks.

On one thread, noise and optimiser included, a CNN of 93,322 parameters and a transformer of 266,502. Ours is the
trainer with a client's whole order; Opacus's is the loop of its documentation, with the same Poisson rate, no loader.
"""

import time
from fractions import Fraction

import numpy as np
import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch.nn import functional

from client.trainer import Trainer
from common.config import Scenario, parse
from common.messages import Mechanism
from common.models.registry import build
from common.shards import Shard
from common.tasks import task_of
from simulations.bench import workload as work
from simulations.bench.contest import Figure, Turn, alternate, ratio

REPEATS = 9

STEPS = 40
BATCH = 14
MECHANISM = Mechanism(sampling_rate=Fraction(BATCH, work.RECORDS), noise_multiplier=1.0, max_grad_norm=1.0, steps=STEPS)


def figures(repeats: int) -> list[Figure]:
    """Compare a private step with a plain one (target 1.6) and with Opacus's hooks (target 0.7), for both models."""
    torch.set_num_threads(1)
    made = []
    for name, text in (("cnn", work.TEXT), ("transformer", work.TRANSFORMER)):
        plain = parse(text + 'privacy = {unit = "none"}', overrides=[f"training.local_steps={STEPS}"])
        private = parse(text + "privacy = {noise_multiplier = 1.0}", overrides=[f"training.local_steps={STEPS}"])
        shard = work.records(work.RECORDS, of=plain)
        came = alternate(
            {
                "private": _ours(private, shard, MECHANISM),
                "plain": _ours(plain, shard, None),
                "hooks": _opacus(private, shard),
            },
            repeats,
        )
        made += [
            ratio(f"{name}_private_to_plain_step", came["private"], came["plain"], target=1.6, at_least=False),
            ratio(f"{name}_private_to_opacus_hooks", came["private"], came["hooks"], target=0.7, at_least=False),
        ]
    return made


def _ours(scenario: Scenario, shard: Shard, mechanism: Mechanism | None) -> Turn:
    """Milliseconds a step of one client's order."""
    trainer, order = Trainer(scenario), work.order(scenario, 0, mechanism)

    def turn() -> float:
        started = time.perf_counter()
        trainer.train(order, shard)
        return 1000 * (time.perf_counter() - started) / STEPS

    return turn


def _opacus(scenario: Scenario, shard: Shard) -> Turn:
    """Milliseconds a step of Opacus 1.6, per-sample gradients by hooks."""
    model = GradSampleModule(build(scenario.model, task_of(scenario.data), seed=7).train(), loss_reduction="mean")
    features, labels = torch.from_numpy(shard.features_ND), torch.from_numpy(shard.labels_N)
    generator = np.random.default_rng(0)
    optimizer = DPOptimizer(
        torch.optim.SGD(model.parameters(), lr=scenario.training.learning_rate),
        noise_multiplier=MECHANISM.noise_multiplier,
        max_grad_norm=MECHANISM.max_grad_norm,
        expected_batch_size=BATCH,
    )

    def turn() -> float:
        started = time.perf_counter()
        for _ in range(STEPS):
            rows = np.flatnonzero(generator.random(len(shard)) < BATCH / len(shard))
            optimizer.zero_grad(set_to_none=True)
            functional.cross_entropy(model(features[rows]), labels[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return 1000 * (time.perf_counter() - started) / STEPS

    return turn
