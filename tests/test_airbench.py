"""The network of cifar10-airbench and its optimiser, against what the paper and the published code say."""

from pathlib import Path

import pytest
import torch
from torch import nn

from cifarlab import UserError
from cifarlab.cost import training_operations
from cifarlab.job import prepare
from cifarlab.models import build_model, describe_model
from cifarlab.models.airbench import AirbenchNet, Whitening, freeze_whitening_bias
from cifarlab.models.specs import Airbench
from cifarlab.optim import build_optimizer, orthogonalise, set_learning_rate
from cifarlab.recipe import Data, Linear, Loss, Muon, override
from cifarlab.recipes import get_recipe
from cifarlab.training import EpochDone, fit, reopen, start, train_step
from tests.tiny import RECIPE, tiny_source, use_source

SMALL = RECIPE.model_copy(
    update={
        "model": Airbench(widths=(8, 12)),
        "optimizer": Muon(),
        "schedule": Linear(),
        "loss": Loss(reduction="sum"),
    }
)


def test_the_network_is_as_large_as_published() -> None:
    rows = describe_model(build_model(get_recipe("airbench94").model, 10))
    assert 3 * 2 * sum(row["multiply_adds"] for row in rows) == pytest.approx(0.71e9, rel=0.01)
    shapes = {row["name"]: row["output_shape"] for row in rows}
    assert (
        shapes["whiten"] == [24, 31, 31]
        and shapes["groups.2.convs.0"] == [256, 7, 7]
        and shapes["pool"] == [256, 1, 1]
    )


def test_the_fast_recipes_end_with_whole_pictures_all_of_them_and_are_judged_with_views() -> None:
    for name in ("fast94", "fast95", "fast96"):
        recipe = get_recipe(name)
        assert recipe.test_time_views == "mirror-shift" and recipe.device.precision == "auto"
        assert (
            recipe.epochs > len(recipe.data.training_scales)
            and [1.0, *recipe.data.training_scales][-1] == 1.0
            and [1.0, *recipe.data.training_crops][-1] == 1.0
            and [0.0, *recipe.data.training_skips][-1] == 0.0
        )


def test_whitened_patches_are_uncorrelated_with_unit_variance() -> None:
    torch.manual_seed(0)
    smooth = nn.functional.avg_pool2d(torch.randn(200, 3, 20, 20), 3, stride=1)
    layer = Whitening(3, 2)
    layer.fit(smooth)
    with torch.no_grad():
        layer.bias.zero_()
        values = layer(smooth).movedim(1, -1).reshape(-1, 24).double()
    moments = values.T @ values / len(values)
    assert torch.allclose(moments[:12, :12], torch.eye(12).double(), atol=0.05)
    assert torch.allclose(values[:, :12], -values[:, 12:])


def test_first_filters_pass_channels_on_and_batch_norm_has_no_scale() -> None:
    model = build_model(Airbench(widths=(32, 40)), 10)
    assert isinstance(model, AirbenchNet)
    convolution = model.get_submodule("groups.0.convs.1")
    images = torch.randn(2, 32, 6, 6)
    assert torch.equal(convolution(images), images)
    norm = model.get_submodule("groups.0.norms.0")
    assert [name for name, _ in norm.named_parameters()] == ["bias"]
    assert norm.eps == 1e-12 and norm.momentum == pytest.approx(0.4)


def test_the_whitening_bias_is_trained_for_its_epochs_alone() -> None:
    model = build_model(Airbench(whitening_bias_epochs=3), 10)
    trained = []
    for epoch in range(5):
        freeze_whitening_bias(model, epoch)
        trained.append(dict(model.named_parameters())["whiten.bias"].requires_grad)
    assert trained == [True, True, True, False, False]


def test_pictures_too_small_are_refused() -> None:
    with pytest.raises(UserError, match="airbench with 3 groups needs at least 9x9 pixels, 8x8 given"):
        build_model(Airbench(), 10, (3, 8, 8))
    assert build_model(Airbench(), 10, (3, 9, 9)).eval()(torch.rand(1, 3, 9, 9)).shape == (1, 10)


