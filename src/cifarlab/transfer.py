"""Transfer: beginning with the weights of an earlier run, freezing layers, and slower rates for earlier blocks.

What is frozen is a pure function of the recipe and the epoch, so that a resumed training needs nothing stored for it.
"""

from fnmatch import fnmatchcase

import torch
from torch import nn

from cifarlab.errors import UserError, nearest, one_of
from cifarlab.recipe import Finetune, Recipe
from cifarlab.recipes import RECIPES
from cifarlab.run import Run
from cifarlab.shipped_run import base_run


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """Every layer that computes, by name, in the order of the network."""
    return {name: layer for name, layer in model.named_modules() if not list(layer.children())}


def block_of(layer_name: str) -> str:
    """`block5` of `block5_conv1`, `groups.1` of `groups.1.norms.0`."""
    first, _, rest = layer_name.partition(".")
    number = rest.partition(".")[0]
    return f"{first}.{number}" if number.isdecimal() else first.partition("_")[0]


def blocks_of(model: nn.Module) -> tuple[list[str], list[str]]:
    """The names of the blocks that have parameters, in order: those down to the last convolution, and the head.

    In a network without convolutions the head is the last layer.
    """
    with_parameters = {name: layer for name, layer in layers_of(model).items() if list(layer.parameters())}
    blocks = list(dict.fromkeys(map(block_of, with_parameters)))
    convolutional = [
        block_of(name) for name, layer in with_parameters.items() if isinstance(layer, nn.Conv2d)
    ]
    body = blocks.index(convolutional[-1]) + 1 if convolutional else len(blocks) - 1
    return blocks[:body], blocks[body:]


# What is frozen


def frozen_layers(settings: Finetune, model: nn.Module, epoch: float) -> set[str]:
    """Names of the layers that do not change in `epoch`, counted from 0; `math.inf` for those that never change.

    Raises:
        UserError: when a pattern or name fits no layer, or nothing is left to train.
    """
    names = list(layers_of(model))
    frozen = {name for pattern in settings.freeze for name in _matching(pattern, names, model)}
    if settings.unfreeze is not None:
        trained_from = _first_trained(settings, model, names, epoch)
        frozen = {name for name in frozen if names.index(name) < trained_from}
    if all(name in frozen or not list(layer.parameters()) for name, layer in layers_of(model).items()):
        raise UserError(f"finetune.freeze={', '.join(settings.freeze)} leaves nothing to train")
    return frozen


def _first_trained(settings: Finetune, model: nn.Module, names: list[str], epoch: float) -> int:
    """The place among `names` from which on everything is trained in `epoch`."""
    assert settings.unfreeze is not None
    lowest = names.index(_matching(settings.unfreeze, names, model)[0])
    if settings.unfreeze_every_epochs is None:
        return lowest
    body, head = blocks_of(model)
    thawing = [block for block in body if any(block_of(name) == block for name in names[lowest:])]
    thawed = int(min(epoch / settings.unfreeze_every_epochs, len(thawing)))
    first_block = (thawing + head[:1])[len(thawing) - thawed]
    first_place = next(place for place, name in enumerate(names) if block_of(name) == first_block)
    return max(lowest, first_place)


def _matching(pattern: str, names: list[str], model: nn.Module) -> list[str]:
    found = [name for name in names if fnmatchcase(name, pattern) or fnmatchcase(block_of(name), pattern)]
    if not found:
        with_parameters = [name for name, layer in layers_of(model).items() if list(layer.parameters())]
        raise UserError(
            f"'{pattern}' is no layer or block of this network{nearest(pattern, names)}; its layers with weights are"
            f" {', '.join(with_parameters)}"
        )
    return found


def freeze(model: nn.Module, frozen: set[str]) -> None:
    """Train the other layers of `model`, and only those; frozen ones behave as in use (batch norm, dropout)."""
    for name, layer in layers_of(model).items():
        layer.requires_grad_(name not in frozen)
        layer.train(name not in frozen)


def freeze_for_epoch(settings: Finetune, model: nn.Module, epoch: float) -> None:
    """`freeze` what `settings` says for `epoch`, counted from 0. Raises UserError as `frozen_layers` does."""
    if settings.freeze:
        freeze(model, frozen_layers(settings, model, epoch))


def rate_factors(settings: Finetune, model: nn.Module) -> dict[str, float]:
    """What each parameter's learning rate is multiplied by: 1 in the head, `block_factor` once more for each block
    before it (discriminative fine-tuning, arXiv 1801.06146, section 3.1)."""
    body, _ = blocks_of(model)
    factors = {block: settings.block_factor ** (len(body) - place) for place, block in enumerate(body)}
    return {name: factors.get(block_of(name), 1.0) for name, _ in model.named_parameters()}


# Beginning with the weights of a run


def open_base(recipe: Recipe) -> Run | None:
    """The run that `recipe` begins with, where it names one.

    Raises:
        UserError: when it is not there, its network is of another family, or was trained on pictures prepared in
            another way.
    """
    if recipe.finetune.init_from is None:
        return None
    run = base_run(recipe.finetune.init_from)
    _check_family(recipe, run)
    theirs, ours = run.recipe.data.preparation, recipe.data.preparation
    if theirs != ours:
        raise UserError(
            f"the network of {run.path} was trained with data.preparation={theirs}, and this recipe has {ours}:"
            f" --set data.preparation={theirs}"
        )
    return run


def _check_family(recipe: Recipe, run: Run) -> None:
    theirs, ours = run.recipe.model, recipe.model
    if theirs.name != ours.name:
        same = [name for name, other in RECIPES.items() if other.model == theirs]
        raise UserError(
            f"{run.path} cannot be the base: its network is of the family {theirs.name}, and that of {recipe.name} is"
            f" of {ours.name}" + (f"; it suits {one_of(same, 'and')}" if same else "")
        )


def begin_with(model: nn.Module, run: Run, classes: tuple[str, ...], frozen: set[str]) -> list[str]:
    """Give `model` the weights of `run`, those its recipe names; the layers of the head that began anew.

    Layers of the head may differ from the run's; the output is new where the classes are others.

    Raises:
        UserError: when another layer does not fit, or a new one would be frozen as it is.
    """
    tensors, header = run.load_weights()
    head = blocks_of(model)[1]
    output = [name for name, layer in layers_of(model).items() if list(layer.parameters())][-1]
    new = []
    for name, layer in layers_of(model).items():
        own = layer.state_dict()
        theirs = {key: tensors[f"{name}.{key}"] for key in own if f"{name}.{key}" in tensors}
        fits = all(key in theirs and theirs[key].shape == own[key].shape for key in own)
        if fits and not (name == output and tuple(header["classes"]) != classes):
            layer.load_state_dict(theirs)
        elif block_of(name) not in head:
            raise UserError(f"{run.path} cannot be the base: {_misfit(name, own, theirs)}")
        else:
            new.append(name)
    if unready := [name for name in new if name in frozen]:
        raise UserError(f"{unready[0]} cannot be frozen: it begins anew, for {run.path} has none that fits")
    return new


def _misfit(name: str, own: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> str:
    for key, tensor in own.items():
        if key not in theirs:
            return f"it has no layer {name} with a {key}"
        if theirs[key].shape != tensor.shape:
            return f"{name}.{key} is {_shape(theirs[key])} in it and {_shape(tensor)} here"
    raise AssertionError(name)


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"
