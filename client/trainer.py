"""One worker's training: a resident model that serves one client after the other.

Shapes: P is the number of parameters.

    weights -> load -> (noised count) -> (DP-SGD | plain steps) -> update -> (clip) -> Report

Nothing of one client is in the next one's result: weights are overwritten, the optimiser's state and gradients are
dropped, dropout is seeded anew, and secret randomness has a key of its own for each order.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from client.metrics import noised_correct
from common import flat
from common.allocator import keep_freed_memory
from common.config import Scenario
from common.devices import device, seed_dropout
from common.errors import RefusedError
from common.messages import FloatArray, Order, Refusal, Report
from common.models.registry import model_of
from common.optimizers import client_optimizer
from common.privacy.clipping import clip, l2_norm
from common.privacy.entropy import Entropy
from common.privacy.plan import local_steps
from common.seeds import derive
from common.shards import Shard


class Trainer:
    """Carries out orders of one scenario.

    Guarantees:
        A client's report does not depend on who trained before it.
        With unit `none` the same order gives a bit-equal report.
    """

    def __init__(self, scenario: Scenario) -> None:
        """Build the resident model; ModelRefusedError when it cannot be trained privately."""
        keep_freed_memory()
        self._scenario = scenario
        self._device = device(scenario.engine)
        model = model_of(scenario)
        self._model: nn.Module = model.to(self._device).train()
        self._size = flat.size(model)
        self._optimizer = client_optimizer(model.parameters(), scenario.training)
        self._private = None
        if scenario.privacy.unit != "record":
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # PyTorch's stubs leave it out
        else:
            from client.private import PrivateModel  # Opacus takes seconds to import: only where it is needed

            self._private = PrivateModel(self._model, precision=scenario.training.precision)

    def train(self, order: Order, shard: Shard) -> Report:
        """Train from the order's weights on the shard, or raise RefusedError.

        Edge cases:
            weights of another size, or not finite   refused as malformed
            a shard without records                  refused as unfit data
            no persons where they are the unit       refused as unfit data
            an update that is not finite             refused as failed: nothing of it leaves
            metrics other than the scenario's        refused as not in the plan
        """
        if len(order.weights_P) != self._size or not np.isfinite(order.weights_P).all():
            raise RefusedError(Refusal.MALFORMED, "the order's weights do not fit the model, or are not finite")
        if len(shard) == 0:
            raise RefusedError(Refusal.DATA_UNFIT, "the shard holds no records")
        shard = self._by_unit(shard)
        weights_P = torch.from_numpy(order.weights_P)
        flat.load(self._model, weights_P)
        correct = self._correct(order, shard)
        seed_dropout(derive(self._scenario.run.seed, "dropout", order.round, order.client), self._device)
        self._steps(order, shard)
        update_P = (flat.flatten(self._model) - weights_P).numpy()
        return Report(
            run=order.run,
            round=order.round,
            attempt=order.attempt,
            client=order.client,
            update_P=_fit_to_leave(update_P, order.max_update_norm),
            correct=correct,
        )

    def _by_unit(self, shard: Shard) -> Shard:
        """The shard with the persons of its records where they are the scenario's unit, and only there."""
        if self._scenario.privacy.unit_column is None:
            return replace(shard, units_N=None)
        if shard.units_N is None or len(shard.units_N) != len(shard):
            raise RefusedError(Refusal.DATA_UNFIT, "the unit is a person and the shard does not name each record's")
        return shard

    def _correct(self, order: Order, shard: Shard) -> float | None:
        """The noised count of what the order's weights get right, where the scenario plans one, else None."""
        noise_multiplier = order.metrics_noise_multiplier
        if noise_multiplier != self._scenario.privacy.metrics_noise_multiplier:
            raise RefusedError(Refusal.NOT_IN_PLAN, "the order asks for other metrics than the scenario")
        if noise_multiplier is None:
            return None
        return noised_correct(
            self._model,
            shard,
            noise_multiplier=noise_multiplier,
            physical_batch=self._scenario.engine.physical_batch,
            entropy=Entropy(),
        )

    def _steps(self, order: Order, shard: Shard) -> None:
        training, privacy = self._scenario.training, self._scenario.privacy
        self._optimizer.state.clear()
        if self._private is not None:
            if order.mechanism is None:
                raise RefusedError(Refusal.NOT_IN_PLAN, "the scenario is private and the order names no mechanism")
            self._private.steps(
                self._optimizer,
                shard,
                mechanism=order.mechanism,
                batch_size=training.batch_size,
                physical_batch=self._scenario.engine.physical_batch,
                entropy=Entropy(),
            )
            return
        if order.mechanism is not None or (order.max_update_norm is not None) != (privacy.unit == "client"):
            raise RefusedError(Refusal.NOT_IN_PLAN, "the order asks for another protection than the scenario")
        from client import plain

        seeded = derive(self._scenario.run.seed, "batches", order.round, order.client)
        plain.steps(
            self._model,
            self._optimizer,
            shard,
            count=local_steps(training, records=len(shard)),
            batch_size=training.batch_size,
            seed=seeded if privacy.unit == "none" else Entropy().seed(),
            precision=training.precision,
        )


def _fit_to_leave(update_P: FloatArray, max_norm: float | None) -> FloatArray:
    """The update, clipped where a bound is asked for; what is not finite does not leave."""
    if not l2_norm(update_P) < float("inf"):
        raise RefusedError(Refusal.FAILED, "the update is not finite; lower training.learning_rate")
    return update_P if max_norm is None else clip(update_P, max_norm=max_norm)
