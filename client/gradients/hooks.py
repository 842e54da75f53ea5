"""Clipped sums by Opacus's hooks, for models that one backward pass does not fit.

Shapes: B records, U units.

Opacus computes the gradient of each record, (B, *shape) for each parameter.
"""

import warnings
from typing import Any

import torch
from opacus import GradSampleModule
from torch import Tensor, nn
from torch.nn import functional

from client.gradients.clipped_sums import clipped_sum_of


class Hooks:
    """The sums of any model that Opacus knows.

    Layers compute in single precision, whatever the plan names: under autocast Opacus would clip in bfloat16, where a
    bound holds to half a percent, and fails on a layer normalisation.
    """

    def __init__(self, model: nn.Module) -> None:
        """Hook the model."""
        # the first layer's input needs no gradient, which PyTorch remarks on and Opacus counts on
        warnings.filterwarnings("ignore", message="Full backward hook is firing when gradients are computed")
        # Opacus unfolds activations by their strides as if they were contiguous: in another layout it would read
        # other numbers, of other samples too, without a word
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self._module = GradSampleModule(model, loss_reduction="sum")
        # Opacus gives them attributes of its own
        self._parameters: list[Any] = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def clipped_sum(
        self, features_B: Tensor, labels_B: Tensor, owner_B: Tensor | None, *, units: int, max_norm: float
    ) -> list[Tensor]:
        """Return the sum of the units' gradients, each scaled into the ball; one tensor a parameter."""
        self._backward(features_B, labels_B)
        gradients = [_by_unit(parameter.grad_sample, owner_B, units) for parameter in self._parameters]
        self._forget()
        return clipped_sum_of(gradients, max_norm=max_norm)

    def plain_sum(self, features_B: Tensor, labels_B: Tensor) -> list[Tensor]:
        """Return the sum of all records' gradients, not clipped; one tensor a parameter."""
        self._module.disable_hooks()
        self._backward(features_B, labels_B)
        self._module.enable_hooks()
        sums = [torch.zeros_like(part) if part.grad is None else part.grad for part in self._parameters]
        self._forget()
        return sums

    def _backward(self, features_B: Tensor, labels_B: Tensor) -> None:
        self._forget()
        loss = functional.cross_entropy(self._module(features_B), labels_B, reduction="sum")
        loss.backward()  # type: ignore[no-untyped-call]

    def _forget(self) -> None:
        for parameter in self._parameters:
            parameter.grad = parameter.grad_sample = None


def _by_unit(gradients_B: Tensor, owner_B: Tensor | None, units: int) -> Tensor:
    """Add up the records of each unit."""
    if owner_B is None:
        return gradients_B
    return gradients_B.new_zeros((units, *gradients_B.shape[1:])).index_add_(0, owner_B, gradients_B)
