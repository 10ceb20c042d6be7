"""What a recipe may say about a network. Free of torch, so that a mistyped recipe is answered at once.

Each family has its settings here and its `nn.Module` in the module of the same name.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Width = Annotated[int, Field(ge=1, le=8192)]
Rate = Annotated[float, Field(ge=0.0, lt=1.0)]


class Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class VGG(Spec):
    """Blocks of two 3x3 convolutions and a 2x2 max-pool, then one hidden dense layer: the networks of T1.

    Every convolution and the hidden dense layer are followed by ReLU, then by batch normalisation if asked for.
    """

    name: Literal["vgg"] = "vgg"
    widths: tuple[Width, ...] = Field(
        default=(32, 64, 128), min_length=1, max_length=5, description="filters of each block"
    )
    dense: Width = Field(default=128, description="units of the hidden dense layer")
    pool_dropout: tuple[Rate, ...] = Field(
        default=(), description="dropout rate after each pool; empty for none"
    )
    dense_dropout: Rate = Field(default=0.0, description="dropout rate after the hidden dense layer")
    batch_norm: bool = Field(default=False, description="batch normalisation after every ReLU")

    @model_validator(mode="after")
    def one_rate_for_each_pool(self) -> "VGG":
        if self.pool_dropout and len(self.pool_dropout) != len(self.widths):
            raise ValueError(
                f"pool_dropout needs one rate for each of the {len(self.widths)} blocks, {len(self.pool_dropout)} given"
            )
        return self


ModelSpec = VGG
