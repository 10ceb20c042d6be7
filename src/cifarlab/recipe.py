"""A recipe: every number that decides a result, as checked, typed, immutable data.

A recipe round-trips through JSON, is stored in the run it made, and any field of it can be overridden by its dotted
name (`optimizer.learning_rate`). Nothing here imports torch.
"""

import difflib
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from cifarlab.errors import UserError, nearest, one_of
from cifarlab.models.specs import MLP, VGG, VGG16, Airbench, AlexNet, ModelSpec, ResNet

Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Epochs = Annotated[int, Field(ge=1, le=100_000)]


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Published(Part):
    """What the source reports. Accuracies are 0..1."""

    accuracy: float = Field(ge=0.0, le=1.0)
    split: Literal["test", "validation"] = "test"
    epochs: int
    loss: float | None = None


class Input(Part):
    """The size of the pictures that the network sees, and how pictures of another shape come to it."""

    size: Annotated[int, Field(ge=32, le=224)] | None = Field(
        default=None,
        description="pixels a side; none: that of the data set, which is 32 for picture files. Setting it adapts the"
        " recipe: networks of blocks get one more for each doubling of 32, and what is counted in pixels grows",
    )
    fit: Literal["squash", "crop", "letterbox"] = Field(
        default="squash",
        description="squash: height and width each to the size; crop: the largest square in the middle; letterbox: the"
        " whole picture between grey bars",
    )


class Data(Part):
    """How pictures become inputs, and where validation pictures come from."""

    preparation: Literal[
        "scale", "center", "standardize", "standardize-channels", "imagenet-bgr", "imagenet-rgb"
    ] = Field(
        default="scale",
        description="scale: pixels / 255; center: minus each channel's mean as well; standardize: one mean and one"
        " deviation over all training pixels and channels; standardize-channels: one of each for every channel;"
        " imagenet-bgr: blue, green, red minus ImageNet's means, as Keras's VGG16 was trained; imagenet-rgb: minus"
        " ImageNet's means, over its deviations, as torchvision's networks were trained",
    )
    validation: Literal["stratified", "first", "last", "none", "test", "fold"] = Field(
        default="stratified",
        description="'test' uses the test set as some write-ups did; every output then says so; 'fold': one part of"
        " a cross-validation, which is judged and chooses nothing (`train --folds` trains them all)",
    )
    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        default=0.1, description="of the training set"
    )
    validation_images: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="beats validation_fraction"
    )
    validation_seed: Annotated[int, Field(ge=0)] = Field(
        default=2020, description="of the stratified cut and of the folds, apart from `seed`"
    )
    folds: Annotated[int, Field(ge=2, le=1000)] = Field(
        default=5, description="parts of a cross-validation; only with validation = fold"
    )
    fold: Annotated[int, Field(ge=0)] = Field(
        default=0, description="the part to validate on, from 0 to folds - 1; only with validation = fold"
    )
    training_scales: tuple[Annotated[float, Field(gt=0.0, le=2.0)], ...] = Field(
        default=(),
        description="height and width of the training pictures, as parts of those that they are judged at: one for"
        " each pass over the data (for as many steps as a pass over all of it has), the last for all that follow"
        " (progressive resizing); empty: 1",
    )
    training_crops: tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...] = Field(
        default=(),
        description="height and width that are left of the scaled training pictures, their edges cut off after"
        " augmentation, as parts of theirs, counted like training_scales; empty: 1",
    )
    training_skips: tuple[Annotated[float, Field(ge=0.0, le=0.5)], ...] = Field(
        default=(),
        description="part of the pictures that a pass over the data leaves out, counted like training_scales by the"
        " step that the pass begins with: drawn at random from the half with the lowest loss when trained on last,"
        " rounded to whole batches; an epoch keeps its number of steps, so that passes are shorter and there are more"
        " of them; empty: none",
    )
    sampling: Literal["shuffled", "balanced"] = Field(
        default="shuffled",
        description="which training pictures a pass over the data takes: shuffled: each once; balanced: as many"
        " pictures as there are, the same number of each class, drawn anew for every pass: of large classes some, those"
        " of small ones several times",
    )
    steps_per_epoch: Literal["ceil", "floor"] | Annotated[int, Field(ge=1)] = Field(
        default="ceil",
        description="images / batch_size rounded up, or down: with floor, passes over the data drift against epochs"
        " as with Keras's steps_per_epoch = n // batch_size over an endless stream; or that many steps of the stream,"
        " whatever part of a pass, or number of passes, they are",
    )

    @field_validator("steps_per_epoch", mode="before")
    @classmethod
    def steps_are_named_or_counted(cls, value: Any) -> Any:
        if value in ("ceil", "floor") or (type(value) is int and value >= 1):
            return value
        raise ValueError(f"should be ceil, floor or a whole number from 1, {value!r} given")

    @model_validator(mode="after")
    def fold_is_one_of_the_folds(self) -> "Data":
        if self.fold >= self.folds:
            raise ValueError(f"of {self.folds} folds there are 0 to {self.folds - 1}, fold {self.fold} given")
        return self

    @model_validator(mode="after")
    def balance_is_kept(self) -> "Data":
        if any(self.training_skips) and self.sampling == "balanced":
            raise ValueError(
                "data.training_skips would leave out the small classes that data.sampling=balanced repeats: give"
                " data.training_skips=[] with it"
            )
        return self

    @property
    def may_choose(self) -> bool:
        """Whether validation pictures may choose weights or an end: not the test set, not a fold that is judged."""
        return self.validation not in ("none", "test", "fold")


