"""The messages a person sees, and the exit code each of them leads to."""

import difflib
from collections.abc import Iterable


class CifarlabError(Exception):
    """Base of every error that cifarlab raises on purpose. `exit_code` is what the command line returns."""

    exit_code = 1


class UserError(CifarlabError):
    """A mistake in what was asked for or given: one clear line, nothing lost."""

    exit_code = 2


class DivergedError(CifarlabError):
    """Training met a loss that is not finite. The weights of the last good epoch are kept."""

    exit_code = 3


class Interrupted(CifarlabError):
    """Training stopped on a signal after saving everything that `resume` needs."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number


def nearest(given: str, allowed: Iterable[str]) -> str:
    """The end of a message about a mistyped name: `"; did you mean 'vgg3'?"`, or nothing when no name is near."""
    matches = difflib.get_close_matches(given.lower(), list(allowed), n=1, cutoff=0.6)
    return f"; did you mean '{matches[0]}'?" if matches else ""


def one_of(names: Iterable[str], joined_by: str = "or") -> str:
    """The names that are allowed, for a message: `a, b or c`."""
    *head, last = list(names)
    return f"{', '.join(head)} {joined_by} {last}" if head else last
