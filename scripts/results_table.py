"""Write what the records in results/ say: results/reproduction.md, results/claims.md, and the tables in other pages.

python scripts/results_table.py            write
python scripts/results_table.py --check    say whether they are up to date

A page has its table between two comments; with `of NAME` it is of the recipes in src/cifarlab/recipes/NAME.py alone:

    <!-- results of brownlee: written by scripts/results_table.py -->
    <!-- end of results -->

Between `<!-- own results: ... -->` and the same end it is of recipes that reproduce nothing: a row for each folder of
runs with the recipe's settings, its name and what it ran on (`fast94`, `fast94-float32`).
"""

import importlib
import os
import re
import sys
from pathlib import Path

from cifarlab import text
from cifarlab.claims import claims_page, test_claims
from cifarlab.recipe import Recipe
from cifarlab.recipes import RECIPES
from cifarlab.reproduction import (
    NOTES,
    finished_runs,
    published_recipes,
    read_results,
    results_page,
    results_table,
    test_evaluation,
)

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
OWN_HEADER = ["recipe", "test % with views", "without", "n (seeds)", "epochs", "hardware", "time of a run"]
OWN_NOTES = """\
All 10,000 test pictures of CIFAR-10, opened once for each run. Mean ± standard deviation over the runs. With views: the
mean answer over six test-time views of a picture (itself and its mirror image, each also moved by a pixel, two ways).
Trained on all 50,000 training pictures. Times are wall-clock, with saving and without evaluation. The schedule of
fast94 was set when five earlier ones, nine runs, had been judged on the test pictures.
"""
OWN_PLACE = re.compile(r"(<!-- own results: written by [^>]*-->\n).*?(<!-- end of results -->)", re.S)
PLACE = re.compile(r"(<!-- results(?: of (\w+))?: written by [^>]*-->\n).*?(<!-- end of results -->)", re.S)


def pages() -> dict[Path, str]:
    """Every page that is made from the records, as it should be."""
    recipes = published_recipes()
    made = {
        RESULTS / "reproduction.md": results_page(read_results(RESULTS, recipes)[0]),
        RESULTS / "claims.md": claims_page(test_claims(RESULTS), RESULTS),
    }
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*/*.md"))):
        content = PLACE.sub(lambda place, page=page: with_table(place, page), page.read_text("utf-8"))
        made[page] = OWN_PLACE.sub(lambda place, page=page: with_own_table(place, page), content)
    return made


def with_table(place: re.Match[str], page: Path) -> str:
    begin, source, end = place.groups()
    recipes = importlib.import_module(f"cifarlab.recipes.{source}").RECIPES if source else published_recipes()
    entries = [entry for entry in read_results(RESULTS, recipes)[0] if entry.runs]
    table = results_table(entries, results_from(page)) if entries else "Not run yet.\n"
    return f"{begin}{table}\n{NOTES}{end}"


def results_from(page: Path) -> str:
    return "../" * (len(page.relative_to(ROOT).parts) - 1) + "results"


def with_own_table(place: re.Match[str], page: Path) -> str:
    begin, end = place.groups()
    rows = [
        own_row(recipe, folder, results_from(page))
        for recipe in RECIPES.values()
        for folder in sorted(RESULTS.glob(f"{recipe.name}*"))
        if not recipe.published
    ]
    there = [row for row in rows if row]
    table = text.markdown_table(OWN_HEADER, there) if there else "Not run yet.\n"
    return f"{begin}{table}\n{OWN_NOTES}{end}"


def own_row(recipe: Recipe, folder: Path, results: str) -> list[str] | None:
    """What became of a recipe without a published figure; None where no run with its settings is kept there."""
    runs = [run for run in finished_runs(folder, recipe)[0] if test_evaluation(run)]
    if not runs:
        return None
    evaluations = [test_evaluation(run) or {} for run in runs]
    with_views = [each["accuracy_with_tta"] for each in evaluations if each.get("tta")]
    times = [run.metrics[-1]["elapsed_seconds"] for run in runs]
    return [
        f"[`{recipe.name}`]({results}/{folder.name})",
        text.mean_and_deviation(with_views) if with_views else "–",
        text.mean_and_deviation([each["accuracy"] for each in evaluations]),
        f"{len(runs)} ({', '.join(str(run.recipe.seed) for run in runs)})",
        str(recipe.epochs),
        "; ".join(dict.fromkeys(run.hardware for run in runs)),
        text.duration(sum(times) / len(times)),
    ]


def main() -> int:
    os.environ["XDG_CACHE_HOME"] = os.devnull  # the pages do not depend on what this machine has fetched
    stale = {
        page: text for page, text in pages().items() if not page.exists() or page.read_text("utf-8") != text
    }
    if "--check" not in sys.argv:
        for page, text in stale.items():
            page.write_text(text, encoding="utf-8")
    elif stale:
        names = ", ".join(str(page.relative_to(ROOT)) for page in stale)
        print(f"not what the records in results/ say: {names}; run `python scripts/results_table.py`")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