class Augment(Part):
    """Random changes of training pictures: one affine map about the picture's centre, then crop, flip and cutout."""

    shift: Fraction = Field(
        default=0.0, description="largest shift, as a fraction of height and of width, real-valued"
    )
    rotation: Annotated[float, Field(ge=0.0, le=180.0)] = Field(
        default=0.0, description="largest rotation, degrees"
    )
    zoom: Fraction = Field(
        default=0.0, description="largest change of scale: factor drawn from 1 - zoom to 1 + zoom"
    )
    crop_padding: Annotated[int, Field(ge=0, le=64)] = Field(
        default=0, description="pixels reflected beyond each edge before a crop at random, in whole pixels"
    )
    flip: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.0, description="probability of a horizontal flip"
    )
    flip_rule: Literal["random", "alternating"] = Field(
        default="random",
        description="alternating: drawn once for each picture and then toggled in every pass (arXiv 2404.00498)",
    )
    cutout: Annotated[int, Field(ge=0, le=224)] = Field(
        default=0, description="pixels a side of a square set to the mean colour (arXiv 1708.04552)"
    )

    copies: Annotated[int, Field(ge=1, le=64)] = Field(
        default=1,
        description="of each picture in a batch, each changed in its own way: a batch has batch_size times as many"
        " (arXiv 1901.09335); for small training sets",
    )

    @model_validator(mode="after")
    def copies_differ(self) -> "Augment":
        if self.copies > 1 and self.changes_nothing:
            raise ValueError(
                "augment.copies needs a change that makes them differ, such as augment.shift or augment.flip"
            )
        return self

    @property
    def changes_nothing(self) -> bool:
        return not (self.shift or self.rotation or self.zoom or self.crop_padding or self.flip or self.cutout)


class SGD(Part):
    name: Literal["sgd"] = "sgd"
    learning_rate: Positive = 0.01
    momentum: Fraction = 0.0
    nesterov: bool = False
    weight_decay: NonNegative = Field(
        default=0.0, description="coupled, on kernels only (not on biases or batch norm)"
    )
    clip_norm: Positive | None = Field(default=None, description="largest norm of the whole gradient")

    @model_validator(mode="after")
    def nesterov_needs_momentum(self) -> "SGD":
        if self.nesterov and self.momentum == 0.0:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class RMSprop(Part):
    """Keras's rule, which is one of two."""

    name: Literal["rmsprop"] = "rmsprop"
    learning_rate: Positive = 0.001
    rho: Fraction = 0.9
    epsilon: Positive = 1e-7
    epsilon_place: Literal["outside-root", "inside-root"] = Field(
        default="outside-root", description="outside: Keras 2's, and PyTorch's; inside: Keras 3's"
    )
    weight_decay: NonNegative = Field(default=0.0, description="coupled, on kernels only")
    clip_norm: Positive | None = None


