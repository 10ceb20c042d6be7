"""A recipe is checked, typed data, and every mistake in it is told at once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cifarlab import UserError, get_recipe
from cifarlab.recipe import ALL_FIELDS, Recipe, from_json, override, parse_assignments, tied_to_total
from cifarlab.recipes import RECIPES

# name: (published accuracy in %, epochs, parameters), from the write-up's tables and listings
T1 = {
    "vgg1": (67.070, 100, 1_060_138),
    "vgg2": (71.080, 100, 591_274),
    "vgg3": (73.500, 100, 550_570),
    "vgg3-dropout": (83.450, 100, 550_570),
    "vgg3-l2": (72.550, 100, 550_570),
    "vgg3-aug": (84.470, 100, 550_570),
    "vgg3-dropout-rising": (84.690, 200, 550_570),
    "vgg3-dropout-aug": (85.880, 200, 550_570),
    "vgg3-bn": (88.620, 400, 552_874),
}
AUGMENTED = {"vgg3-aug", "vgg3-dropout-aug", "vgg3-bn"}


def mistake(recipe: str, *assignments: str) -> str:
    with pytest.raises(UserError) as caught:
        override(get_recipe(recipe), parse_assignments(list(assignments)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", T1)
def test_t1_is_as_published(name: str) -> None:
    recipe = RECIPES[name]
    accuracy, epochs, parameters = T1[name]
    assert recipe.published is not None
    assert recipe.published.accuracy == pytest.approx(accuracy / 100)
    assert (recipe.published.epochs, recipe.published.split) == (epochs, "test")
    assert (recipe.epochs, recipe.parameters, recipe.batch_size) == (epochs, parameters, 64)
    assert recipe.optimizer.model_dump(exclude={"weight_decay", "clip_norm"}) == {
        "name": "sgd", "learning_rate": 0.001, "momentum": 0.9, "nesterov": False,
    }  # fmt: skip
    assert recipe.schedule.name == "constant"
    assert (recipe.data.preparation, recipe.data.validation) == ("scale", "test")
    augmented = name in AUGMENTED
    assert recipe.data.steps_per_epoch == ("floor" if augmented else "ceil")
    assert (recipe.augment.shift, recipe.augment.flip) == ((0.1, 0.5) if augmented else (0.0, 0.0))
    assert (recipe.augment.rotation, recipe.augment.zoom) == (0.0, 0.0)
    assert (recipe.regularization.l2, recipe.regularization.l2_layers) == (
        0.001 if name == "vgg3-l2" else 0.0,
        "hidden",
    )


def test_t1_dropout_is_as_published() -> None:
    fixed, rising = RECIPES["vgg3-dropout"].model, RECIPES["vgg3-dropout-rising"].model
    assert (fixed.pool_dropout, fixed.dense_dropout) == ((0.2, 0.2, 0.2), 0.2)
    assert (rising.pool_dropout, rising.dense_dropout) == ((0.2, 0.3, 0.4), 0.5)
    assert RECIPES["vgg3-dropout-aug"].model == fixed
    assert RECIPES["vgg3-bn"].model == rising.model_copy(update={"batch_norm": True})


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_round_trip_through_json(name: str) -> None:
    assert from_json(RECIPES[name].model_dump_json(), "a file") == RECIPES[name]


def test_overrides_are_converted_and_leave_the_rest() -> None:
    changed = override(
        get_recipe("vgg3"),
        parse_assignments(
            ["epochs=7", "augment.flip=0.5", "optimizer.name=adam", "data.validation=none", "ema.decay=0.99"]
        ),
    )
    assert (changed.epochs, changed.augment.flip, changed.ema.decay) == (7, 0.5, 0.99)
    assert (changed.optimizer.name, changed.optimizer.learning_rate) == ("adam", 0.001)
    assert changed.data.validation == "none"
    assert changed.model == get_recipe("vgg3").model
    assert changed.parameters == get_recipe("vgg3").parameters
    assert override(changed, {"ema.decay": None}).ema.decay is None


def test_another_network_has_no_published_number_of_parameters() -> None:
    assert override(get_recipe("vgg3"), {"model.widths": [16, 32]}).parameters is None


def test_another_device_keeps_the_other_settings_of_the_device() -> None:
    changed = override(get_recipe("vgg3"), {"device.threads": 1, "device.name": "cpu"})
    assert (changed.device.name, changed.device.threads) == ("cpu", 1)
    again = override(changed, {"device.name": "auto"})
    assert (again.device.name, again.device.threads) == ("auto", 1)


def test_all_mistakes_are_told_at_once_with_the_nearest_names() -> None:
    text = mistake("vgg3-bn", "epochs=0", "batch_size=-3", "augment.flp=0.2", "model.batch_norm=perhaps")
    for part in (
        "epochs should be greater than or equal to 1, 0 given",
        "batch_size should be greater than or equal to 1, -3 given",
        "unknown field 'augment.flp'; did you mean 'augment.flip'?",
        "model.batch_norm should be true or false, 'perhaps' given",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        (
            "optimizer.name=adm",
            "optimizer.name should be sgd, rmsprop, adam, adamw or muon, 'adm' given; did you mean 'adam'?",
        ),
        ("data.validation=tst", "did you mean 'test'?"),
        ("optimizer.learning_rate=Infinity", "should be a finite number"),
        ("epochs=NaN", "should be a finite number"),
        ("epochs=many", "epochs should be a whole number, 'many' given"),
        ("epochs=2.5", "epochs should be a whole number, 2.5 given"),
        ("augment.shift=far", "augment.shift should be a number, 'far' given"),
        ("model.widths=32", "model.widths should be a list, 32 given"),
        ("model.widths=[]", "model.widths should have 1 or more values, 0 given"),
        ("optimizer=3", "optimizer is a group of fields"),
        ("name=mine", "name cannot be set"),
        ("optimizer.nesterov=true", None),
        ("schedule.name=step", "schedule.epochs must be set; schedule.factors must be set"),
        ("model.widths=[3,4]", "one rate for each of the 2 blocks"),
        ("early_stopping.patience_epochs=3", "watches the validation loss"),
        ("data.fold=5", "of 5 folds there are 0 to 4, fold 5 given"),
        ("epochs", "--set needs field=value"),
        ("lerning_rate=1", "unknown field 'lerning_rate'"),
        ("learning_rate=1", "unknown field 'learning_rate'; did you mean 'optimizer.learning_rate'?"),
        ("lr=1", "unknown field 'lr'; did you mean 'optimizer.learning_rate'?"),
        ("optimizer.lr=1", "unknown field 'optimizer.lr'; did you mean 'optimizer.learning_rate'?"),
        (
            "optimizer.beta_1=0.8",
            "optimizer.beta_1 belongs to adam and adamw; this recipe's optimizer is sgd:"
            " add --set optimizer.name=adam",
        ),
        ("schedule.warmup_fraction=0.1", "belongs to one-cycle; this recipe's schedule is constant"),
        ("model.dropout=0.1", "model.dropout belongs to mlp; this recipe's model is vgg"),
    ],
)
def test_mistakes(assignment: str, expected: str | None) -> None:
    if expected is None:
        override(get_recipe("vgg3-bn"), parse_assignments([assignment]))
    else:
        assert expected in mistake("vgg3-bn", assignment)


def test_an_unknown_recipe_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown recipe 'vg3-bn'; did you mean 'vgg3-bn'"):
        get_recipe("vg3-bn")


@given(
    field=st.sampled_from(ALL_FIELDS),
    value=st.sampled_from([None, True, -1, 10**9, 2.5, "x", [], {}, [1, "a"]]),
)
def test_no_value_is_a_bug(field: str, value: object) -> None:
    """Whatever is set, it is a recipe or one line that says why not."""
    try:
        assert isinstance(override(get_recipe("vgg3-bn"), {field: value}), Recipe)
    except UserError as error:
        assert "\n" not in str(error) and str(error)


def test_a_damaged_recipe_file_is_named() -> None:
    with pytest.raises(UserError, match=r"runs/x/recipe\.json is not a recipe"):
        from_json('{"name": "x"', "runs/x/recipe.json")


@pytest.mark.parametrize(
    ("name", "tied"),
    [
        ("constant", False),
        ("inverse-time", False),
        ("cosine", True),
        ("one-cycle", True),
        ("linear", True),
        ("plateau", False),
    ],
)
def test_which_schedules_are_tied_to_the_total(name: str, tied: bool) -> None:
    recipe = override(get_recipe("demo"), {"schedule.name": name})
    assert tied_to_total(recipe.schedule) is tied


def test_cosine_with_restarts_is_not_tied_to_the_total() -> None:
    recipe = override(get_recipe("demo"), {"schedule.name": "cosine", "schedule.restart_epochs": 2})
    assert not tied_to_total(recipe.schedule)


def test_a_fold_is_judged_and_chooses_nothing() -> None:
    text = mistake("vgg3-bn", "data.validation=fold", "early_stopping.patience_epochs=3")
    assert "data.validation=fold gives none to choose by" in text
    assert not override(get_recipe("demo"), {"data.validation": "fold"}).data.may_choose
