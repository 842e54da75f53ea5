"""What one unit adds to the gradient of a layer, from what went in and the gradient of what came out.

Shapes: B records, U units (a record is a unit, or several records are one), T positions of a record (tokens, pixels of
a feature map), D numbers that go in at a position, E that come out, K = D * E.

    shares = layer_shares(layer, input_B, output_gradient_B, owner_B, units=U)
    norms_U = torch.stack([share.norms_U() for share in shares]).norm(dim=0)
    for share in shares: share.parameter's sum is share.weighted(factors_U)

A unit's gradient is formed in one batched product, except where it is an outer product (`client.gradients.shares`): on
a layer with few positions that is the cheaper branch of mixed ghost clipping (Bu et al. 2022, section 4,
https://arxiv.org/abs/2205.10683), and no norm is a difference of large numbers, so that rounding cannot hide a part of
it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from client.gradients.shares import Formed, Outer, Rows, Share

SEQUENCE_DIMS = 3  # records, channels, places
FEW_CHANNELS = 4


def obstacle(layer: nn.Module) -> str | None:
    """Return why a layer's own parameters have no rule here, or None when they have one, or it has none of its own.

    Only the very classes count: what is derived from one may compute something else.
    """
    names = {name for name, _ in layer.named_parameters(recurse=False)}
    if not names:
        return None
    kind = type(layer)
    if kind not in _RULES or not names <= {"weight", "bias"}:
        return f"{kind.__name__} has no rule"
    if isinstance(layer, nn.Conv1d | nn.Conv2d) and (
        layer.groups != 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str)
    ):
        return f"{kind.__name__} has groups, or a padding that is not zeros of a fixed width"
    if isinstance(layer, nn.Embedding) and (layer.max_norm is not None or layer.scale_grad_by_freq or layer.sparse):
        return "Embedding has max_norm, scale_grad_by_freq or sparse"
    return None


def layer_shares(
    layer: nn.Module, input_B: Tensor, output_gradient_B: Tensor, owner_B: Tensor | None, *, units: int
) -> list[Share]:
    """Return what each unit adds to each trained parameter of a layer that `obstacle` has nothing against.

    Guarantees:
        Added up with factors of 1 the shares are the gradient that PyTorch computes.
        `without` a unit the others' sum is what it was, also where that unit's gradient is not finite.

    Args:
        layer: which was called once in the forward pass.
        input_B: what it was given, its first dimension the records.
        output_gradient_B: the gradient of the sum of all records' losses with respect to what it returned.
        owner_B: for each record the position of its unit; None where each record is a unit of its own.
        units: U.
    """
    batch = _Batch(owner_B=owner_B, units=units)
    shares = _RULES[type(layer)](layer, _single(input_B), output_gradient_B.float(), batch)
    return [share for share in shares if share.parameter.requires_grad]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Batch:
    """Whose record is which."""

    owner_B: Tensor | None
    units: int

    def by_unit(self, gradients_BK: Tensor) -> Tensor:
        """Add up the records of each unit."""
        if self.owner_B is None:
            return gradients_BK
        sums = gradients_BK.new_zeros((self.units, *gradients_BK.shape[1:]))
        return sums.index_add_(0, self.owner_B, gradients_BK)


def _dense(layer: nn.Linear, input_B: Tensor, output_gradient_B: Tensor, batch: _Batch) -> list[Share]:
    records = len(input_B)
    input_BTD = input_B.reshape(records, -1, layer.in_features)
    gradient_BTE = output_gradient_B.reshape(records, -1, layer.out_features)
    shares: list[Share] = []
    if input_BTD.shape[1] == 1 and batch.owner_B is None:
        shares.append(Outer(parameter=layer.weight, input_UD=input_BTD[:, 0], output_gradient_UE=gradient_BTE[:, 0]))
    else:
        products_BED = torch.bmm(gradient_BTE.transpose(1, 2), input_BTD)
        shares.append(_formed(layer.weight, products_BED, batch))
    if layer.bias is not None:
        shares.append(_formed(layer.bias, gradient_BTE.sum(1), batch))
    return shares


def _convolution(
    layer: nn.Conv1d | nn.Conv2d, input_B: Tensor, output_gradient_B: Tensor, batch: _Batch
) -> list[Share]:
    """As a dense layer on the windows that the kernel sees, T of them."""
    input_BCHW, gradient_BCHW = _as_plane(input_B), _as_plane(output_gradient_B)
    gradient_BTE = gradient_BCHW.permute(0, 2, 3, 1).flatten(1, 2)
    products_BDE = torch.bmm(_windows(layer, input_BCHW), gradient_BTE)
    outputs, inputs, *kernel = layer.weight.shape

    def arrange(sum_K: Tensor) -> Tensor:
        """As the weight lies in memory: by output, then place in the kernel, then input."""
        sum_EkD = sum_K.view(-1, outputs).T.contiguous().view(outputs, *kernel, inputs)
        return sum_EkD.movedim(-1, 1)

    shares: list[Share] = [
        Formed(parameter=layer.weight, gradients_UK=batch.by_unit(products_BDE.flatten(1)), arrange=arrange)
    ]
    if layer.bias is not None:
        shares.append(_formed(layer.bias, gradient_BTE.sum(1), batch))
    return shares


def _as_plane(sequence_or_plane_B: Tensor) -> Tensor:
    """A sequence as a plane of height 1."""
    return sequence_or_plane_B if sequence_or_plane_B.dim() > SEQUENCE_DIMS else sequence_or_plane_B.unsqueeze(2)


def _windows(layer: nn.Conv1d | nn.Conv2d, planes_BCHW: Tensor) -> Tensor:
    """What the kernel sees at each position, (B, kernel height * kernel width * C, T).

    Copied in the order that leaves the longest runs of neighbours: many channels at a place, or places in a row.
    """
    missing = (0,) * (2 - len(layer.kernel_size))
    one = (1,) * len(missing)
    padding, stride = (*missing, *layer.padding), (*one, *layer.stride)
    kernel, dilation = (*one, *layer.kernel_size), (*one, *layer.dilation)
    padded = (
        functional.pad(planes_BCHW, (padding[1], padding[1], padding[0], padding[0])) if any(padding) else planes_BCHW
    )
    rows_BHWC = padded.permute(0, 2, 3, 1).contiguous()
    records, height, width, channels = rows_BHWC.shape
    sides = [
        (side - dilated * (size - 1) - 1) // step + 1
        for side, size, step, dilated in zip((height, width), kernel, stride, dilation, strict=True)
    ]
    by_record, by_row, by_column, by_channel = rows_BHWC.stride()
    places = (by_row * stride[0], by_column * stride[1])
    inside = (by_row * dilation[0], by_column * dilation[1], by_channel)
    if channels < FEW_CHANNELS:
        seen = rows_BHWC.as_strided((records, *kernel, channels, *sides), (by_record, *inside, *places))
        return seen.reshape(records, kernel[0] * kernel[1] * channels, sides[0] * sides[1])
    seen = rows_BHWC.as_strided((records, *sides, *kernel, channels), (by_record, *places, *inside))
    return seen.reshape(records, sides[0] * sides[1], kernel[0] * kernel[1] * channels).transpose(1, 2)


def _embedding(layer: nn.Embedding, input_B: Tensor, output_gradient_B: Tensor, batch: _Batch) -> list[Share]:
    """Each unit's rows, a token that it has twice added up before anything is squared."""
    tokens_BT = input_B.reshape(len(input_B), -1)
    owner_B = torch.arange(len(tokens_BT), device=tokens_BT.device) if batch.owner_B is None else batch.owner_B
    places = (owner_B[:, None] * layer.num_embeddings + tokens_BT).flatten()
    found_R, place = torch.unique(places, return_inverse=True)
    gradient = output_gradient_B.reshape(-1, layer.embedding_dim)
    rows_RD = gradient.new_zeros((len(found_R), layer.embedding_dim)).index_add_(0, place, gradient)
    row_R = found_R % layer.num_embeddings
    if layer.padding_idx is not None:
        rows_RD[row_R == layer.padding_idx] = 0.0
    unit_R = torch.div(found_R, layer.num_embeddings, rounding_mode="floor")
    return [Rows(parameter=layer.weight, unit_R=unit_R, row_R=row_R, gradients_RD=rows_RD, units=batch.units)]


