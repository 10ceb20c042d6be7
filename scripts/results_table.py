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
| recipe | test accuracy % | published % | epochs | verdict | seeds | TTA | hardware | training time |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def row(record: Path, root: str) -> str:
    recipe, environment = read(record / "recipe.json"), read(record / "environment.json")
    last = [json.loads(line) for line in (record / "metrics.jsonl").read_text().splitlines()][-1]
    ((_, judged),) = read(record / "evaluation.json")["test"].items()
    published = recipe["published"]
    saw_test = " †" if recipe["data"]["validation"] == "test" else ""
    threads = f"{environment['threads']} core{'s' if environment['threads'] > 1 else ''}"
    return (
        f"| [`{recipe['name']}`]({root}/results/{record.name}) | {100 * judged['accuracy']:.2f}{saw_test}"
        f" | {100 * published['accuracy']:.2f} | {last['epoch']} of {published['epochs']}"
        f" | {verdict(last['epoch'], judged['accuracy'], published)} | 1 ({recipe['seed']})"
        f" | {'yes' if judged['tta'] else 'no'} | {threads}, {environment['device_name']}"
        f" | {last['elapsed_seconds'] / 60:.0f} min |\n"
    )


def verdict(epochs: int, accuracy: float, published: dict[str, Any]) -> str:
    """With one seed: reproduced is within one point of the published figure, or better."""
    if epochs < published["epochs"]:
        return "not run at full length"
    return f"{'reproduced' if accuracy >= published['accuracy'] - 0.01 else 'worse'} (one seed)"


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def table(root: str) -> str:
    records = sorted(path.parent for path in (ROOT / "results").glob("*/recipe.json"))
    note = (
        "\nCIFAR-10, all 10,000 test images, weights of the last epoch, one run each (its seed in brackets), so no"
        " deviation.\n† As in the write-up, validation was the test set, and nothing was chosen by it. The trainings"
        " ran at the same time,\none core each, on a machine that other programs used: the times are upper bounds.\n"
    )
    return f"{BEGIN}\n{HEADER}{''.join(row(record, root) for record in records)}{note}{END}"


def with_table(page: str, root: str) -> str:
    before, rest = page.split(BEGIN, 1)
    return before + table(root) + rest.split(END, 1)[1]


def main() -> int:
    stale = []
    for name in PAGES:
        page = (ROOT / name).read_text()
        written = with_table(page, "/".join([".", *[".."] * name.count("/")]))
        if written != page:
            stale.append(name)
            if "--check" not in sys.argv:
                (ROOT / name).write_text(written)
    if "--check" in sys.argv and stale:
        print(
            f"not what the records in results/ say: {', '.join(stale)}; run `python scripts/results_table.py`"
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
