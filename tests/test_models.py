"""The networks: parameter counts as published, Keras's semantics, the same function as the plainest writing of it."""

import math

import pytest
import torch
from torch import nn

from cifarlab import UserError
from cifarlab.models import build_model, describe_model
from cifarlab.models.layers import Dropout, Flatten
from cifarlab.models.specs import VGG
from cifarlab.recipe import override
from cifarlab.recipes import RECIPES
from cifarlab.transfer import freeze_for_epoch


@pytest.mark.parametrize("name", RECIPES)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    recipe = RECIPES[name]
    model = build_model(recipe.model, 10)
    freeze_for_epoch(recipe.finetune, model, epoch=0)
    counted = sum(parameter.numel() for parameter in model.parameters())
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    statistics = sum(buffer.numel() for buffer in model.buffers() if buffer.is_floating_point())
    assert (recipe.parameters, recipe.trainable_parameters) == (
        counted + statistics,
        trainable,
    )  # as Keras counts them


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_gives_logits(name: str) -> None:
    model = build_model(RECIPES[name].model, 7)
    assert model(torch.rand(5, 3, 32, 32)).shape == (5, 7)


def test_initial_values_are_keras_s() -> None:
    torch.manual_seed(0)
    model = build_model(VGG(widths=(32, 64)), 10)
    layers = dict(model.named_modules())
    conv, out = layers["block2_conv2"], layers["output"]
    assert isinstance(conv, nn.Conv2d) and isinstance(out, nn.Linear)
    he_limit, glorot_limit = math.sqrt(6 / (64 * 9)), math.sqrt(6 / (128 + 10))
    for layer, limit in ((conv, he_limit), (out, glorot_limit)):
        assert layer.weight.abs().max() <= limit
        assert layer.weight.abs().max() > 0.97 * limit
        assert layer.weight.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.05)
        assert layer.bias is not None and not layer.bias.any()


def test_batch_norm_has_keras_s_constants() -> None:
    model = build_model(RECIPES["vgg3-bn"].model, 10)
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d)]
    assert len(norms) == 7
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.01, 1e-3)}


@pytest.mark.parametrize(("variance", "factor"), [("unbiased", 6 * 16 / (6 * 16 - 1)), ("biased", 1.0)])
def test_running_variance_is_that_of_keras_2_or_3(variance: str, factor: float) -> None:
    spec = VGG(widths=(4,), convolutions=1, batch_norm=True, batch_norm_variance=variance)  # type: ignore[arg-type]
    model = build_model(spec, 3, (3, 4, 4))
    layers, images = dict(model.named_modules()), torch.rand(6, 3, 4, 4)
    for _ in range(2):
        model(images).sum().backward()
    values = layers["block1_conv1"](images).relu()
    expected = 0.99**2 + (1 - 0.99**2) * factor * values.var((0, 2, 3), unbiased=False)
    torch.testing.assert_close(layers["block1_conv1_bn"].running_var, expected)
    model.eval()(images)
    torch.testing.assert_close(layers["block1_conv1_bn"].running_var, expected)


def test_vgg3_is_the_function_that_the_write_up_lists() -> None:
    """ReLU is after the pool here, for speed; written plainly it gives the same logits and gradients."""
    torch.manual_seed(1)
    model = build_model(VGG(widths=(4, 6)), 3, (3, 8, 8)).to(memory_format=torch.channels_last)
    layers = dict(model.named_modules())

    def plain(images: torch.Tensor) -> torch.Tensor:
        for block in (1, 2):
            for index in (1, 2):
                images = layers[f"block{block}_conv{index}"](images).relu()
            images = nn.functional.max_pool2d(images, 2)
        flat = images.permute(0, 2, 3, 1).reshape(len(images), -1)
        return layers["output"](layers["dense"](flat).relu())

    images = torch.rand(5, 3, 8, 8).to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(images), plain(images))
    expected = torch.autograd.grad(plain(images).square().sum(), list(model.parameters()))
    torch.testing.assert_close(
        torch.autograd.grad(model(images).square().sum(), list(model.parameters())), expected
    )


