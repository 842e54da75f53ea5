"""A classifier of flat features: dense layers and nothing else.

Shapes: B batch, F features, K classes.
"""

from itertools import pairwise

from torch import Tensor, nn

from common.model_tables import Mlp
from common.models.convolutional import activation


class Perceptron(nn.Module):
    """Dense layers with an activation between them: F to the first width, ..., the last width to K.

    Nothing mixes the records of a batch, so that each record's gradient is its own.

    Edge cases:
        no hidden layer   logistic regression

    Args:
        config: widths of the hidden layers, activation.
        width: F.
        classes: K.
    """

    def __init__(self, config: Mlp, *, width: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise((width, *config.layers)):
            layers += [nn.Linear(before, after), activation(config.activation)]
        self.layers = nn.Sequential(*layers, nn.Linear((width, *config.layers)[-1], classes))

    def forward(self, features_BF: Tensor) -> Tensor:
        """Return logits, (B, K)."""
        logits: Tensor = self.layers(features_BF)
        return logits