@pytest.mark.parametrize("shape", [(16, 100), (100, 16), (30, 30)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    matrix = torch.randn(shape)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    result = orthogonalise(matrix, steps=5)
    singular = torch.linalg.svdvals(result)
    assert singular.min() > 0.3 and singular.max() < 1.3
    nearest = left @ right
    assert (result * nearest).sum() / (result.norm() * nearest.norm()) > 0.95


def test_muon_is_for_filters_alone_whatever_the_rates() -> None:
    rate = 0.24
    groups = build_optimizer(
        Muon(learning_rate=rate, head_learning_rate=rate), build_model(SMALL.model, 3), torch.device("cpu")
    ).param_groups
    assert [group["orthogonalise_steps"] > 0 for group in groups] == [True, False, False]
    with pytest.raises(UserError, match=r"finetune\.block_factor is not for optimizer\.name=muon"):
        override(get_recipe("airbench94"), {"finetune.block_factor": 0.5})


def test_muon_steps_are_those_of_the_published_code() -> None:
    """Two steps, written out as in airbench94_muon.py."""
    torch.manual_seed(2)
    spec = Muon()
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(6, 4, bias=False))
    filters, bias, head = (parameter.detach().clone() for parameter in model.parameters())
    optimizer = build_optimizer(spec, model, torch.device("cpu"))
    buffers = [torch.zeros_like(filters), torch.zeros_like(bias), torch.zeros_like(head)]
    for step, rate in enumerate((0.24, 0.12)):
        gradients = [torch.randn_like(parameter) for parameter in (filters, bias, head)]
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient.clone()
        set_learning_rate(optimizer, spec, rate, step)
        optimizer.step()

        buffers[0] = 0.6 * buffers[0] + gradients[0]
        filters = filters * (6**0.5 / filters.norm())
        update = orthogonalise((gradients[0] + 0.6 * buffers[0]).reshape(6, -1), 3)
        filters = filters - rate * update.view_as(filters)
        for index, base in ((1, 0.053), (2, 0.67)):
            value = (bias, head)[index - 1]
            gradient = gradients[index] + 0.004 / base * value
            buffers[index] = 0.85 * buffers[index] + gradient
            value = value - base * rate / 0.24 * (gradient + 0.85 * buffers[index])
            bias, head = (value, head) if index == 1 else (bias, value)
    for parameter, expected in zip(model.parameters(), (filters, bias, head), strict=True):
        torch.testing.assert_close(parameter.detach(), expected)


def test_the_loss_may_be_summed_for_the_gradient() -> None:
    gradients = {}
    for reduction in ("mean", "sum"):
        job = prepare(SMALL.model_copy(update={"loss": Loss(reduction=reduction)}), tiny_source())
        images, labels = next(job.stream.from_step(0))
        loss, _ = train_step(job, images, labels, 0, 1e-9)
        gradients[reduction] = loss, dict(job.model.named_parameters())["head.weight"].grad
    assert torch.equal(gradients["mean"][0], gradients["sum"][0])
    torch.testing.assert_close(gradients["mean"][1] * 32, gradients["sum"][1])


def test_a_resumed_training_ends_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_source(monkeypatch, tiny_source)
    update = {
        "model": Airbench(widths=(8, 12), whitening_bias_epochs=1),
        "data": Data(training_scales=(0.5, 0.625, 1.0), training_crops=(1.0, 0.9)),
    }
    recipe = SMALL.model_copy(update=update)
    job = prepare(recipe)
    whole = start(job, tmp_path / "whole")
    assert len([event for event in fit(job, whole) if isinstance(event, EpochDone)]) == 3
    job = prepare(recipe)
    run = start(job, tmp_path / "parts")
    for event in fit(job, run):
        if isinstance(event, EpochDone):
            break
    assert len([event for event in fit(*reopen(run.path)) if isinstance(event, EpochDone)]) == 2
    for name in ("weights-last.safetensors", "weights-best.safetensors"):
        assert (whole.path / name).read_bytes() == (run.path / name).read_bytes()
    side, pictures = whole.data["input_shape"][1], whole.data["n_train"]
    sides = [round(part * round(scale * side)) for scale, part in ((0.5, 1.0), (0.625, 0.9), (1.0, 0.9))]
    costs = [[row["multiply_adds"] for row in describe_model(job.model, (3, each, each))] for each in sides]
    assert training_operations(whole, job.model) == 2 * pictures * sum(
        3 * sum(each) - each[0] for each in costs
    )
