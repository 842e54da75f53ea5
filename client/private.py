"""DP-SGD: what a unit may add to a step is bounded, and noise covers the bound.

Shapes: B rows of a Poisson batch, U units in it, P parameters. A unit is a record, or a person with all its records.

Opacus computes and clips the gradient of each sample; the batches and the noise are drawn from a key of the operating
system (`common.privacy.entropy`), and steps, rates and divisors come from the plan. `PrivateModel` stays in the worker
from one client to the next; `steps` begins each order with nothing left over.
"""

import warnings

import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from opacus.validators import ModuleValidator
from torch import Tensor, nn
from torch.nn import functional

from client.batches import Part, Persons, Records, Rows
from common.errors import ModelRefusedError
from common.messages import Mechanism
from common.privacy.entropy import Entropy
from common.shards import Shard


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
    """Opacus's optimiser, with noise from the operating system's key and non-finite units zeroed before clipping.

    Guarantees:
        The clipped sum moves by at most `max_grad_norm` in L2 when one unit, a row of `grad_sample`, is zeroed.
        The noise added to the sum has standard deviation noise_multiplier * max_grad_norm in each coordinate.
        One step has one noise, however many parts its batch came in, an empty batch included.

    Edge cases:
        a unit whose gradient is NaN or infinite   adds nothing
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

    def clip_and_accumulate(self) -> None:
        """Add each unit's gradient, scaled into the ball, to the sum.

        Opacus's formula, with one line more: a unit that is not finite is zeroed first (inf * 0 is NaN, so that no
        factor repairs it).
        """
        gradients = self.grad_samples
        norms_U = torch.stack([_norms(gradient) for gradient in gradients]).norm(2, dim=0)
        finite_U = torch.isfinite(norms_U)
        factors_U = (self.max_grad_norm / (norms_U + 1e-6)).clamp(max=1.0)
        if not finite_U.all():
            factors_U = factors_U.where(finite_U, 0.0)
            for gradient in gradients:
                gradient[~finite_U] = 0.0
        for parameter, gradient in zip(self.params, gradients, strict=True):
            clipped = torch.einsum("i,i...", factors_U, gradient)
            parameter.summed_grad = clipped if parameter.summed_grad is None else parameter.summed_grad + clipped

    def add_noise(self) -> None:
        """Add noise to the clipped sum, in double precision, and round once."""
        std = self.noise_multiplier * self.max_grad_norm
        noise_P = torch.from_numpy(self._entropy.normal(sum(p.numel() for p in self.params)) * std)
        start = 0
        for parameter in self.params:
            noise = noise_P[start : start + parameter.numel()].view_as(parameter).to(parameter.device)
            parameter.grad = (parameter.summed_grad.double() + noise).to(parameter.dtype)
            start += parameter.numel()


def _norms(gradient: Tensor) -> Tensor:
    """The L2 norm of each unit's gradient, (U,); infinite also where a square overflows."""
    norms_U: Tensor = gradient.reshape(len(gradient), gradient.shape[1:].numel()).norm(2, dim=1)
    return norms_U


class PrivateModel:
    """A resident model with Opacus's hooks."""

    def __init__(self, model: nn.Module) -> None:
        """Hook the model, or raise ModelRefusedError."""
        refuse_unfit(model)
        # the first layer's input needs no gradient, which PyTorch remarks on and Opacus counts on
        warnings.filterwarnings("ignore", message="Full backward hook is firing when gradients are computed")
        # Opacus unfolds activations by their strides as if they were contiguous: in another layout it would read
        # other numbers, of other samples too, without a word
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.module = GradSampleModule(model, loss_reduction="sum")
        self._parameters = list(self.module.parameters())

    def forget(self) -> None:
        """Drop every gradient that an earlier client left behind."""
        for parameter in self._parameters:
            parameter.grad = parameter.grad_sample = parameter.summed_grad = None

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

        Args:
            optimizer: a fresh optimiser of the model's parameters.
            shard: the client's records.
            mechanism: what the plan decided.
            batch_size: the divisor, the expected number of units in a batch.
            physical_batch: how many records are in memory at once; it changes speed and nothing else.
            entropy: this order's secret stream.

        Source: Abadi et al. 2016, Algorithm 1, https://arxiv.org/abs/1607.00133.
        """
        self.forget()
        private = PrivateOptimizer(optimizer, mechanism=mechanism, batch_size=batch_size, entropy=entropy)
        population = Records(len(shard)) if shard.units_N is None else Persons(shard.units_N)
        for _ in range(mechanism.steps):
            chosen = entropy.bernoulli(population.units, probability=mechanism.sampling_rate)
            for part in population.parts(chosen, size=physical_batch):
                private.zero_grad(set_to_none=True)
                self._unit_gradients(shard, part, physical_batch)
                private.signal_skip_step(do_skip=not part.is_last)
                private.step()
            private.zero_grad(set_to_none=True)
        self.forget()

    def _unit_gradients(self, shard: Shard, part: Part, size: int) -> None:
        """Leave each unit's gradient in `grad_sample`, (U, *shape) for each parameter, `size` records at a time."""
        if part.owner_B is None:
            self._sample_gradients(shard, part.rows_B)
        elif part.units == 1:
            self._sum_of_all(shard, part.rows_B, size)
        else:
            self._sums_by_owner(shard, part.rows_B, part.owner_B, units=part.units, size=size)

    def _sums_by_owner(self, shard: Shard, rows_B: Rows, owner_B: Rows, *, units: int, size: int) -> None:
        """Add each record's gradient to that of its owner."""
        sums = [parameter.new_zeros((units, *parameter.shape)) for parameter in self._parameters]
        for start in range(0, len(rows_B), size):
            self._sample_gradients(shard, rows_B[start : start + size])
            owner = torch.from_numpy(owner_B[start : start + size]).to(self._parameters[0].device)
            for total, parameter in zip(sums, self._parameters, strict=True):
                total.index_add_(0, owner, parameter.grad_sample)
                parameter.grad_sample = None
        for total, parameter in zip(sums, self._parameters, strict=True):
            parameter.grad_sample = total

    def _sum_of_all(self, shard: Shard, rows_B: Rows, size: int) -> None:
        """Let PyTorch add up the gradients of one person: nobody else's are there to be kept apart."""
        self.module.disable_hooks()
        for start in range(0, len(rows_B), size):
            self._backward(shard, rows_B[start : start + size])
        self.module.enable_hooks()
        for parameter in self._parameters:
            parameter.grad_sample = None if parameter.grad is None else parameter.grad[None]

    def _sample_gradients(self, shard: Shard, rows: Rows) -> None:
        """Leave each row's gradient in `grad_sample`, (B, *shape) for each parameter."""
        if len(rows) == 0:
            for parameter in self._parameters:
                parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))
            return
        self._backward(shard, rows)

    def _backward(self, shard: Shard, rows: Rows) -> None:
        device = self._parameters[0].device
        features = torch.from_numpy(shard.features_ND[rows]).to(device)
        labels = torch.from_numpy(shard.labels_N[rows]).to(device)
        functional.cross_entropy(self.module(features), labels, reduction="sum").backward()  # type: ignore[no-untyped-call]
