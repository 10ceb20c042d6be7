"""`cifarlab leaderboard`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cifarlab import text
from cifarlab.cli import screen
from cifarlab.cli.options import AsJson

if TYPE_CHECKING:
    from rich.console import Console

    from cifarlab.leaderboard import Entry

INDENT = " " * 6  # of what stands below a group's figures


def leaderboard(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="A folder of runs, at any depth.")] = Path(
        "runs"
    ),
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write one sortable, filterable page.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the runs in a folder as groups, the best mean test accuracy first. Nothing is evaluated.

    \b
    Examples:
      cifarlab leaderboard
      cifarlab leaderboard results --html leaderboard.html
    """
    from cifarlab.leaderboard import leaderboard, page

    entries = leaderboard([folder])
    if html is not None:
        from cifarlab.files import write_atomic

        write_atomic(html, page(entries, title=f"Leaderboard of {folder.resolve().name}").encode())
        screen.note(f"page written to {html}")
    if as_json:
        screen.write_json([entry.to_dict() for entry in entries])
        return
    _print_entries(screen.open_console(), entries)


def _print_entries(console: Console, entries: list[Entry]) -> None:
    from cifarlab.leaderboard import interval_text, mean_text

    if any(entry.saw_test for entry in entries):
        console.print("† validated on the test set while it trained: its choices saw the test set\n")
    on_one = len({entry.hardware for entry in entries}) == 1
    if on_one:
        console.print(f"all on {entries[0].hardware}\n", style="dim", markup=False)
    console.print(f"{'':4}{'test accuracy':16}  {'95 % interval':16}  runs  recipe", style="dim")
    for place, entry in enumerate(entries, 1):
        n = 0 if entry.test is None else entry.test.n
        figures = f"{mean_text(entry.test):16}  {interval_text(entry.test):16}  {n:4}"
        name = text.one_line(f"{entry.recipe}{' †' if entry.saw_test else ''}, {entry.data}")
        console.print(f"{place if n else '':>3} {figures}  [bold]{screen.escaped(name)}[/bold]")
        if entry.fields:
            _print_folded(console, text.one_line(entry.fields))
        _print_folded(console, _details(entry, with_hardware=not on_one), "dim")
    if any(entry.n_unjudged for entry in entries):
        console.print("\nNext: `cifarlab evaluate RUN` judges a run, or a folder of runs")
    elif sum(entry.test is not None for entry in entries) > 1:
        console.print("\nNext: cifarlab compare, to say whether a difference is one")


def _details(entry: Entry, *, with_hardware: bool) -> str:
    from cifarlab.leaderboard import epochs_text, mean_text

    left = [(entry.n_unjudged, "not judged"), (entry.n_unfinished, "not finished")]
    parts = [f"{count} {what}" for count, what in left if count]
    if entry.test_with_tta is not None:
        parts.append(f"with {entry.tta_views} test-time views {mean_text(entry.test_with_tta)}")
    if entry.is_uneven:
        parts.append(
            f"classes uneven, macro {mean_text(entry.test_macro)}, F1 {mean_text(entry.test_macro_f1)}"
        )
    if entry.validation is not None:
        parts.append(f"validation {mean_text(entry.validation)}")
    parts.append(f"{epochs_text(entry)} epoch{'' if entry.planned_epochs == 1 else 's'}")
    if entry.parameters is not None:
        parts.append(f"{entry.parameters:,} parameters")
    if entry.seconds is not None:
        parts.append(f"{text.duration(entry.seconds)} a run")
    return "; ".join([*parts, *([entry.hardware] if with_hardware else [])])


def _print_folded(console: Console, content: str, style: str = "") -> None:
    import textwrap

    for line in textwrap.wrap(content, max(40, min(console.width, 100) - len(INDENT))):
        console.print(INDENT + line, style=style, markup=False)
