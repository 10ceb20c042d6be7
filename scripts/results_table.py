"""Write what the records in results/ say: results/reproduction.md, results/claims.md, and the tables in other pages.

python scripts/results_table.py            write
python scripts/results_table.py --check    say whether they are up to date

A page has its table between two comments; with `of NAME` it is of the recipes in src/cifarlab/recipes/NAME.py alone:

    <!-- results of brownlee: written by scripts/results_table.py -->
    <!-- end of results -->
"""

import importlib
import os
import re
import sys
from pathlib import Path

from cifarlab.claims import claims_page, test_claims
from cifarlab.reproduction import NOTES, published_recipes, read_results, results_page, results_table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
PLACE = re.compile(r"(<!-- results(?: of (\w+))?: written by [^>]*-->\n).*?(<!-- end of results -->)", re.S)


def pages() -> dict[Path, str]:
    """Every page that is made from the records, as it should be."""
    recipes = published_recipes()
    made = {
        RESULTS / "reproduction.md": results_page(read_results(RESULTS, recipes)[0]),
        RESULTS / "claims.md": claims_page(test_claims(RESULTS), RESULTS),
    }
    for page in (ROOT / "README.md", *sorted((ROOT / "docs" / "systems").glob("*.md"))):
        made[page] = PLACE.sub(lambda place, page=page: with_table(place, page), page.read_text("utf-8"))
    return made


def with_table(place: re.Match[str], page: Path) -> str:
    begin, source, end = place.groups()
    recipes = importlib.import_module(f"cifarlab.recipes.{source}").RECIPES if source else published_recipes()
    entries = [entry for entry in read_results(RESULTS, recipes)[0] if entry.runs]
    up = "../" * (len(page.relative_to(ROOT).parts) - 1)
    table = results_table(entries, f"{up}results") if entries else "Not run yet.\n"
    return f"{begin}{table}\n{NOTES}{end}"


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
