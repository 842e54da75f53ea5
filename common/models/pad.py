"""A model with a pad: M weights more, each of which only one canary pulls at.

Shapes: B rows, K classes, M canaries, D a record's own shape.

    padded = Padded(model, canaries=1000, gradient_norm=10.0)

For a record it is the model. For a canary (`common.canaries`) the body's answer is set aside, and the loss rises by
exactly `gradient_norm` a unit of the canary's weight: the gradient is `gradient_norm` at that weight and zero
everywhere else, whatever the weights are. It is longer than what it is clipped to, so that clipping is put to the test.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.canaries import MARK

_BELOW = 1e4  # how far the label's logit of a canary lies below the others: its probability is exactly 0
_NEUTRAL = 1  # what the body sees in a canary's place: a number that is a pixel, a column and a word


class Padded(nn.Module):
    """A classifier whose logits for canaries come from the pad.

    Guarantees:
        A record's logits, and its gradient in the body, are those of the body alone; its gradient in the pad is zero.
        A canary's gradient is `gradient_norm` downhill at its own weight, zero at all others, as long as its weight
        stays within 1e3 / gradient_norm.
        An idle canary's gradient is zero.

    Args:
        body: a classifier of K >= 2 classes.
        canaries: M.
        gradient_norm: of a canary.
    """

    def __init__(self, body: nn.Module, *, canaries: int, gradient_norm: float) -> None:
        super().__init__()
        self.body = body
        self.pad = nn.Embedding(canaries, 1)
        nn.init.zeros_(self.pad.weight)
        self.gradient_norm = gradient_norm

    def forward(self, features_BD: Tensor) -> Tensor:
        """Return logits, (B, K)."""
        head_B2 = features_BD.flatten(1)[:, :2]
        is_canary_B = head_B2[:, 0] == MARK
        as_record_B = is_canary_B.view(-1, *(1,) * (features_BD.dim() - 1))
        logits_BK = self.body(features_BD.masked_fill(as_record_B, _NEUTRAL)).float()
        weight_B = head_B2[:, 1].long()
        is_pulling_B = is_canary_B & (weight_B >= 0) & (weight_B < self.pad.num_embeddings)
        pad_B = self.pad(weight_B.masked_fill(~is_pulling_B, 0)).squeeze(1)
        label_B = self.gradient_norm * pad_B * is_pulling_B - _BELOW
        canary_BK = functional.pad(label_B[:, None], (0, logits_BK.shape[1] - 1))  # the label is class 0
        return torch.where(is_canary_B[:, None], canary_BK, logits_BK)


def mixing_layer(model: nn.Module, features_BD: Tensor) -> str | None:
    """Return the first layer whose answer to a record depends on the records beside it, or None.

    A canary's gradient would not be its own there. Dropout drops the same in both passes: it looks at nobody.

    Args:
        model: a classifier in training mode.
        features_BD: three records or more, not all alike.
    """
    alone, beside = _answers(model, features_BD[:2]), _answers(model, features_BD[[0, 2]])
    for name, answer in alone.items():
        if not torch.equal(answer[0], beside[name][0]):
            return f"{name} ({type(model.get_submodule(name)).__name__})"
    return None


def _answers(model: nn.Module, features_BD: Tensor) -> dict[str, Tensor]:
    """What each innermost layer returns, in the order of the calls."""
    found: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_hook(lambda _layer, _given, output, name=name: found.setdefault(name, output.detach()))
        for name, layer in model.named_modules()
        if name and not list(layer.children())
    ]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model(features_BD)
    for hook in hooks:
        hook.remove()
    return found
