"""`cifarlab compare`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cifarlab import text
from cifarlab.cli import screen
from cifarlab.cli.options import AsJson, DataDir

if TYPE_CHECKING:
    from rich.console import Console

    from cifarlab.comparison import Comparison, Pair

NAME_WIDTH = 32


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Runs, groups of seeds, or folders of runs.")
    ],
    split: Annotated[
        str | None,
        typer.Option(
            "--split", metavar="test|validation", help="The pictures; default test, with folds theirs."
        ),
    ] = None,
    evaluate_missing: Annotated[
        bool, typer.Option("--evaluate", help="Judge first what `cifarlab evaluate` has not judged yet.")
    ] = False,
    deviation: Annotated[
        float,
        typer.Option(
            "--deviation",
            metavar="POINTS",
            help="Between seeds, assumed where no group here has two of them.",
        ),
    ] = 0.5,
    figure: Annotated[
        Path | None,
        typer.Option("--figure", metavar="FILE", help="Draw means and differences with intervals."),
    ] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Is A better than B? Groups of seeds against each other, with intervals; nothing is evaluated unless told.

    \b
    Examples:
      cifarlab compare runs/vgg3 runs/vgg3-bn
      cifarlab compare runs --split validation --figure runs.png
    """
    from cifarlab.errors import UserError

    if not deviation > 0:
        raise UserError(f"--deviation should be above 0 points, {deviation:g} given")
    if figure is not None:
        from cifarlab.figures.style import check_format

        check_format(figure)  # before anything long
    from cifarlab.comparison import compare

    result = compare(
        runs,
        split=split,
        evaluate_missing=evaluate_missing,
        assumed_sd=deviation / 100,
        data_dir=data_dir,
    )
    if figure is not None:
        _draw(result, figure)
    for line in result.notes:
        screen.note(line)
    if as_json:
        screen.write_json(result.to_dict())
        return
    console = screen.open_console()
    console.print(
        f"{result.split} accuracy on {result.n_pictures:,} pictures of {result.data}\n", style="bold"
    )
    _print_groups(console, result)
    _print_pairs(console, result)
    for pair in result.pairs:
        _print_pair(console, pair, letters(result))


def _draw(result: Comparison, path: Path) -> None:
    from cifarlab.figures import Interval, intervals, save_figure

    names = letters(result)
    groups = [
        Interval(
            f"{names[group.name]}: {group.name}",
            group.summary.mean,
            group.summary.low,
            group.summary.high,
            list(group.accuracies.values()),
        )
        for group in result.groups
    ]
    differences = [
        Interval(
            f"{names[pair.b]} - {names[pair.a]}",
            pair.difference.mean,
            pair.difference.low,
            pair.difference.high,
            marked=pair.verdict in ("a is better", "b is better"),
        )
        for pair in result.pairs
    ]
    title = f"{result.split} accuracy on {result.n_pictures:,} pictures of {result.data}"
    save_figure(intervals(groups, differences, title=title), path)
    screen.note(f"figure written to {path}")


def letters(result: Comparison) -> dict[str, str]:
    """A short name for each group: A, B, ... Z, AA, AB and so on."""
    single = [chr(ord("A") + index) for index in range(26)]
    names = [*single, *(first + second for first in single for second in single)]
    return {group.name: name for group, name in zip(result.groups, names, strict=False)}


def _print_groups(console: Console, result: Comparison) -> None:
    width = min(NAME_WIDTH, max(len(group.name) for group in result.groups))
    console.print(f"   {'':{width}}   n     mean     sd  95 % interval", style="dim")
    for group in result.groups:
        summary, letter = group.summary, letters(result)[group.name]
        sd = "–" if summary.sd is None else f"{100 * summary.sd:.2f}"
        interval = "–" if summary.low is None else _range(summary.low, summary.high, signed=False)
        head, *rest = _folded(group.name, width)
        line = f"{letter:2} {head:{width}}  {summary.n:2}  {text.percent(summary.mean, 2):>7}  {sd:>5}  {interval}"
        console.print(line, markup=False)
        for part in rest:
            console.print(f"   {part}", markup=False)


def _print_pairs(console: Console, result: Comparison) -> None:
    console.print("\ndifference in points, its 95 % interval, p, and p by Holm's correction", style="dim")
    names = letters(result)
    for pair in result.pairs:
        a, b, difference = names[pair.a], names[pair.b], pair.difference
        interval = "–" if difference.low is None else _range(difference.low, difference.high, signed=True)
        figures = f"{text.p_value(difference.p):>8}  {text.p_value(pair.adjusted_p):>8}"
        verdict = pair.verdict.replace("a is", f"{a} is").replace("b is", f"{b} is")
        line = f"{f'{b} - {a}':7}  {100 * difference.mean:+6.2f}  {interval:16}  {figures}  {verdict}"
        console.print(line, markup=False)


def _print_pair(console: Console, pair: Pair, names: dict[str, str]) -> None:
    """The sentence to quote, and what is said of these trained networks alone."""
    from rich.padding import Padding
    from rich.text import Text

    def say(line: str, style: str = "") -> None:
        console.print(Padding(Text(line, style), (0, 0, 0, 2)), soft_wrap=False)

    a, b = names[pair.a], names[pair.b]
    console.print(f"\n{b} against {a}", style="bold")
    say(pair.sentence)
    if pair.mcnemar:
        say(_mcnemar_line(pair, a, b), "dim")
    if pair.bootstrap is not None:
        interval = _range(*pair.bootstrap, signed=True)
        say(f"Bootstrap over pictures, these networks alone: {b} - {a} from {interval} points.", "dim")


def _mcnemar_line(pair: Pair, a: str, b: str) -> str:
    tests = list(pair.mcnemar.items())
    alone = "This is about these trained networks, not about the recipes."
    if len(tests) == 1:
        name, test = tests[0]
        return (
            f"McNemar, {name}: {test.only_b:,} pictures right in {b} alone, {test.only_a:,} in {a} alone,"
            f" mid-{text.p_statement(test.p)}. {alone}"
        )
    below = sum(test.p < 0.05 for _, test in tests)
    lowest, highest = (text.p_value(pick(test.p for _, test in tests)) for pick in (min, max))
    return f"McNemar, seed by seed: mid-p from {lowest} to {highest}, below 0.05 in {below} of {len(tests)}. {alone}"


def _range(low: float | None, high: float | None, *, signed: bool) -> str:
    sign = "+" if signed else ""
    return f"{100 * (low or 0.0):{sign}.2f} to {100 * (high or 0.0):{sign}.2f}"


def _folded(name: str, width: int) -> Sequence[str]:
    import textwrap

    return textwrap.wrap(name, width) or [""]