class Adam(Part):
    """Keras's rule: epsilon outside the bias correction ("epsilon hat" of the paper, arXiv 1412.6980, section 2)."""

    name: Literal["adam"] = "adam"
    learning_rate: Positive = 0.001
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.999
    epsilon: Positive = 1e-7
    weight_decay: NonNegative = Field(default=0.0, description="coupled, on kernels only")
    clip_norm: Positive | None = None


class AdamW(Part):
    """Adam with weight decay decoupled from the gradient (arXiv 1711.05101), PyTorch's rule."""

    name: Literal["adamw"] = "adamw"
    learning_rate: Positive = 0.001
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.999
    epsilon: Positive = 1e-8
    weight_decay: NonNegative = Field(default=0.01, description="decoupled, on kernels only")
    clip_norm: Positive | None = None


class Muon(Part):
    """Muon on the filters of convolutions, SGD with Nesterov momentum on all else (K. Jordan, "Muon", 2024).

    Each filter tensor is brought to the norm sqrt(filters) before its step, and its update is the momentum's nearest
    (semi-)orthogonal matrix, by Newton-Schulz steps.
    """

    name: Literal["muon"] = "muon"
    learning_rate: Positive = Field(default=0.24, description="of the filters")
    momentum: Fraction = Field(default=0.6, description="of the filters, Nesterov's")
    newton_schulz_steps: Annotated[int, Field(ge=1, le=20)] = 3
    bias_learning_rate: Positive = Field(
        default=0.053, description="of biases, for a loss summed over the batch"
    )
    head_learning_rate: Positive = Field(
        default=0.67, description="of dense layers, for a loss summed over the batch"
    )
    other_momentum: Fraction = Field(default=0.85, description="of biases and dense layers, Nesterov's")
    weight_decay: NonNegative = Field(
        default=0.004,
        description="of biases and dense layers: the part of them that a step at the full rate takes",
    )
    clip_norm: Positive | None = None


Optimizer = Annotated[Union[SGD, RMSprop, Adam, AdamW, Muon], Field(discriminator="name")]


class Constant(Part):
    name: Literal["constant"] = "constant"


class Step(Part):
    """The rate times `factors[i]` from epoch `epochs[i]` on (epochs counted from 0), over 1 + decay_per_step * step."""

    name: Literal["step"] = "step"
    epochs: tuple[Epochs, ...] = Field(min_length=1)
    factors: tuple[NonNegative, ...] = Field(min_length=1)
    decay_per_step: NonNegative = 0.0

    @model_validator(mode="after")
    def epochs_rise_and_match(self) -> "Step":
        if len(self.epochs) != len(self.factors):
            raise ValueError(
                f"needs one factor for each epoch: {len(self.epochs)} epochs, {len(self.factors)} factors"
            )
        if list(self.epochs) != sorted(set(self.epochs)):
            raise ValueError(f"epochs must rise, {list(self.epochs)} given")
        return self


class InverseTime(Part):
    """rate / (1 + decay_per_step * step): Keras's `decay`."""

    name: Literal["inverse-time"] = "inverse-time"
    decay_per_step: NonNegative = 1e-6


class Cosine(Part):
    """Half a cosine from the rate to rate * final_factor (arXiv 1608.03983), after a linear warm-up.

    With `restart_epochs` the cosine starts again after that many epochs, each cycle `restart_multiplier` times as long
    as the one before; without, it spans the whole run.
    """

    name: Literal["cosine"] = "cosine"
    warmup_epochs: NonNegative = 0.0
    final_factor: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    restart_epochs: Epochs | None = None
    restart_multiplier: Annotated[int, Field(ge=1, le=10)] = 1


class Cyclical(Part):
    """Triangular: from the rate up to rate * peak_factor and back, `cycle_epochs` a cycle (arXiv 1506.01186)."""

    name: Literal["cyclical"] = "cyclical"
    cycle_epochs: Positive = 8.0
    peak_factor: Annotated[float, Field(ge=1.0)] = 6.0


class OneCycle(Part):
    """rate / start_divisor up to the rate, then down to rate / final_divisor, in half cosines (arXiv 1708.07120)."""

    name: Literal["one-cycle"] = "one-cycle"
    warmup_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.3
    start_divisor: Annotated[float, Field(ge=1.0)] = 25.0
    final_divisor: Annotated[float, Field(ge=1.0)] = 10_000.0


