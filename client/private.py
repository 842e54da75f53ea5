"""DP-SGD: what a unit may add to a step is bounded, and noise covers the bound.

Shapes: B rows of a Poisson batch, U units in it, P parameters. A unit is a record, or a person with all its records.

The sum of the units' clipped gradients comes from one backward pass, or from Opacus's hooks where a model does not fit
it (`client.gradients`); Opacus's optimiser noises, divides and steps. The batches and the noise are drawn from a key of
the operating system (`common.privacy.entropy`), and steps, rates and divisors come from the plan. `PrivateModel` stays
in the worker from one client to the next; `steps` begins each order with nothing left over.
"""

import logging
from collections.abc import Sequence
from itertools import accumulate

import torch
from opacus.optimizers import DPOptimizer
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from client.batches import Part, Persons, Records, Rows
from client.gradients.clipped_sums import ClippedSums, clipped_sum_of
from client.gradients.hooks import Hooks
from client.gradients.one_backward import NotOnceError, OneBackward, obstacle_in
from common.config import Precision
from common.devices import autocast
from common.errors import ModelRefusedError
from common.messages import Mechanism
from common.privacy.entropy import Entropy
from common.shards import Shard

log = logging.getLogger("discreet.client")


def refuse_unfit(model: nn.Module) -> None:
    """Raise ModelRefusedError for a model in which samples meet, or that keeps buffers.

    Batch normalisation mixes the samples of a batch; a buffer would be copied raw into what leaves the client.
    """
    problems = [str(problem) for problem in ModuleValidator.validate(model.train(), strict=False)]
    problems += [f"buffer {name} would leave without noise" for name, _ in model.named_buffers()]
    problems += [f"{name} mixes the samples of a batch" for name, part in model.named_modules() if _mixes(part)]
    if problems:
        raise ModelRefusedError(
            f"The model cannot be trained privately: {problems[0]}. Use group or layer normalisation instead."
        )


def _mixes(part: nn.Module) -> bool:
    return isinstance(part, nn.modules.batchnorm._BatchNorm)  # noqa: SLF001 - the common parent of all of them


class PrivateOptimizer(DPOptimizer):  # type: ignore[misc] # Opacus is untyped
    """Opacus's optimiser, for sums that are clipped already, with noise from the operating system's key.

    Guarantees:
        The noise added to the sum has standard deviation noise_multiplier * max_grad_norm in each coordinate.
        One step has one noise, however many parts its batch came in, an empty batch included.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, *, mechanism: Mechanism, batch_size: int, entropy: Entropy
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=mechanism.noise_multiplier,
            max_grad_norm=mechanism.max_grad_norm,
            expected_batch_size=batch_size,
        )
        self._entropy = entropy

    @property
    def accumulated_iterations(self) -> int:
        """1: a batch in several parts is still one batch; Opacus would count gradients that are not kept here."""
        return 1

    def accumulate(self, sums: Sequence[Tensor]) -> None:
        """Add the clipped sum of one part of a batch."""
        for parameter, part in zip(self.params, sums, strict=True):
            parameter.summed_grad = part if parameter.summed_grad is None else parameter.summed_grad + part

    def pre_step(self, closure: None = None) -> bool:
        """Noise the sum and divide it; Opacus would clip first."""
        del closure
        self.add_noise()
        self.scale_grad()
        return True

    def add_noise(self) -> None:
        """Add noise to the clipped sum, in double precision, and round once."""
        std = self.noise_multiplier * self.max_grad_norm
        noise_P = torch.from_numpy(self._entropy.normal(sum(p.numel() for p in self.params))).mul_(std)
        parts = _parts(noise_P, self.params)
        for parameter, part in zip(self.params, parts, strict=True):
            if parameter.summed_grad is not None:
                part.add_(parameter.summed_grad.to(noise_P.device))
        rounded_P = noise_P.to(self.params[0])
        for parameter, part in zip(self.params, _parts(rounded_P, self.params), strict=True):
            parameter.grad = part


def _parts(flat_P: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Views of a flat vector, one a parameter, that lie in memory as the parameters do."""
    starts = accumulate((parameter.numel() for parameter in parameters), initial=0)
    return [
        flat_P.as_strided(part.shape, part.stride(), start) for part, start in zip(parameters, starts, strict=False)
    ]


