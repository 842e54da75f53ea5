"""Clipped sums from one backward pass: book-keeping.

Shapes: B records, U units.

The forward pass notes what goes into each layer. The backward pass computes the gradients of what comes out of them
and no gradient of a parameter. From both follow each unit's norm and, once the norms of all layers are added up, the
clipped sum (`client.gradients.layers`). A layer's first dimension is the batch, as Opacus has it.

Source: Bu et al. 2023, "Differentially private optimization on large model at small cost", section 3,
https://arxiv.org/abs/2210.00038.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from client.gradients.clipped_sums import Autocast, clip_factors
from client.gradients.layers import layer_shares, obstacle


class NotOnceError(Exception):
    """A layer was called twice in one forward pass, or what it returned was changed in place."""


def obstacle_in(model: nn.Module) -> str | None:
    """Return why a model's gradients cannot be had in one backward pass, or None."""
    for name, layer in model.named_modules():
        reason = obstacle(layer)
        if reason is not None:
            return f"{name or 'the model'}: {reason}"
    owners = [id(parameter) for layer in model.modules() for parameter in layer.parameters(recurse=False)]
    return "two layers share a parameter" if len(owners) != len(set(owners)) else None


class OneBackward:
    """The sums of a model that `obstacle_in` has nothing against: the same as by Opacus's hooks, up to rounding."""

    def __init__(self, model: nn.Module, *, autocast: Autocast) -> None:
        """Listen to the model's layers, and lay its convolutions out for speed."""
        self._model, self._autocast = model.to(memory_format=torch.channels_last), autocast  # type: ignore[call-overload]
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._noted: dict[nn.Module, tuple[Tensor, Tensor, int]] | None = None
        for layer in model.modules():
            if list(layer.parameters(recurse=False)):
                layer.register_forward_hook(self._note)

    def clipped_sum(
        self, features_B: Tensor, labels_B: Tensor, owner_B: Tensor | None, *, units: int, max_norm: float
    ) -> list[Tensor]:
        """Return the sum of the units' gradients, each scaled into the ball; one tensor a parameter.

        Raises:
            NotOnceError: the forward pass does not fit; nothing was computed.
        """
        with self._noting() as noted:
            loss = self._loss(features_B, labels_B)
        outputs = [output for _, output, _ in noted.values()]
        if any(output._version != version for _, output, version in noted.values()):  # noqa: SLF001 - has no public name
            raise NotOnceError("what a layer returns is changed in place")
        gradients = torch.autograd.grad(loss, outputs, materialize_grads=True)
        with torch.no_grad():
            shares, norms = [], []
            for (layer, (given, _, _)), gradient in zip(noted.items(), gradients, strict=True):
                for share in layer_shares(layer, given, gradient, owner_B, units=units):
                    shares.append(share)
                    norms.append(share.norms_U())  # now, while it is in the cache
            factors_U = clip_factors(torch.linalg.vector_norm(torch.stack(norms), dim=0), max_norm=max_norm)
            is_out_U = factors_U == 0
            if is_out_U.any():
                shares = [share.without(is_out_U) for share in shares]
            sums = {id(share.parameter): share.weighted(factors_U) for share in shares}
            return [
                sums[id(parameter)] if id(parameter) in sums else torch.zeros_like(parameter)
                for parameter in self._parameters
            ]

    def plain_sum(self, features_B: Tensor, labels_B: Tensor) -> list[Tensor]:
        """Return the sum of all records' gradients, not clipped; one tensor a parameter."""
        loss = self._loss(features_B, labels_B)
        return list(torch.autograd.grad(loss, self._parameters, materialize_grads=True))

    def _loss(self, features_B: Tensor, labels_B: Tensor) -> Tensor:
        with self._autocast():
            return functional.cross_entropy(self._model(features_B), labels_B, reduction="sum")

    @contextmanager
    def _noting(self) -> Iterator[dict[nn.Module, tuple[Tensor, Tensor, int]]]:
        """Note, within the block, what each layer is given and returns."""
        self._noted = {}
        try:
            yield self._noted
        finally:
            self._noted = None

    def _note(self, layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        if self._noted is None:
            return
        if layer in self._noted:
            raise NotOnceError(f"a {type(layer).__name__} is used twice in one forward pass")
        self._noted[layer] = (given[0].detach(), output, output._version)  # noqa: SLF001 - has no public name