class Linear(Part):
    """A linear warm-up, then a straight line to rate * final_factor at the end of the run."""

    name: Literal["linear"] = "linear"
    warmup_epochs: NonNegative = 0.0
    final_factor: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0


class Plateau(Part):
    """The rate times `factor` whenever validation loss has not fallen by min_delta for `patience` epochs."""

    name: Literal["plateau"] = "plateau"
    factor: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    patience_epochs: Epochs = 10
    min_delta: NonNegative = 1e-4
    minimum_factor: NonNegative = 0.0


Schedule = Annotated[
    Union[Constant, Step, InverseTime, Cosine, Cyclical, OneCycle, Linear, Plateau],
    Field(discriminator="name"),
]


class Regularization(Part):
    l2: NonNegative = Field(
        default=0.0, description="c of c * sum(w^2), added to the loss that is trained and shown"
    )
    l2_layers: Literal["hidden", "convolutions", "all"] = Field(
        default="hidden", description="hidden: all but the last layer"
    )


class Loss(Part):
    label_smoothing: Fraction = 0.0
    class_weights: Literal["none", "balanced"] | tuple[Positive, ...] = Field(
        default="none",
        description="of each picture's loss in training, by its class: balanced: pictures / (classes * pictures of"
        " the class), so that every class weighs the same in all; or a list with a weight for each class, in order;"
        " the training loss that is shown has them, the validation loss has not",
    )
    reduction: Literal["mean", "sum"] = Field(
        default="mean", description="over the batch, for the gradient; the loss that is shown is the mean"
    )

    @field_validator("class_weights", mode="before")
    @classmethod
    def weights_are_named_or_listed(cls, value: Any) -> Any:
        if value in ("none", "balanced") or isinstance(value, list | tuple):
            return value
        raise ValueError(f"should be none, balanced or a list of numbers, {value!r} given")


class EMA(Part):
    """An exponential moving average of the weights, used in place of them for validation and saved weights."""

    decay: Fraction | None = Field(default=None, description="none for no average")


class EarlyStopping(Part):
    patience_epochs: Epochs | None = Field(
        default=None, description="epochs without a lower validation loss; none: never stop"
    )
    min_delta: NonNegative = 0.0


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Finetune(Part):
    """Going on from weights that are there already: what stays as it is, and how fast the rest learns.

    A block is the layers whose names begin alike: block5_conv1, block5_conv2, ... are block5. What follows the last
    block with a convolution is the head. Frozen layers behave as in use: batch norm with its stored statistics,
    dropout off.
    """

    init_from: str | None = Field(
        default=None,
        description="a run to begin with the weights of, or shipped: those of the package; layers of the head that do"
        " not fit, and the output where the classes are others, begin anew",
    )
    freeze: Annotated[tuple[str, ...], BeforeValidator(_as_list)] = Field(
        default=(),
        description="layers that stay as they are: names of layers or blocks, or patterns as block*",
    )
    unfreeze: str | None = Field(
        default=None, description="a block or layer: from it on, nothing is frozen whatever freeze says"
    )
    unfreeze_every_epochs: Epochs | None = Field(
        default=None,
        description="gradually: first the head alone, then one block more after every so many epochs, from the last"
        " down to unfreeze (arXiv 1801.06146, section 3.3); none: all of them from the start",
    )
    block_factor: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        default=1.0,
        description="a block's learning rate over that of what follows it; the head has the full rate"
        " (discriminative rates: arXiv 1801.06146, section 3.1)",
    )

    @model_validator(mode="after")
    def unfreezing_has_something_to_thaw(self) -> "Finetune":
        if self.unfreeze is not None and not self.freeze:
            raise ValueError("unfreeze needs freeze: nothing is frozen, so all is trained")
        if self.unfreeze_every_epochs is not None and self.unfreeze is None:
            raise ValueError("unfreeze_every_epochs needs unfreeze: the block to go down to")
        return self


class Device(Part):
    """Where and how the arithmetic is done."""

    name: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["float32", "bfloat16", "auto"] = Field(
        default="float32",
        description="bfloat16: mixed precision by autocast; auto: that where the hardware multiplies it, else float32",
    )
    channels_last: bool = True
    deterministic: bool = Field(
        default=False, description="on CUDA, at some cost in speed; on CPU runs always are"
    )
    threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        default=None, description="CPU threads; none: all cores"
    )
    winograd: bool = Field(
        default=True,
        description="on CPU, train by our own kernels"
        " (Winograd's convolutions, dense layers, batch norm, pools, ELU, optimisers)",
    )


