"""Numbers, times and sizes as people read them."""

from __future__ import annotations

import re
import shlex
import statistics
import time
from collections.abc import Sequence

PASSWORD = re.compile(r"([a-zA-Z][\w+.-]*://[^\s:/@]*):[^\s/@]*@")  # of an address, as RFC 3986 has it
PASSWORD_ASKED = re.compile(r"([?&]password=)[^&\s]*")


def one_line(text: str) -> str:
    """`text` without line ends or anything else that a terminal would act on, as names of files may hold."""
    return "".join(
        c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def command(*words: object) -> str:
    """A command line of cifarlab that can be pasted into a shell, whatever is in the words."""
    return shlex.join(["cifarlab", *map(str, words)])


def without_password(text: str) -> str:
    """`text` without the passwords of addresses in it: `postgresql://lab:secret@db/x` as `postgresql://lab@db/x`."""
    return PASSWORD_ASKED.sub(r"\1", PASSWORD.sub(r"\1@", text))


def percent(fraction: float | None, decimals: int = 1) -> str:
    return "–" if fraction is None else f"{100 * fraction:.{decimals}f} %"


def number(value: float | None, decimals: int = 4) -> str:
    return "–" if value is None else f"{value:.{decimals}f}"


def p_value(p: float | None) -> str:
    """`0.012`, `<0.0001`: to two figures."""
    return "–" if p is None else "<0.0001" if p < 0.0001 else f"{p:.2g}"


def p_statement(p: float | None) -> str:
    """`p = 0.012`, `p < 0.0001`."""
    told = p_value(p)
    return f"p < {told[1:]}" if told.startswith("<") else f"p = {told}"


def count(n: int, noun: str, plural: str | None = None) -> str:
    """`1 epoch`, `12 epochs`, `5,000 pictures`; `plural` where it is not the noun and an s."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def duration(seconds: float) -> str:
    """A time as people say it, to about two figures: `0.8 s`, `48 s`, `5 min 10 s`, `3 h 05 min`, `2 d 4 h`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


def mean_and_deviation(accuracies: Sequence[float]) -> str:
    """Accuracies 0..1 in percent: `67.07`, of several `66.91 ± 0.35`, mean and standard deviation."""
    mean = f"{100 * statistics.fmean(accuracies):.2f}"
    return mean if len(accuracies) == 1 else f"{mean} ± {100 * statistics.stdev(accuracies):.2f}"


def span(accuracies: Sequence[float]) -> str:
    """The lowest and the highest of several accuracies 0..1, in percent: `66.60 to 67.31`."""
    if len(accuracies) == 1:
        return "–"
    return f"{100 * min(accuracies):.2f} to {100 * max(accuracies):.2f}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines with aligned columns, the first to the left."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            f"{cell:<{n}}" if i == 0 else f"{cell:>{n}}"
            for i, (cell, n) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def clock_after(seconds: float, now: float | None = None) -> str:
    """The local time `seconds` from now: `14:32`, with the day when it is another one: `Tue 14 Jan, 03:10`."""
    now = time.time() if now is None else now
    then = time.localtime(now + seconds)
    is_today = time.localtime(now)[:3] == then[:3]
    return time.strftime("%H:%M" if is_today else "%a %d %b, %H:%M", then)


def size(n_bytes: float) -> str:
    """Bytes in decimal units, as disks are sold: `820 kB`, `1.2 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 999.5:
            return (
                f"{n_bytes:.0f} {unit}" if unit in ("B", "kB") or n_bytes >= 99.5 else f"{n_bytes:.1f} {unit}"
            )
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"


def bar(fraction: float, width: int) -> str:
    """A bar `width` cells long at 1.0, to an eighth of a cell."""
    eighths = round(max(0.0, min(1.0, fraction)) * width * 8)
    full, rest = divmod(eighths, 8)
    return "█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")