class PrivateModel:
    """A resident model whose units' gradients are clipped."""

    def __init__(self, model: nn.Module, *, precision: Precision = "float32") -> None:
        """Prepare the model, or raise ModelRefusedError."""
        refuse_unfit(model)
        self._model, self._parameters = model, [part for part in model.parameters() if part.requires_grad]
        self._device = self._parameters[0].device
        lower, obstacle = autocast(self._device, precision), obstacle_in(model)
        self._sums: ClippedSums = OneBackward(model, autocast=lower) if obstacle is None else self._hooks(obstacle)

    def steps(
        self,
        optimizer: torch.optim.Optimizer,
        shard: Shard,
        *,
        mechanism: Mechanism,
        batch_size: int,
        physical_batch: int,
        entropy: Entropy,
    ) -> None:
        """Take all noisy steps of one order.

        Guarantees:
            Exactly `mechanism.steps` steps are taken, each noised and divided by `batch_size`, whatever was sampled.
            Each unit is in each batch independently with probability `mechanism.sampling_rate`: a record, or where
            the shard names persons a person with all its records, whose gradients are added up before they are clipped.
            The sum moves by at most `mechanism.max_grad_norm` in L2 when one unit is left out.
            Afterwards no gradient is left in the model.

        Edge cases:
            a unit whose gradient is NaN or infinite   adds nothing

        Args:
            optimizer: a fresh optimiser of the model's parameters.
            shard: the client's records.
            mechanism: what the plan decided.
            batch_size: the divisor, the expected number of units in a batch.
            physical_batch: how many records are in memory at once; it changes speed and nothing else.
            entropy: this order's secret stream.

        Source: Abadi et al. 2016, Algorithm 1, https://arxiv.org/abs/1607.00133.
        """
        private = PrivateOptimizer(optimizer, mechanism=mechanism, batch_size=batch_size, entropy=entropy)
        private.zero_grad(set_to_none=True)
        population = Records(len(shard)) if shard.units_N is None else Persons(shard.units_N)
        for _ in range(mechanism.steps):
            chosen = entropy.bernoulli(population.units, probability=mechanism.sampling_rate)
            for part in population.parts(chosen, size=physical_batch):
                if part.units:
                    private.accumulate(self._part_sum(shard, part, physical_batch, mechanism.max_grad_norm))
            private.step()
            private.zero_grad(set_to_none=True)

    def _part_sum(self, shard: Shard, part: Part, size: int, max_norm: float) -> list[Tensor]:
        """The clipped sum of a part's units."""
        if len(part.rows_B) > size:
            return self._sum_of_one(shard, part.rows_B, size, max_norm)
        features_B, labels_B = self._records(shard, part.rows_B)
        owner_B = None if part.owner_B is None else torch.from_numpy(part.owner_B).to(self._device)
        try:
            return self._sums.clipped_sum(features_B, labels_B, owner_B, units=part.units, max_norm=max_norm)
        except NotOnceError as error:
            self._sums = self._hooks(str(error))
            return self._sums.clipped_sum(features_B, labels_B, owner_B, units=part.units, max_norm=max_norm)

    def _sum_of_one(self, shard: Shard, rows_B: Rows, size: int, max_norm: float) -> list[Tensor]:
        """One person with more records than are in memory at once: nobody else's are there to be kept apart."""
        sums = [torch.zeros_like(parameter) for parameter in self._parameters]
        for start in range(0, len(rows_B), size):
            chunk = self._sums.plain_sum(*self._records(shard, rows_B[start : start + size]))
            for total, part in zip(sums, chunk, strict=True):
                total.add_(part)
        return clipped_sum_of([total[None] for total in sums], max_norm=max_norm)

    def _records(self, shard: Shard, rows_B: Rows) -> tuple[Tensor, Tensor]:
        """Some records and their classes, on the model's device."""
        features, labels = torch.from_numpy(shard.features_ND[rows_B]), torch.from_numpy(shard.labels_N[rows_B])
        return features.to(self._device), labels.to(self._device)

    def _hooks(self, reason: str) -> Hooks:
        """Opacus's hooks, and one line that says why."""
        log.info("gradients come from Opacus's hooks, slower and in single precision: %s", reason)
        return Hooks(self._model)
