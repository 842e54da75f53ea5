"""A transformer that classifies short texts.

Shapes: B batch, T tokens, D d_model, H heads, K classes.

Attention is built from `Linear` layers and `scaled_dot_product_attention`, so that per-sample gradients can be hooked;
`nn.MultiheadAttention` keeps its weights where no hook sees them.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.model_tables import Transformer
from common.models.convolutional import activation
from common.text import PADDING


class TextTransformer(nn.Module):
    """Embedding, positions, encoder layers, mean over the words, dense K.

    Edge cases:
        only padding                 cannot be: every text begins with a start token (`common.text`)
        a token beyond `vocabulary`  the last one: a coordinator that chooses a small one learns no token by an error

    Source: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762; layers normalise first, as in Xiong et al. 2020,
    https://arxiv.org/abs/2002.04745.
    """

    def __init__(self, config: Transformer, *, classes: int) -> None:
        super().__init__()
        self.scale = math.sqrt(config.d_model)
        self.embedding = nn.Embedding(config.vocabulary, config.d_model)
        nn.init.normal_(self.embedding.weight, std=config.d_model**-0.5)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.d_model)
        self.classifier = nn.Linear(config.d_model, classes)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Return logits, (B, K)."""
        is_word_BT = tokens_BT != PADDING
        x_BTD = self.embedding(tokens_BT.clamp(0, self.embedding.num_embeddings - 1)) * self.scale
        x_BTD = self.dropout(x_BTD + positions(tokens_BT.shape[1], x_BTD.shape[2]).to(x_BTD))
        for layer in self.layers:
            x_BTD = layer(x_BTD, is_word_BT)
        words_BT1 = is_word_BT.unsqueeze(-1).to(x_BTD)
        mean_BD = (self.norm(x_BTD) * words_BT1).sum(1) / words_BT1.sum(1)
        logits: Tensor = self.classifier(mean_BD)
        return logits


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward part, each on a normalised input and added to it."""

    def __init__(self, config: Transformer) -> None:
        super().__init__()
        width = config.d_model
        self.heads, self.dropout_rate = config.heads, config.dropout
        self.norm_attention, self.norm_feed_forward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.feed_forward = nn.Sequential(
            nn.Linear(width, config.feed_forward),
            activation(config.activation),
            nn.Dropout(config.dropout),
            nn.Linear(config.feed_forward, width),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, is_word_BT: Tensor) -> Tensor:
        """Return the layer's output, (B, T, D)."""
        x_BTD = x_BTD + self.dropout(self._attend(self.norm_attention(x_BTD), is_word_BT))
        out_BTD: Tensor = x_BTD + self.dropout(self.feed_forward(self.norm_feed_forward(x_BTD)))
        return out_BTD

    def _attend(self, x_BTD: Tensor, is_word_BT: Tensor) -> Tensor:
        """Let each word look at all words, padding excepted."""
        query, key, value = (
            linear(x_BTD).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, T, D / H)
            for linear in (self.query, self.key, self.value)
        )
        rate = self.dropout_rate if self.training else 0.0
        mixed_BHTd = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=is_word_BT[:, None, None, :], dropout_p=rate
        )
        out_BTD: Tensor = self.out(mixed_BHTd.transpose(1, 2).flatten(2))
        return out_BTD


def positions(tokens: int, width: int) -> Tensor:
    """Return sine and cosine waves, (tokens, width), that tell a word where it stands."""
    wavelength = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    angle = torch.arange(tokens)[:, None] * wavelength
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)