def _layer_norm(layer: nn.LayerNorm, input_B: Tensor, output_gradient_B: Tensor, batch: _Batch) -> list[Share]:
    normal_B = functional.layer_norm(input_B, layer.normalized_shape, eps=layer.eps)
    return _scaled(layer, normal_B, output_gradient_B, batch)


def _group_norm(layer: nn.GroupNorm, input_B: Tensor, output_gradient_B: Tensor, batch: _Batch) -> list[Share]:
    normal_B = functional.group_norm(input_B, layer.num_groups, eps=layer.eps)
    return _scaled(layer, normal_B.movedim(1, -1), output_gradient_B.movedim(1, -1), batch)


def _scaled(
    layer: nn.LayerNorm | nn.GroupNorm, normal_B: Tensor, output_gradient_B: Tensor, batch: _Batch
) -> list[Share]:
    """A normalised input times a weight, plus a bias, both of the shape of its last dimensions."""
    records, shape = len(normal_B), layer.weight.shape
    gradients = [(layer.weight, normal_B * output_gradient_B), (layer.bias, output_gradient_B)]
    return [
        _formed(parameter, gradient_B.reshape(records, -1, shape.numel()).sum(1), batch)
        for parameter, gradient_B in gradients
        if parameter is not None
    ]


_RULES: dict[type[nn.Module], Callable[..., list[Share]]] = {
    nn.Linear: _dense,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Embedding: _embedding,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
}


def _formed(parameter: Tensor, gradients_B: Tensor, batch: _Batch) -> Formed:
    """The gradients of the records, each in the parameter's own order of numbers."""
    gradients_UK = batch.by_unit(gradients_B.flatten(1))
    return Formed(parameter=parameter, gradients_UK=gradients_UK, arrange=lambda sum_K: sum_K.view(parameter.shape))


def _single(input_B: Tensor) -> Tensor:
    """Numbers in single precision; tokens as they are."""
    return input_B.float() if input_B.is_floating_point() else input_B
