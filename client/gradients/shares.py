"""What each unit adds to the gradient of one parameter, in three forms.

Shapes: U units, K numbers of a parameter, D numbers that go into a layer, E that come out, R rows of a table.

A dense layer that sees a unit at one position has an outer product as gradient, whose norm is a product of norms: it is
never formed. Elsewhere a unit's gradient is formed, or the rows of an embedding that the unit touches.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor


class Share(Protocol):
    """What each unit adds to the gradient of one parameter."""

    @property
    def parameter(self) -> Tensor:
        """Whose gradient it is."""

    def norms_U(self) -> Tensor:
        """Return each unit's L2 norm, (U,) float32; infinite also where a square overflows."""

    def weighted(self, factors_U: Tensor) -> Tensor:
        """Return the sum over units, each times its factor, in the parameter's shape."""

    def without(self, is_out_U: Tensor) -> "Share":
        """Return the share in which some units have a gradient of zero: 0 times infinity would be NaN."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Formed:
    """A gradient for each unit.

    Args:
        parameter: whose gradient.
        gradients_UK: one row a unit.
        arrange: brings the sum, (K,), into the parameter's shape.
    """

    parameter: Tensor
    gradients_UK: Tensor
    arrange: Callable[[Tensor], Tensor]

    def norms_U(self) -> Tensor:
        """The norm of each row."""
        return _norms(self.gradients_UK)

    def weighted(self, factors_U: Tensor) -> Tensor:
        """Add up the rows."""
        return self.arrange(factors_U @ self.gradients_UK)

    def without(self, is_out_U: Tensor) -> "Formed":
        """Zero the rows of units that are out."""
        return replace(self, gradients_UK=_zeroed(self.gradients_UK, is_out_U))


@dataclass(frozen=True, kw_only=True, eq=False)
class Outer:
    """An outer product for each unit, never formed: a dense layer's weight where a unit has one position."""

    parameter: Tensor
    input_UD: Tensor
    output_gradient_UE: Tensor

    def norms_U(self) -> Tensor:
        """Multiply the norms of both sides: |x y^T| = |x| |y|."""
        return _norms(self.input_UD) * _norms(self.output_gradient_UE)

    def weighted(self, factors_U: Tensor) -> Tensor:
        """Add up the products in one matrix product."""
        return (self.output_gradient_UE * factors_U[:, None]).T @ self.input_UD

    def without(self, is_out_U: Tensor) -> "Outer":
        """Zero both sides of units that are out."""
        sides = (_zeroed(side, is_out_U) for side in (self.input_UD, self.output_gradient_UE))
        return replace(self, input_UD=next(sides), output_gradient_UE=next(sides))


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Some rows of an embedding for each unit: R rows in all, each with its unit and its position in the table."""

    parameter: Tensor
    unit_R: Tensor
    row_R: Tensor
    gradients_RD: Tensor
    units: int

    def norms_U(self) -> Tensor:
        """Add up the squares of each unit's rows."""
        squares_R = _norms(self.gradients_RD).square()
        return squares_R.new_zeros(self.units).index_add_(0, self.unit_R, squares_R).sqrt()

    def weighted(self, factors_U: Tensor) -> Tensor:
        """Add the rows to a table of zeros."""
        weighted_RD = self.gradients_RD * factors_U[self.unit_R, None]
        return torch.zeros_like(self.parameter, dtype=torch.float32).index_add_(0, self.row_R, weighted_RD)

    def without(self, is_out_U: Tensor) -> "Rows":
        """Zero the rows of units that are out."""
        return replace(self, gradients_RD=_zeroed(self.gradients_RD, is_out_U[self.unit_R]))


def _norms(rows: Tensor) -> Tensor:
    """The L2 norm of each row."""
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return norms


def _zeroed(rows: Tensor, is_out: Tensor) -> Tensor:
    return rows.masked_fill(is_out[:, None], 0.0)
