"""DP-SGD: what a record may add to a step is bounded, and noise covers the bound.

Shapes: B rows of a Poisson batch, P parameters.

Opacus computes and clips the gradient of each sample; the batches and the noise are drawn from a key of the operating
system (`common.privacy.entropy`), and steps, rates and divisors come from the plan. `PrivateModel` stays in the worker
from one client to the next; `steps` begins each order with nothing left over.
"""

import warnings
from collections.abc import Iterator

import numpy as np
import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from opacus.validators import ModuleValidator
from torch import Tensor, nn
from torch.nn import functional

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
    """Opacus's optimiser, with noise from the operating system's key and non-finite samples zeroed before clipping.

    Guarantees:
        The clipped sum moves by at most `max_grad_norm` in L2 when one sample is zeroed.
        The noise added to the sum has standard deviation noise_multiplier * max_grad_norm in each coordinate.
        One step has one noise, however many parts its batch came in, an empty batch included.

    Edge cases:
        a sample whose gradient is NaN or infinite   adds nothing
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
        """Add each sample's gradient, scaled into the ball, to the sum.

        Opacus's formula, with one line more: a sample that is not finite is zeroed first (inf * 0 is NaN, so that no
        factor repairs it).
        """
        gradients = self.grad_samples
        norms_B = torch.stack([_norms(gradient) for gradient in gradients]).norm(2, dim=0)
        finite_B = torch.isfinite(norms_B)
        factors_B = (self.max_grad_norm / (norms_B + 1e-6)).clamp(max=1.0)
        if not finite_B.all():
            factors_B = factors_B.where(finite_B, 0.0)
            for gradient in gradients:
                gradient[~finite_B] = 0.0
        for parameter, gradient in zip(self.params, gradients, strict=True):
            clipped = torch.einsum("i,i...", factors_B, gradient)
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
    """The L2 norm of each sample's gradient, (B,); infinite also where a square overflows."""
    norms_B: Tensor = gradient.reshape(len(gradient), gradient.shape[1:].numel()).norm(2, dim=1)
    return norms_B


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
            Each record is in each batch independently with probability `mechanism.sampling_rate`.

        Args:
            optimizer: a fresh optimiser of the model's parameters.
            shard: the client's records.
            mechanism: what the plan decided.
            batch_size: the divisor, the expected size of a batch.
            physical_batch: how many samples are in memory at once; it changes speed and nothing else.
            entropy: this order's secret stream.

        Source: Abadi et al. 2016, Algorithm 1, https://arxiv.org/abs/1607.00133.
        """
        self.forget()
        private = PrivateOptimizer(optimizer, mechanism=mechanism, batch_size=batch_size, entropy=entropy)
        for _ in range(mechanism.steps):
            rows = entropy.bernoulli(len(shard), probability=mechanism.sampling_rate)
            for part, is_last in _parts(rows, physical_batch):
                private.zero_grad(set_to_none=True)
                self._sample_gradients(shard, part)
                private.signal_skip_step(do_skip=not is_last)
                private.step()
            private.zero_grad(set_to_none=True)
        self.forget()

    def _sample_gradients(self, shard: Shard, rows: np.ndarray) -> None:
        """Leave each row's gradient in `grad_sample`, (B, *shape) for each parameter."""
        if len(rows) == 0:
            for parameter in self._parameters:
                parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))
            return
        device = self._parameters[0].device
        features = torch.from_numpy(shard.features_ND[rows]).to(device)
        labels = torch.from_numpy(shard.labels_N[rows]).to(device)
        functional.cross_entropy(self.module(features), labels, reduction="sum").backward()  # type: ignore[no-untyped-call]


def _parts(rows: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, bool]]:
    """The rows in parts of at most `size`, at least one, each with whether it is the last."""
    starts = range(0, max(len(rows), 1), size)
    for start in starts:
        yield rows[start : start + size], start == starts[-1]
