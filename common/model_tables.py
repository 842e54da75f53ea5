"""The models of a scenario's `[model]` table, and what all tables are made of."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

PositiveInt = Annotated[int, Field(gt=0, le=10**9, strict=True)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
Momentum = Annotated[float, Field(ge=0, lt=1, strict=True)]
Activation = Literal["relu", "tanh"]


class Table(BaseModel):
    """A table of the file: frozen, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Cnn(Table):
    """`[model] name = "cnn"`: three 3x3 convolutions and two dense layers; it adapts to the images' size."""

    name: Literal["cnn"]
    activation: Activation = "tanh"
    channels: Annotated[tuple[PositiveInt, PositiveInt, PositiveInt], Field(strict=False)] = (32, 64, 64)
    dense: PositiveInt = 64
    normalization: Literal["none", "group", "batch"] = "none"


class CnnOpacus(Table):
    """`[model] name = "cnn-opacus"`: the network of Opacus's MNIST example, for images of 28x28."""

    name: Literal["cnn-opacus"]
    activation: Activation = "relu"


class Mlp(Table):
    """`[model] name = "mlp"`: dense layers over the flat features of a record."""

    name: Literal["mlp"]
    activation: Activation = "tanh"
    layers: Annotated[tuple[PositiveInt, ...], Field(strict=False, max_length=32)] = (32,)


class Transformer(Table):
    """`[model] name = "transformer"`: a text classifier over hashed words."""

    name: Literal["transformer"]
    activation: Activation = "relu"
    d_model: PositiveInt = 100
    heads: PositiveInt = 4
    feed_forward: PositiveInt = 200
    layers: PositiveInt = 2
    dropout: Annotated[float, Field(ge=0, lt=1, strict=True)] = 0.1
    tokens: Annotated[int, Field(ge=2, le=4096, strict=True)] = 32
    vocabulary: Annotated[int, Field(ge=16, le=2**20, strict=True)] = 2048

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.d_model % self.heads or self.d_model % 2:
            raise ValueError(f"d_model: expected an even multiple of heads = {self.heads}, got {self.d_model}")
        return self


Model = Annotated[Cnn | CnnOpacus | Mlp | Transformer, Field(discriminator="name")]
