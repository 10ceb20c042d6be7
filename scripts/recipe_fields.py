"""Writes docs/reference/recipe-fields.md from the types in cifarlab.recipe. A test compares the two.

`make format` runs it.
"""

import json
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from cifarlab import recipe
from cifarlab.models import specs

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "recipe-fields.md"
HEAD = """# Recipe fields

<!-- Written by scripts/recipe_fields.py; `make format` writes it again. -->

A recipe holds every number that decides a result. `cifarlab show RECIPE` prints all of them for one recipe;
`--set field=value` (several times if you like) changes one, by the dotted name below:

    cifarlab train vgg3 --set optimizer.name=adam --set optimizer.learning_rate=0.001 --set augment.flip=0.5

- Values are written as in JSON: numbers, `true` and `false`, lists as `[0.2,0.3,0.4]` (quote them in a shell),
  and `none` where a default below is none. Text needs no quotes.
- Setting a group's `name` to another one starts that group from the new one's defaults.
- `--epochs`, `--seed` and `--device` are short for `epochs`, `seed` and `device.name`.
- A mistyped field or a value out of range is refused before anything is written, all of them at once, with exit code 2.
"""

GROUPS: tuple[tuple[str, str, tuple[type[BaseModel], ...]], ...] = (
    (
        "model",
        "The family of networks, by `model.name`.",
        (specs.VGG, specs.MLP, specs.AlexNet, specs.VGG16, specs.Airbench, specs.ResNet),
    ),
    ("input", "", (recipe.Input,)),
    ("data", "", (recipe.Data,)),
    ("augment", "", (recipe.Augment,)),
    (
        "optimizer",
        "One of five, by `optimizer.name`.",
        (recipe.SGD, recipe.RMSprop, recipe.Adam, recipe.AdamW, recipe.Muon),
    ),
    (
        "schedule",
        "How the learning rate changes, by `schedule.name`. `cosine` without restarts, `one-cycle` and `linear` are"
        " stretched over the whole run: `resume --epochs` asks for a schedule again with them.",
        get_args(get_args(recipe.Schedule)[0]),
    ),
    ("regularization", "", (recipe.Regularization,)),
    ("loss", "Cross-entropy.", (recipe.Loss,)),
    ("ema", "", (recipe.EMA,)),
    ("early_stopping", "", (recipe.EarlyStopping,)),
    ("finetune", "", (recipe.Finetune,)),
    ("device", "", (recipe.Device,)),
)


def reference() -> str:
    """The page, as Markdown."""
    plain = [name for name in recipe.Recipe.model_fields if name not in {group for group, _, _ in GROUPS}]
    sections = [HEAD, "## The recipe itself\n\n" + _table(recipe.Recipe, plain, prefix="")]
    for group, words, parts in GROUPS:
        texts = [f"## {group}\n", *([words + "\n"] if words else [])]
        for part in parts:
            if len(parts) > 1:
                texts.append(f"### {group}.name = {part.model_fields['name'].default}\n")
            if part.__doc__ and part.__doc__ != BaseModel.__doc__:
                texts.append(" ".join(part.__doc__.split()) + "\n")
            fields = [name for name in part.model_fields if len(parts) == 1 or name != "name"]
            texts.append(_table(part, fields, prefix=f"{group}.") if fields else "No settings.\n")
        sections.append("\n".join(texts))
    return "\n".join(sections)


def _table(part: type[BaseModel], fields: list[str], prefix: str) -> str:
    properties = part.model_json_schema()["properties"]
    rows = [
        f"| `{prefix}{name}` | {_kind(properties[name])} | {_default(part, name)} | {_meaning(part, name)} |\n"
        for name in fields
    ]
    return "| field | value | default | meaning |\n| --- | --- | --- | --- |\n" + "".join(rows)


def _kind(schema: dict[str, Any]) -> str:
    """A JSON schema in a few words: `number, above 0`."""
    if "anyOf" in schema:
        return "; or ".join(_kind(each) for each in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "$ref" in schema:
        return "group"
    if schema["type"] == "array":
        return f"list, each {_kind(schema['items'])}"
    words = {"integer": "whole number", "number": "number", "boolean": "true or false", "null": "none"}
    limits = {"exclusiveMinimum": "above", "minimum": "from", "exclusiveMaximum": "below", "maximum": "to"}
    bounds = [f"{word} {_bound(schema[key])}" for key, word in limits.items() if key in schema]
    return ", ".join([words.get(schema["type"], "text"), *bounds])


def _bound(value: float) -> str:
    return "2^63" if value == 2**63 else f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _default(part: type[BaseModel], name: str) -> str:
    field = part.model_fields[name]
    if field.is_required():
        return "must be given"
    if field.default is None:
        return "none"
    default = list(field.default) if isinstance(field.default, tuple) else field.default
    return f"`{default if isinstance(default, str) else json.dumps(default)}`" if default != "" else ""


def _meaning(part: type[BaseModel], name: str) -> str:
    return (part.model_fields[name].description or "").replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
