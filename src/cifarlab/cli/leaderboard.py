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

    console.print(f"{'':4}{'test accuracy':16}  {'95 % interval':16}  runs  recipe", style="dim")
    for place, entry in enumerate(entries, 1):
        n = 0 if entry.test is None else entry.test.n
        name = text.one_line(f"{entry.name}{' †' if entry.saw_test else ''}")
        figures = (
            f"{place if n else '':>3} {mean_text(entry.test):16}  {interval_text(entry.test):16}  {n:4}  "
        )
        _print_folded(console, figures, f"{name}, {entry.data}", "bold")
        _print_folded(console, " " * 6, _details(entry), "dim")
    if any(entry.saw_test for entry in entries):
        console.print("\n† validated on the test set while it trained: its choices looked at the test set")
    if any(entry.n_unjudged for entry in entries):
        console.print("\nNext: `cifarlab evaluate RUN` judges a run that is not judged")
    elif sum(entry.test is not None for entry in entries) > 1:
        console.print("\nNext: cifarlab compare, to say whether a difference is one")


def _details(entry: Entry) -> str:
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
    return "; ".join([*parts, entry.hardware])


def _print_folded(console: Console, before: str, content: str, style: str) -> None:
    import textwrap

    first, *rest = textwrap.wrap(content, max(20, 80 - len(before))) or [""]
    console.print(before + f"[{style}]{screen.escaped(first)}[/{style}]")
    for line in rest:
        console.print(" " * len(before) + f"[{style}]{screen.escaped(line)}[/{style}]")
