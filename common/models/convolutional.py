"""Convolutional classifiers of images.

Shapes: B batch, C channels, H height, W width, K classes.
"""

from torch import Tensor, nn

from common.errors import ScenarioError
from common.model_tables import Activation, Cnn, CnnOpacus

_WITHOUT_PADDING = 18  # the smallest side that three 3x3 convolutions and two poolings leave something of
_SMALLEST = 4
_GROUPS = 8


def activation(name: Activation) -> nn.Module:
    """Return a fresh activation; tanh bounds what a layer passes on, which suits clipped gradients.

    Source: Papernot et al. 2021, https://arxiv.org/abs/2007.14191.
    """
    return nn.Tanh() if name == "tanh" else nn.ReLU()


class ConvolutionalNet(nn.Module):
    """Conv 32 3x3, pool, conv 64 3x3, pool, conv 64 3x3, dense 64, dense K: 93,322 parameters on 1x28x28.

    It adapts to other sizes and channels: sides below 18 pixels get padded convolutions.

    Args:
        config: activation, channels, width of the dense layer, normalisation.
        image_shape: channels, height, width.
        classes: K.
    """

    def __init__(self, config: Cnn, *, image_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, *sides = image_shape
        if min(sides) < _SMALLEST:
            raise ScenarioError(f"model.name: 'cnn' expects images of at least 4x4 pixels, got {image_shape}.")
        padding = 0 if min(sides) >= _WITHOUT_PADDING else 1
        layers: list[nn.Module] = []
        for position, width in enumerate(config.channels):
            layers += [nn.Conv2d(channels, width, 3, padding=padding), *_normalization(config, width)]
            layers.append(activation(config.activation))
            sides = [side - 2 + 2 * padding for side in sides]
            if position < len(config.channels) - 1:
                layers.append(nn.MaxPool2d(2))
                sides = [side // 2 for side in sides]
            channels = width
        flat = channels * sides[0] * sides[1]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(flat, config.dense), activation(config.activation), nn.Linear(config.dense, classes)
        )

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits, (B, K)."""
        logits: Tensor = self.classifier(self.features(images_BCHW))
        return logits


class OpacusNet(nn.Module):
    """The network of Opacus's MNIST example, 26,010 parameters, for comparison with its published table.

    Source: https://github.com/pytorch/opacus/blob/main/examples/mnist.py.
    """

    def __init__(self, config: CnnOpacus, *, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 8, stride=2, padding=3),
            activation(config.activation),
            nn.MaxPool2d(2, 1),
            nn.Conv2d(16, 32, 4, stride=2),
            activation(config.activation),
            nn.MaxPool2d(2, 1),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(32 * 4 * 4, 32), activation(config.activation), nn.Linear(32, classes)
        )

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits, (B, K)."""
        logits: Tensor = self.classifier(self.features(images_BCHW))
        return logits


def _normalization(config: Cnn, width: int) -> list[nn.Module]:
    """The scenario's normalisation; batch statistics are never kept, so that no buffer travels."""
    if config.normalization == "group":
        return [nn.GroupNorm(min(_GROUPS, width), width)]
    if config.normalization == "batch":
        return [nn.BatchNorm2d(width, track_running_stats=False)]
    return []