OWN_SIZE = 32  # pixels a side: of CIFAR-10, and of picture files where `input.size` is none
MOST_BLOCKS = 5
WORDS = ("source", "notes", "network", "published", "parameters", "trainable_parameters")  # decide no result


class Recipe(Part):
    """A complete experiment. See the parts for units and ranges."""

    name: str
    source: str = Field(description="where the method comes from: author, title, year")
    notes: str = Field(default="", description="what was reconstructed, and what a reader must know")
    published: Published | None = None
    network: str = Field(description="the network in short, for people")
    parameters: int | None = Field(
        default=None, description="of the recipe's own network, as Keras counts them"
    )
    trainable_parameters: int | None = Field(
        default=None, description="without batch norm's running statistics"
    )
    model: ModelSpec
    input: Input = Input()
    data: Data = Data()
    augment: Augment = Augment()
    optimizer: Optimizer = SGD()
    schedule: Schedule = Constant()
    regularization: Regularization = Regularization()
    loss: Loss = Loss()
    ema: EMA = EMA()
    early_stopping: EarlyStopping = EarlyStopping()
    finetune: Finetune = Finetune()
    weights: Literal["best", "last"] = Field(
        default="best",
        description="which `evaluate` takes: those of the lowest validation loss, or of the last epoch; always the"
        " last where validation is none, test or fold",
    )
    test_time_views: Literal["none", "mirror", "mirror-shift"] = Field(
        default="none",
        description="copies of each picture that `evaluate` averages the answers over, for a second figure beside the"
        " plain one: mirror: it and its mirror image; mirror-shift: both, and both moved by a pixel up and left, and"
        " down and right, six in all (arXiv 2404.00498)",
    )
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 64
    epochs: Epochs = 100
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    device: Device = Device()

    @model_validator(mode="after")
    def muon_has_rates_of_its_own(self) -> "Recipe":
        if self.optimizer.name == "muon" and self.finetune.block_factor != 1.0:
            raise ValueError("finetune.block_factor is not for optimizer.name=muon: leave one of them out")
        return self

    @model_validator(mode="after")
    def watched_loss_exists(self) -> "Recipe":
        watchers = [
            ("early_stopping.patience_epochs", self.early_stopping.patience_epochs is not None),
            ("schedule.name=plateau", self.schedule.name == "plateau"),
        ]
        for field, on in watchers:
            if on and not self.data.may_choose:
                raise ValueError(
                    f"{field} watches the validation loss, and data.validation={self.data.validation} gives none"
                    f" to choose by: set data.validation to stratified, first or last, or leave {field} out"
                )
        return self


def for_own_pictures(recipe: Recipe, overrides: Mapping[str, Any]) -> Recipe:
    """A published `recipe` for pictures that nobody has published on: it validates on some of the training pictures.

    Where its source validated on the test set, and `overrides` do not say that it shall, the test pictures are left to
    be judged on.
    """
    if recipe.data.validation != "test" or "data.validation" in overrides:
        return recipe
    return override(recipe, {"data.validation": "stratified"})


def override(recipe: Recipe, overrides: Mapping[str, Any]) -> Recipe:
    """`recipe` with fields replaced by dotted name, values checked and converted.

    When a part's `name` changes (`optimizer.name`, `schedule.name`, `model.name`), its other fields start from the new
    part's defaults.

    Raises:
        UserError: naming every unknown field and every wrong value at once.
    """
    content = recipe.model_dump(mode="json")
    mistakes: list[str] = []
    for field in sorted(overrides, key=lambda name: not name.endswith(".name")):
        mistake = _place(content, field, overrides[field])
        if mistake:
            mistakes.append(mistake)
    if content["model"] != recipe.model.model_dump(mode="json"):
        content["parameters"] = content["trainable_parameters"] = None  # they are of the recipe's own network
    if content["finetune"] != recipe.finetune.model_dump(mode="json"):
        content["trainable_parameters"] = None
    result = None
    try:
        result = Recipe.model_validate(content)
    except ValidationError as error:
        mistakes.extend(mistakes_in(error))
    if result is None or mistakes:
        raise UserError("; ".join(mistakes))
    return _adapted(result, recipe.input.size or OWN_SIZE, set(overrides))


