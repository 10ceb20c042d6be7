"""What is computed again for a gradient is what it was, and is not kept until then."""

import copy
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cifarlab.kernels import again, convolve, kernels_here, normalise, own_kernels, run_operations
from cifarlab.models import build_model
from cifarlab.models.specs import Airbench

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not kernels_here(), reason="no kernels")


def network() -> nn.Module:
    torch.manual_seed(0)
    spec = Airbench(widths=(32, 64), convolutions=2)
    return build_model(spec, 10, (3, 32, 32)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def images() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(16, 3, 32, 32).to(memory_format=torch.channels_last)


def gradients(model: nn.Module, *, precision: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """And what the layers keep."""
    model = copy.deepcopy(model)
    nn.init.normal_(model.get_buffer("whiten.weight"), std=0.5)
    with own_kernels(CPU), torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        logits = model(images())
    logits.float().square().sum().backward()
    found = {name: part.grad for name, part in model.named_parameters() if part.grad is not None}
    return {"logits": logits.detach(), **found, **dict(model.named_buffers())}


def say_so_of_all(patch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Outputs of any size are computed again, each time noted here."""
    patch.setattr(again, "LEAST_BYTES", 0)
    noted, say_how = [], again.say_how

    def noting(output: Tensor, how: Any, values: Tensor, *others: Any) -> Tensor:
        def compute(*given: Any) -> Tensor:
            noted.append(tuple(output_shape))
            return how(*given)

        output_shape = output.shape
        return say_how(output, compute, values, *others)

    for module in ("normalisation", "whitening"):
        patch.setattr(f"cifarlab.kernels.{module}.say_how", noting)
    return noted


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias_trained", [True, False])
def test_it_changes_no_bit(
    precision: torch.dtype, bias_trained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network()
    model.get_parameter("whiten.bias").requires_grad_(bias_trained)
    torch.manual_seed(2)
    kept = gradients(model, precision=precision)
    noted = say_so_of_all(monkeypatch)
    torch.manual_seed(2)
    found = gradients(model, precision=precision)
    assert ("whiten.bias" in found) == bias_trained
    assert found.keys() == kept.keys()
    for name, wanted in kept.items():
        assert torch.equal(found[name], wanted), name
    if precision == torch.float32:
        assert (16, 24, 31, 31) in noted and (16, 32, 15, 15) in noted
        assert len(noted) == len(set(noted)) + 1  # once each: two layers have the same shape


def test_the_gradients_are_pytorchs_but_for_rounding() -> None:
    model = network()
    torch.manual_seed(2)
    found = gradients(model)
    exact = copy.deepcopy(model)
    torch.manual_seed(2)
    nn.init.normal_(exact.get_buffer("whiten.weight"), std=0.5)
    exact = exact.double()
    exact(images().double()).square().sum().backward()
    for name, part in exact.named_parameters():
        difference = (found[name].double() - part.grad).norm() / part.grad.norm()  # type: ignore[union-attr]
        assert difference < 1e-3, name


def kept_bytes(patch: pytest.MonkeyPatch) -> int:
    """Of all that is kept, within hooks of ours and without."""
    kept: list[int] = []

    def noting(pack: Any, unpack: Any) -> Any:
        def note(tensor: Tensor) -> Any:
            packed = pack(tensor)
            kept.append(0 if packed is None else tensor.nbytes)
            return packed

        return torch.autograd.graph.saved_tensors_hooks(note, unpack)

    patch.setattr(again, "saved_tensors_hooks", noting)
    with noting(lambda tensor: tensor, lambda tensor: tensor), own_kernels(CPU):
        network()(images())
    return sum(kept)


def test_what_is_computed_again_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    of_all = kept_bytes(monkeypatch)
    monkeypatch.undo()
    monkeypatch.setattr(again, "LEAST_BYTES", 0)
    whitened, groups = 24 * 31 * 31, 32 * 15 * 15 + 64 * 7 * 7  # the last one's goes to a pool
    assert of_all - kept_bytes(monkeypatch) >= 4 * 16 * (whitened + 2 * groups - 64 * 7 * 7)


def test_pictures_are_not_kept_for_weights_that_are_not_trained() -> None:
    conv = nn.Conv2d(32, 32, 3, padding=1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    pictures = torch.randn(4, 32, 16, 16).to(memory_format=torch.channels_last).requires_grad_()
    gradients = []
    for trained in (True, False):
        conv.requires_grad_(trained)
        values = pictures * 1
        with own_kernels(CPU):
            output = run_operations(values, [(convolve, conv)])
        kept = output.grad_fn.saved_tensors[0]  # type: ignore[union-attr]
        assert (kept is not None) == trained
        gradients += torch.autograd.grad(output.square().sum(), pictures)
    torch.testing.assert_close(*gradients)


CHANGES = {
    "relu_": (nn.ReLU(inplace=True),),
    "elu_": (nn.ELU(inplace=True),),
    "mul_": (lambda values: values.mul_(2.0),),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_output_that_is_changed_in_place_is_kept(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(32)
    conv = nn.Conv2d(32, 32, 3, padding=1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    given, found = torch.randn(4, 32, 16, 16).to(memory_format=torch.channels_last), []
    for least in (0, 1 << 40):
        monkeypatch.setattr(again, "LEAST_BYTES", least)
        conv.zero_grad()
        norm.zero_grad()
        with own_kernels(CPU):
            output = run_operations(given, [(normalise, norm), CHANGES[change], (convolve, conv)])
        output.square().sum().backward()
        found.append([part.grad.clone() for part in (conv.weight, norm.weight, norm.bias)])  # type: ignore[union-attr]
    assert all(torch.equal(*parts) for parts in zip(*found, strict=True))


@pytest.mark.parametrize("changed", ["what it is computed from", "what is kept beside it"])
def test_a_gradient_from_what_was_changed_in_place_is_refused(
    changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(again, "LEAST_BYTES", 0)
    norm, given = nn.BatchNorm2d(32), torch.randn(4, 32, 16, 16).to(memory_format=torch.channels_last)
    conv = nn.Conv2d(32, 32, 3, padding=1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with own_kernels(CPU):
        output = run_operations(given, [(normalise, norm), (convolve, conv)])
    with torch.no_grad():
        (given if changed == "what it is computed from" else conv.weight).mul_(2.0)
    with pytest.raises(RuntimeError, match="changed in place"):
        output.sum().backward()


def test_a_gradient_frees_what_it_was_computed_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(again, "LEAST_BYTES", 0)
    model, prepared = network(), images()
    with own_kernels(CPU):
        logits = model(prepared)
    alive = weakref.ref(prepared)
    del prepared
    logits.sum().backward()
    del logits
    assert alive() is None
