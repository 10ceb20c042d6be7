"""The page: a template filled in, with its style, script and pictures inside."""

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from cifarlab import __version__, text
from cifarlab.report import answers, facts, network, several, stress
from cifarlab.report.judged import Judged
from cifarlab.report.pictures import HEAT, map_shapes, told, within_budget

Progress = Callable[[int], None]


def page_of_one(judged: Judged, chosen: np.ndarray, progress: Progress) -> str:
    """The page of one run; the parts on changed pictures use those of `chosen`, which may be none."""
    cells = answers.pictures_by_cell(judged)
    hits, mistakes = network.heat_examples(judged)
    content: dict[str, Any] = {
        "title": f"{judged.name} on {judged.run.data['name']}",
        "result": facts.result(judged),
        "recipe_facts": facts.recipe_facts(judged.run),
        "recipe_json": facts.recipe_json(judged.run),
        "environment_facts": facts.environment_facts(judged.run),
        "cost_facts": facts.cost_facts(judged),
        "curves": facts.learning_curves(judged.run) if judged.run.metrics else [],
        "class_rows": answers.class_rows(judged),
        "matrix": answers.confusion_cells(judged),
        "is_table": len(judged.run.classes) <= answers.LARGEST_TABLE,
        "pairs": answers.confused_pairs(judged, cells),
        "reliability": answers.reliability(judged),
        "surest_mistakes": answers.surest_mistakes(judged),
        "least_sure_hits": answers.least_sure_hits(judged),
        "doubtful": answers.doubtful_labels(judged),
        "heat_hits": hits,
        "heat_mistakes": mistakes,
        "filters": network.first_filters(judged),
    }
    content |= _stressed((judged,), chosen, progress)
    wanted = list(answers.taking_turns(cells))
    return _render(
        "one.html.j2", (judged,), content, _shown_of_one(content), wanted, _cells_told(judged, cells)
    )


def page_of_several(judged: Sequence[Judged], chosen: np.ndarray, progress: Progress) -> str:
    """The page of several runs on the same pictures."""
    differences = several.differences(judged)
    names = ", ".join(each.name for each in judged[:-1])
    content: dict[str, Any] = {
        "title": f"{names} and {judged[-1].name} on {judged[0].run.data['name']}",
        "run_columns": several.run_columns(judged),
        "pictures_of": facts.pictures_of(judged[0].evaluation, judged[0].run.data["name"]),
        "validation_was_test": [each.name for each in judged if each.evaluation.validation_was_test],
        "differences": differences,
        "curves": several.curves(judged),
        "reliability": several.reliability_chart(judged),
        "classes": several.class_comparisons(judged),
        "doubtful": _of_all_folds(judged),
    }
    content |= _stressed(judged, chosen, progress)
    shown = [picture.index for each in differences for picture in (*each.only_a, *each.only_b)]
    return _render("several.html.j2", judged, content, shown, [], {})


def _of_all_folds(judged: Sequence[Judged]) -> answers.Doubtful | None:
    """Labels to check where all the runs are folds of one cross-validation."""
    first = judged[0].run
    if first.recipe.data.validation != "fold" or len({each.run.path.parent for each in judged}) > 1:
        return None
    found = answers.doubtful_labels(judged[0])
    return found if found.images is not None else None


def _stressed(judged: Sequence[Judged], chosen: np.ndarray, progress: Progress) -> dict[str, Any]:
    n, of = len(chosen), len(judged[0].labels)
    if n == 0:
        return {"robustness": [], "tta": [], "sample": ""}
    every = "all" if n == of else f"{n:,} of the"
    return {
        "robustness": stress.robustness_charts(judged, chosen, progress),
        "tta": stress.tta_rows(judged, chosen, progress),
        "sample": f"{every} {of:,} {judged[0].evaluation.split} pictures"
        + ("" if n == of else ", taken evenly from first to last"),
    }


def _shown_of_one(content: dict[str, Any]) -> list[int]:
    doubtful = content["doubtful"]
    groups = [content["surest_mistakes"], content["least_sure_hits"]]
    groups += [doubtful.pictures] if doubtful.images is None else []
    indices = [picture.index for group in groups for picture in group]
    indices += [picture.index for pair in content["pairs"] for picture in pair.pictures]
    return indices + [heat.index for heat in (*content["heat_hits"], *content["heat_mistakes"])]


def _cells_told(judged: Judged, cells: dict[tuple[int, int], list[int]]) -> dict[str, Any]:
    """{"true,predicted": [how many, rate, the surest pictures]} of the cells that are not empty."""
    of_class = np.bincount(judged.labels, minlength=len(judged.run.classes))
    return {
        f"{t},{p}": [len(indices), round(len(indices) / int(of_class[t]), 4), indices[: answers.OF_A_CELL]]
        for (t, p), indices in sorted(cells.items())
    }


def _render(
    template: str,
    judged: Sequence[Judged],
    content: dict[str, Any],
    shown: list[int],
    wanted: list[int],
    cells: dict[str, Any],
) -> str:
    images = within_budget(shown, wanted, judged[0].images, len(judged))
    data = {
        "classes": judged[0].run.classes,
        "runs": [each.name for each in judged],
        "maps": map_shapes(judged),
        "heat": HEAT,
        "cells": cells,
        "pictures": told(judged, sorted(images)) | (content["doubtful"].told if content["doubtful"] else {}),
        "images": {index: uri for index, uri in images.items() if index not in set(shown)},
    }
    environment = Environment(
        loader=PackageLoader("cifarlab.report", "template"),
        autoescape=select_autoescape(["j2", "html"], default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = text.percent
    script = _file("script.js")
    return environment.get_template(template).render(
        **content,
        judged=judged,
        evaluation=judged[0].evaluation,
        class_names=judged[0].run.classes,
        images=images,
        uses=[use for each in judged for use in each.run.evaluations.get("test_set_uses", [])],
        data=_as_script(data),
        style=Markup(_file("style.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        version=__version__,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _as_script(data: dict[str, Any]) -> Markup:
    """JSON that cannot end the element it stands in, whatever the names in it."""
    content = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return Markup(content.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _file(name: str) -> str:
    return (Path(__file__).parent / "template" / name).read_text("utf-8")
