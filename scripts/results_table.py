"""Write the table of results into README.md and docs/systems/, from the run records in results/.

python scripts/results_table.py            write
python scripts/results_table.py --check    say whether they are up to date
"""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "docs/systems/t1.md")
BEGIN, END = "<!-- results: written by scripts/results_table.py -->", "<!-- end of results -->"
HEADER = """\
| recipe | epochs | of published | test accuracy % | published % | n seeds | seed | TTA | hardware | training time |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def row(record: Path) -> str:
    recipe, environment = read(record / "recipe.json"), read(record / "environment.json")
    evaluations = read(record / "evaluation.json")
    last = [json.loads(line) for line in (record / "metrics.jsonl").read_text().splitlines()][-1]
    ((_, judged),) = evaluations["test"].items()
    published = recipe["published"]
    full = "full length" if last["epoch"] == published["epochs"] else "not run at full length"
    saw_test = " †" if recipe["data"]["validation"] == "test" else ""
    threads = f"{environment['threads']} core" + ("s" if environment["threads"] > 1 else "")
    return (
        f"| [`{recipe['name']}`](/results/{record.name}) | {last['epoch']} | {published['epochs']}: {full}"
        f" | {100 * judged['accuracy']:.2f}{saw_test} | {100 * published['accuracy']:.2f} | 1 | {recipe['seed']}"
        f" | {'yes' if judged['tta'] else 'no'} | {threads} of {environment['device_name']}"
        f" | {last['elapsed_seconds'] / 60:.0f} min |\n"
    )


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def table() -> str:
    records = sorted(path.parent for path in (ROOT / "results").glob("*/recipe.json"))
    note = (
        "\nCIFAR-10, all 10,000 test images, weights of the last epoch; one run each, so no deviation. † As in the"
        " write-up,\nvalidation was the test set, and nothing was chosen by it.\n"
    )
    return f"{BEGIN}\n{HEADER}{''.join(row(record) for record in records)}{note}{END}"


def with_table(page: str) -> str:
    before, rest = page.split(BEGIN, 1)
    return before + table() + rest.split(END, 1)[1]


def main() -> int:
    stale = []
    for name in PAGES:
        page = (ROOT / name).read_text()
        if with_table(page) != page:
            stale.append(name)
            if "--check" not in sys.argv:
                (ROOT / name).write_text(with_table(page))
    if "--check" in sys.argv and stale:
        print(
            f"not what the records in results/ say: {', '.join(stale)}; run `python scripts/results_table.py`"
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
