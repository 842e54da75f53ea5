"""What DP-SGD needs of a model: the sum of its units' clipped gradients.

Shapes: B records, U units. A unit is a record, or a person with all its records.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

Autocast = Callable[[], AbstractContextManager[Any]]


class ClippedSums(Protocol):
    """A resident model, from which sums of gradients are had.

    Guarantees:
        No gradient, activation or sum of one call is left in the model.
    """

    def clipped_sum(
        self, features_B: Tensor, labels_B: Tensor, owner_B: Tensor | None, *, units: int, max_norm: float
    ) -> list[Tensor]:
        """Return the sum of the units' gradients, each scaled into the ball; one tensor a trained parameter.

        Args:
            features_B: at least one record.
            labels_B: their classes.
            owner_B: for each record the position of its unit; None where each record is a unit of its own.
            units: U.
            max_norm: the ball's radius.
        """

    def plain_sum(self, features_B: Tensor, labels_B: Tensor) -> list[Tensor]:
        """Return the sum of all records' gradients, not clipped; one tensor a trained parameter."""


def clip_factors(norms_U: Tensor, *, max_norm: float) -> Tensor:
    """Return for each unit the factor that scales its gradient into the ball of radius `max_norm`.

    Guarantees:
        factor * norm is at most `max_norm`.

    Edge cases:
        NaN or infinite norm   0: the unit adds nothing

    Source: Opacus's formula, 1e-6 included, so that all ways to a sum clip alike.
    """
    factors_U = (max_norm / (norms_U + 1e-6)).clamp(max=1.0)
    return factors_U.where(norms_U.isfinite(), 0.0)


def clipped_sum_of(gradients: list[Tensor], *, max_norm: float) -> list[Tensor]:
    """Return the clipped sum of units whose gradients are there, (U, *shape) for each parameter; it may zero rows."""
    norms = [torch.linalg.vector_norm(gradient.reshape(len(gradient), -1), dim=1) for gradient in gradients]
    factors_U = clip_factors(torch.stack(norms).norm(2, dim=0), max_norm=max_norm)
    is_out_U = factors_U == 0
    if is_out_U.any():
        for gradient in gradients:
            gradient[is_out_U] = 0.0  # 0 times infinity would be NaN
    return [torch.einsum("i,i...", factors_U, gradient) for gradient in gradients]