def _adapted(recipe: Recipe, size_before: int, given: set[str]) -> Recipe:
    """`recipe` for a new `input.size`: what is not `given` itself follows it.

    A network of blocks that each halve the picture gets one more for each doubling, so that the last ones see as much
    of it as before, unless it begins with the weights of a run; sizes counted in pixels grow alike.
    """
    size = recipe.input.size or OWN_SIZE
    if size == size_before:
        return recipe
    content = recipe.model_dump(mode="json")
    model, doublings = content["model"], int(math.log2(size / size_before))
    is_own = recipe.finetune.init_from is not None or any(field.startswith("model.") for field in given)
    if recipe.model.name in ("vgg", "airbench") and doublings > 0 and not is_own:
        more = min(doublings, MOST_BLOCKS - len(model["widths"]))
        model["widths"] += model["widths"][-1:] * more
        if model.get("pool_dropout"):
            model["pool_dropout"] += model["pool_dropout"][-1:] * more
        content["parameters"] = content["trainable_parameters"] = None
    for part, field, most in (("augment", "crop_padding", 64), ("augment", "cutout", 224)):
        if f"{part}.{field}" not in given:
            content[part][field] = min(most, round(content[part][field] * size / size_before))
    return Recipe.model_validate(content)


def from_json(text: str, origin: str) -> Recipe:
    """The recipe that `text` holds.

    Raises:
        UserError: `origin` names the file in the message.
    """
    try:
        return Recipe.model_validate_json(text)
    except ValidationError as error:
        raise UserError(f"{origin} is not a recipe: {'; '.join(mistakes_in(error))}") from None


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """`["epochs=5", "augment.flip=0.5"]` as a dictionary. Values are JSON where they can be, else text.

    Raises:
        UserError: for an assignment without `=`.
    """
    result: dict[str, Any] = {}
    for assignment in assignments:
        field, equals, text = assignment.partition("=")
        if not equals or not field.strip():
            raise UserError(
                f"--set needs field=value, '{assignment}' given; for example --set optimizer.learning_rate=0.01"
            )
        try:
            value = json.loads(text)
        except ValueError:
            value = None if text.strip().lower() == "none" and not _takes_word_none(field) else text.strip()
        result[field.strip()] = value
    return result


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """Every field that decides what a training gives, but for its seed and device, by dotted name."""
    return flat(recipe.model_dump(mode="json", exclude={"seed", "device", *WORDS}))


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by dotted name."""
    result: dict[str, Any] = {}
    for name, value in content.items():
        result |= (
            flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
        )
    return result


def tied_to_total(schedule: Schedule) -> bool:  # type: ignore[valid-type]
    """True when the schedule's earlier rates would change with the number of epochs."""
    if isinstance(schedule, Cosine):
        return schedule.restart_epochs is None
    return isinstance(schedule, OneCycle | Linear)


def _takes_word_none(field: str) -> bool:
    return field.strip() in ("data.validation", "loss.class_weights")


def _place(content: dict[str, Any], field: str, value: Any) -> str | None:
    """Put `value` at `field`, or say what is wrong with the name."""
    *parents, leaf = field.split(".")
    node = content
    for depth, parent in enumerate(parents):
        child = node.get(parent)
        if not isinstance(child, dict):
            return _unknown(field, ".".join([*parents[:depth], parent]), node, parents[:depth])
        node = child
    named = leaf == "name" and bool(parents)
    allowed = set(node) | (_fields_of_named_part(parents, node) if parents else set())
    if field == "name":
        return "name cannot be set: it says which recipe this is"
    if leaf not in allowed:
        return _of_another_part(field, node) or _unknown(field, field, dict.fromkeys(allowed), parents)
    if isinstance(node.get(leaf), dict):
        return f"{field} is a group of fields, set one of {one_of(f'{field}.{name}' for name in node[leaf])}"
    if named and parents[0] in _PARTS_BY_GROUP and node["name"] != value:
        node.clear()
    node[leaf] = value
    return None


def _fields_of_named_part(parents: list[str], node: dict[str, Any]) -> set[str]:
    if len(parents) != 1 or "name" not in node:
        return set()
    for part in _PARTS_BY_GROUP.get(parents[0], ()):
        if part.model_fields["name"].default == node["name"]:
            return set(part.model_fields)
    return set()


