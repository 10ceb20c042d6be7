"""What a recipe may say about a network. Free of torch, so that a mistyped recipe is answered at once.

Each family has its settings here and its `nn.Module` in the module of the same name.
"""

from typing import Annotated, Literal, Union

from pydantic import BaseModel, ConfigDict, Field, model_validator

Width = Annotated[int, Field(ge=1, le=8192)]
Rate = Annotated[float, Field(ge=0.0, lt=1.0)]
Variance = Annotated[
    Literal["unbiased", "biased"],
    Field(
        description="of a batch, that batch norm's running variance takes: unbiased as in Keras 2, biased as in 3"
    ),
]


class Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class VGG(Spec):
    """Blocks of convolutions and a 2x2 max-pool, then at most one hidden dense layer: most of the published networks.

    Every convolution and the hidden dense layer are followed by the activation.
    """

    name: Literal["vgg"] = "vgg"
    widths: tuple[Width, ...] = Field(
        default=(32, 64, 128), min_length=1, max_length=5, description="filters of each block"
    )
    convolutions: Annotated[int, Field(ge=1, le=8)] = Field(default=2, description="of each block")
    kernel_size: Annotated[int, Field(ge=1, le=11)] = Field(default=3, description="pixels a side")
    padding: Literal["same", "valid"] = Field(
        default="same", description="same: TensorFlow's, an odd row or column at the bottom and right"
    )
    activation: Literal["relu", "elu"] = "relu"
    initializer: Literal["he_uniform", "glorot_uniform"] = Field(
        default="he_uniform", description="of the kernels, but the last layer's, which are glorot_uniform"
    )
    dense: Width | None = Field(
        default=128, description="units of the hidden dense layer; none: no such layer"
    )
    pool_dropout: tuple[Rate, ...] = Field(
        default=(), description="dropout rate at each pool; empty for none"
    )
    dropout_place: Literal["after-pool", "before-pool"] = "after-pool"
    dense_dropout: Rate = Field(default=0.0, description="dropout rate after the hidden dense layer")
    batch_norm: bool = False
    batch_norm_place: Literal["activations", "dropouts"] = Field(
        default="activations", description="after every activation, or once before every dropout"
    )
    batch_norm_variance: Variance = "unbiased"

    @model_validator(mode="after")
    def one_rate_for_each_pool(self) -> "VGG":
        if self.pool_dropout and len(self.pool_dropout) != len(self.widths):
            raise ValueError(
                f"pool_dropout needs one rate for each of the {len(self.widths)} blocks, {len(self.pool_dropout)} given"
            )
        return self

    @model_validator(mode="after")
    def dense_dropout_has_its_layer(self) -> "VGG":
        if self.dense is None and self.dense_dropout > 0.0:
            raise ValueError("dense_dropout needs a hidden dense layer: set dense, or dense_dropout to 0")
        return self


class MLP(Spec):
    """Hidden dense layers with ReLU over the flattened picture."""

    name: Literal["mlp"] = "mlp"
    widths: tuple[Width, ...] = Field(
        default=(1000, 512), min_length=1, max_length=16, description="units of each hidden layer"
    )
    dropout: Rate = Field(default=0.0, description="dropout rate after every hidden layer")


class AlexNet(Spec):
    """A small AlexNet for pictures of about 32 pixels a side: five convolutions, two hidden dense layers (T4)."""

    name: Literal["alexnet"] = "alexnet"
    dense: Width = Field(default=4096, description="units of each of the two hidden dense layers")
    dense_dropout: Rate = Field(default=0.4, description="dropout rate after each of them")
    batch_norm_variance: Variance = "unbiased"


class Airbench(Spec):
    """The fast network of cifar10-airbench (arXiv 2404.00498): a whitening layer, then groups of convolutions.

    Whitening and GELU, then in each group convolution, 2x2 max-pool, batch norm, GELU, and further convolutions with
    batch norm and GELU; a global max-pool and a dense layer without bias, its logits over the number of features.
    """

    name: Literal["airbench"] = "airbench"
    widths: tuple[Width, ...] = Field(
        default=(64, 256, 256), min_length=1, max_length=5, description="filters of each group"
    )
    convolutions: Annotated[int, Field(ge=2, le=3)] = Field(
        default=2, description="of each group; with three there is a residual round the last"
    )
    whitening_kernel: Annotated[int, Field(ge=2, le=4)] = Field(
        default=2, description="pixels a side of the whitening convolution, which is computed and not trained"
    )
    whitening_bias_epochs: Annotated[int, Field(ge=0)] = Field(
        default=3, description="epochs that the whitening layer's bias is trained for"
    )


class ResNet(Spec):
    """A residual network for small pictures (He and others, arXiv 1512.03385): a 3x3 stem that keeps their size.

    Each stage but the first halves height and width; basic blocks, a global mean, one dense layer.
    """

    name: Literal["resnet"] = "resnet"
    widths: tuple[Width, ...] = Field(
        default=(64, 128, 256, 512), min_length=1, max_length=6, description="filters of each stage"
    )
    blocks: tuple[Annotated[int, Field(ge=1, le=64)], ...] = Field(
        default=(2, 2, 2, 2), min_length=1, max_length=6, description="basic blocks of each stage"
    )

    @model_validator(mode="after")
    def blocks_for_each_stage(self) -> "ResNet":
        if len(self.blocks) != len(self.widths):
            raise ValueError(
                f"blocks needs one number for each of the {len(self.widths)} stages, {len(self.blocks)} given"
            )
        return self


class VGG16(Spec):
    """VGG16's convolutional base (Simonyan and Zisserman, arXiv 1409.1556, configuration D) and a small head (T5).

    13 convolutions in five blocks, for pictures of 32 pixels a side or more; then one hidden dense layer with ReLU.
    """

    name: Literal["vgg16"] = "vgg16"
    weights: str | None = Field(
        default="imagenet",
        description="of the base, to begin with: imagenet (Keras's file), imagenet-torchvision, or the path of a file"
        " (Keras's .h5, PyTorch's .pth, safetensors); none: random values",
    )
    upsample: Annotated[int, Field(ge=32, le=512)] | None = Field(
        default=None,
        description="pixels a side that pictures are enlarged to first, bilinearly; none: as they are",
    )
    dense: Width = Field(default=512, description="units of the hidden dense layer")
    dense_dropout: Rate = Field(default=0.0, description="dropout rate after it")


ModelSpec = Annotated[Union[VGG, MLP, AlexNet, VGG16, Airbench, ResNet], Field(discriminator="name")]