def test_vgg3_bn_has_its_layers_in_the_write_up_s_order() -> None:
    names = [name for name, _ in build_model(RECIPES["vgg3-bn"].model, 10).named_children()]
    assert names[:7] == [
        "block1_conv1", "block1_conv1_relu", "block1_conv1_bn",
        "block1_conv2", "block1_conv2_relu", "block1_conv2_bn", "block1_pool",
    ]  # fmt: skip
    assert names[7] == "block1_dropout"
    assert names[-6:] == ["flatten", "dense", "dense_relu", "dense_bn", "dense_dropout", "output"]


def test_flatten_has_keras_s_order() -> None:
    images = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)
    assert torch.equal(Flatten()(images)[1].view(4, 5, 3), images[1].permute(1, 2, 0))


@pytest.mark.parametrize("shape", [(64, 50), (64, 8, 6, 6), (65, 3, 5, 5)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_dropout(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    if len(shape) == 2 and layout == torch.channels_last:
        pytest.skip("channels last is for pictures")
    values = torch.rand(100, *shape[1:]).add_(1).to(memory_format=layout).requires_grad_()
    layer = Dropout(0.3)
    torch.manual_seed(5)
    dropped = layer(values)
    torch.manual_seed(5)
    assert torch.equal(layer(values), dropped)
    assert not torch.equal(layer(values), dropped)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], values[kept] / 0.7, rtol=1e-4, atol=0)
    assert kept.float().mean() == pytest.approx(0.7, abs=5 * math.sqrt(0.21 / values.numel()))
    (gradient,) = torch.autograd.grad(dropped.sum(), values)
    torch.testing.assert_close(gradient, kept / 0.7, rtol=1e-4, atol=0)
    assert dropped.stride() == values.stride()
    assert layer.eval()(values) is values


def test_dropout_treats_channels_and_places_independently() -> None:
    torch.manual_seed(0)
    kept = (Dropout(0.5)(torch.ones(200, 8, 8, 8).to(memory_format=torch.channels_last)) != 0).float()
    for dimension in range(4):
        means = kept.mean(dim=[each for each in range(4) if each != dimension])
        assert means.sub(0.5).abs().max() < 6 * 0.5 / math.sqrt(kept.numel() / len(means))


def test_layers_are_described() -> None:
    rows = {row["name"]: row for row in describe_model(build_model(RECIPES["vgg1"].model, 10))}
    assert rows["block1_conv2"] == {
        "name": "block1_conv2",
        "type": "Conv2d",
        "output_shape": [32, 32, 32],
        "parameters": 32 * 32 * 9 + 32,
        "multiply_adds": 32 * 32 * 32 * 32 * 9,
    }
    assert rows["dense"]["multiply_adds"] == 8_192 * 128
    assert rows["flatten"]["output_shape"] == [8_192]
    whitening, *_ = describe_model(build_model(RECIPES["airbench94"].model, 10))
    assert whitening["multiply_adds"] == 24 * 31 * 31 * 3 * 2 * 2


def test_pictures_too_small_for_the_blocks_are_refused() -> None:
    with pytest.raises(
        UserError, match="3 blocks halve the picture 3 times and need at least 8x8 pixels, 4x4 given"
    ):
        build_model(VGG(), 10, (3, 4, 4))


def test_resnet18_is_the_usual_one_of_small_pictures() -> None:
    """0.56 G multiply-adds (He and others' 18 layers, stem 3x3 without a pool); each block the sum with its input."""
    model = build_model(RECIPES["resnet18"].model, 10)
    rows = {row["name"]: row for row in describe_model(model)}
    assert sum(row["multiply_adds"] for row in rows.values()) == pytest.approx(0.556e9, rel=0.005)
    assert rows["stem"]["output_shape"] == [64, 32, 32] and rows["pool"]["output_shape"] == [512, 1, 1]
    block, images = model.get_submodule("stages.1.0"), torch.randn(2, 64, 8, 8)
    model.eval()
    for norm in ("norm1", "norm2"):
        torch.nn.init.zeros_(block.get_submodule(norm).weight)  # the convolutions' branch gives nothing
    torch.testing.assert_close(block(images), torch.relu(block.get_submodule("shortcut")(images)))


def test_resnet_needs_blocks_for_each_stage() -> None:
    with pytest.raises(UserError, match="blocks needs one number for each of the 2 stages, 4 given"):
        override(RECIPES["resnet18"], {"model.widths": [8, 16]})
    with pytest.raises(UserError, match="4 stages needs at least 8x8 pixels, 4x4 given"):
        build_model(RECIPES["resnet18"].model, 10, (3, 4, 4))
