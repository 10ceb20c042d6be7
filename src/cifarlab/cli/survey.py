"""What `cifarlab data PATH` shows of somebody's own pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifarlab import text
from cifarlab.cli import screen
from cifarlab.cli.data import decoding_progress

if TYPE_CHECKING:
    from rich.console import Console

    from cifarlab.data.listing import Listing
    from cifarlab.data.survey import Survey

BAR_WIDTH = 16
MOST_CLASSES = 60  # rows of the table; the JSON has all
EXAMPLES = 3
SAMPLES = 8  # pictures a class in the figure


def show_survey(
    path: Path, labels_from: str | None, figure: Path | None, per_class: int | None, *, as_json: bool
) -> None:
    """List, decode where that is not done yet, and print what there is and what is wrong."""
    from cifarlab.data.decoded import decode
    from cifarlab.data.listing import Reading, list_pictures
    from cifarlab.data.sources import PICTURE_FILES_PIXELS, name_of_pictures
    from cifarlab.data.survey import survey

    listing = list_pictures(path, Reading(labels_from))
    with decoding_progress() as progress:
        found = survey(listing, decode(listing, PICTURE_FILES_PIXELS, "squash", progress))
    if as_json:
        screen.write_json({"name": name_of_pictures(path), **found.to_dict()})
    else:
        _print(screen.open_console(), found)
    if figure is not None:
        _draw(listing, figure, per_class or SAMPLES)
        screen.open_console(as_json).print(f"drawn: {figure}", markup=False)


def _print(console: Console, found: Survey) -> None:
    n = sum(split["n"] for split in found.splits.values())
    parts = [f"{split['n']:,} {name}" for name, split in found.splits.items()]
    given = f": {', '.join(parts)}" if len(parts) > 1 else ""
    lines = {
        "from": found.location,
        "layout": found.layout,
        "pictures": f"{n:,} of {text.count(len(found.classes), 'class', 'classes')}{given}",
        "sizes": _sizes(found.sizes),
        "modes": ", ".join(f"{mode} {count:,}" for mode, count in found.modes.items()) or "–",
    }
    for name, content in lines.items():
        console.print(f"{name:10}{text.one_line(content)}", markup=False)
    console.print()
    _print_classes(console, found)
    console.print()
    _print_problems(console, found)


def _sizes(sizes: Mapping[str, Any]) -> str:
    if not sizes:
        return "–"
    smallest, median, largest = (
        f"{width} x {height}" for width, height in (sizes["smallest"], sizes["median"], sizes["largest"])
    )
    if sizes["different"] == 1:
        return f"{smallest}, all of them"
    return f"{smallest} to {largest}, median {median}; {sizes['different']:,} different"


def _print_classes(console: Console, found: Survey) -> None:
    names = [text.one_line(name) for name in found.classes[:MOST_CLASSES]]
    most = {split: max(counts["per_class"]) for split, counts in found.splits.items()}
    n_width = max(len(f"{n:,}") for n in most.values())
    widths = [_cells(name) for name in names]
    name_width = max(5, *widths)
    heads = "  ".join(f"{split:{n_width + BAR_WIDTH + 1}}" for split in found.splits)
    console.print(f"{'class':{name_width}}  {heads}".rstrip(), style="dim")
    for label, name in enumerate(names):
        cells = []
        for split, counts in found.splits.items():
            n = counts["per_class"][label]
            cells.append(f"{n:{n_width},} {text.bar(n / max(1, most[split]), BAR_WIDTH):{BAR_WIDTH}}")
        padding = " " * (name_width - widths[label])
        console.print(f"{name}{padding}  {'  '.join(cells)}".rstrip(), markup=False)
    if len(found.classes) > MOST_CLASSES:
        console.print(f"and {len(found.classes) - MOST_CLASSES:,} more classes (--json has all)", style="dim")


def _cells(name: str) -> int:
    from rich.cells import cell_len

    return cell_len(name)


def _print_problems(console: Console, found: Survey) -> None:
    problems = found.problems
    if not problems:
        console.print("nothing wrong was found")
        return
    console.print("what to look at", style="bold")
    for problem in problems:
        console.print(f"- {text.one_line(problem.line)}", markup=False)
        for example in problem.examples[:EXAMPLES]:
            console.print(f"    {text.one_line(example)}", markup=False)
        if len(problem.examples) > EXAMPLES:
            console.print(f"    and {len(problem.examples) - EXAMPLES:,} more (--json has all)", style="dim")


def _draw(listing: Listing, path: Path, per_class: int) -> None:
    from cifarlab.data.survey import class_samples
    from cifarlab.figures import class_rows, save_figure

    images, labels = class_samples(listing, per_class)
    title = f"{listing.location.name}: random pictures of each class"
    save_figure(class_rows(images, labels, listing.classes, per_class=per_class, title=title), path)