def _of_another_part(field: str, node: dict[str, Any]) -> str | None:
    """What is wrong with a field of Adam where the optimiser is SGD; None for a field that no such part has."""
    group, _, leaf = field.partition(".")
    parts = _PARTS_BY_GROUP.get(group, ())
    owners = [part.model_fields["name"].default for part in parts if leaf in part.model_fields]
    if not owners:
        return None
    return (
        f"{field} belongs to {one_of(owners, 'and')}; this recipe's {group} is {node['name']}:"
        f" add --set {group}.name={owners[0]}"
    )


def _unknown(field: str, wrong: str, siblings: Mapping[str, Any], parents: list[str]) -> str:
    names = {sibling: ".".join([*parents, sibling]) for sibling in siblings if parents or sibling != "name"}
    leaf = wrong.rpartition(".")[2]
    known_as = _KNOWN_AS.get(leaf.lower(), leaf)
    near = [names[name] for name in difflib.get_close_matches(known_as, names, n=1, cutoff=0.6)]
    if not near and not parents:  # a field of a group, without the group
        near = [name for name in ALL_FIELDS if name.rpartition(".")[2] == known_as]
    if near:
        return f"unknown field '{field}'; did you mean '{near[0]}'?"
    return f"unknown field '{field}'; allowed here: {', '.join(sorted(names.values()))}"


def mistakes_in(error: ValidationError) -> list[str]:
    return [_mistake(detail) for detail in error.errors()]


def _mistake(detail: Any) -> str:
    location = [str(item) for item in detail["loc"] if str(item) not in _TAGS]
    field = ".".join(location) or "recipe"
    message = detail["msg"].removeprefix("Value error, ").replace("Input should", "should")
    message = message.replace("a valid tuple", "a list")
    if detail["type"] == "missing":
        return f"{field} must be set"
    if detail["type"] == "extra_forbidden":
        return f"unknown field '{field}'{nearest(field, ALL_FIELDS)}"
    if detail["type"] == "union_tag_invalid":
        allowed = detail["ctx"]["expected_tags"].replace("'", "").split(", ")
        tag = detail["ctx"]["tag"]
        return f"{field}.name should be {one_of(allowed)}, {tag!r} given{nearest(tag, allowed)}"
    if detail["type"] == "literal_error":
        allowed = detail["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        hint = nearest(str(detail["input"]), allowed)
        return f"{field} should be {one_of(allowed)}, {detail['input']!r} given{hint}"
    if detail["type"] == "value_error":
        return message if not location else f"{field}: {message}"
    if detail["type"] == "too_short":
        least, given = detail["ctx"]["min_length"], detail["ctx"]["actual_length"]
        return f"{field} should have {least} or more values, {given} given"
    if detail["type"] in _IN_WORDS:
        message = f"should be {_IN_WORDS[detail['type']]}"
    return f"{field} {message}, {detail['input']!r} given"


# pydantic's types of error, without the words of a parser
_IN_WORDS = {
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "a text",
    "tuple_type": "a list",
    "model_type": "a group of fields",
    "model_attributes_type": "a group of fields",
}
_KNOWN_AS = {
    "lr": "learning_rate",
    "rate": "learning_rate",
    "wd": "weight_decay",
    "eps": "epsilon",
    "bs": "batch_size",
}
_PARTS_BY_GROUP: dict[str, tuple[type[BaseModel], ...]] = {
    "optimizer": (SGD, RMSprop, Adam, AdamW, Muon),
    "schedule": (Constant, Step, InverseTime, Cosine, Cyclical, OneCycle, Linear, Plateau),
    "model": (VGG, MLP, AlexNet, VGG16, Airbench, ResNet),
}
_TAGS = {part.model_fields["name"].default for parts in _PARTS_BY_GROUP.values() for part in parts}


def _all_fields() -> list[str]:
    names: list[str] = []
    for name, field in Recipe.model_fields.items():
        parts = _PARTS_BY_GROUP.get(name)
        if parts is None and isinstance(field.default, BaseModel):
            parts = (type(field.default),)
        names.extend([f"{name}.{leaf}" for part in parts for leaf in part.model_fields] if parts else [name])
    return list(dict.fromkeys(names))


ALL_FIELDS = _all_fields()
