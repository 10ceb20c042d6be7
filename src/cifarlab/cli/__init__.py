"""The command line: the only part that prints or exits. One module for each group of verbs.

Everything heavy (torch, NumPy, pydantic, rich) is imported inside the commands, so that `--help` and a mistyped name
are answered at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cifarlab.cli import (
    calibrate,
    compare,
    data,
    evaluate,
    figure,
    keras,
    leaderboard,
    predict,
    recipes,
    report,
    reproduce,
    study,
    train,
    tune,
    watch,
)
from cifarlab.errors import CifarlabError, Interrupted, UserError, nearest
from cifarlab.text import one_line

UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # type: ignore[assignment]  # typer's own base of every mistake on the command line
NOT_A_NUMBER = "Input should be a valid integer, unable to parse string as an integer"
BROKEN_PIPE = 128 + 13  # as a shell reports a program that SIGPIPE ended


class Commands(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            hint = nearest(args[0], self.commands) or f"; there are {', '.join(self.commands)}"
            raise UserError(f"unknown command '{args[0]}'{hint}")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Train, judge and use classifiers of small images: CIFAR-10 first.

    \b
    Start here:
      cifarlab recipes                        what can be trained
      cifarlab train demo --data demo         a first training, in about a minute
      cifarlab train vgg3-bn --plan           what the real thing would take
    """
    if version:
        from cifarlab import __version__

        typer.echo(f"cifarlab {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


for verb, summary in (
    (recipes.recipes, "List what can be trained."),
    (recipes.show, "Show a recipe's layers and settings."),
    (data.data, "Find or fetch a data set, verify and count it."),
    (train.train, "Train a recipe."),
    (train.resume, "Go on with a training."),
    (evaluate.evaluate, "Judge a run on the test set."),
    (calibrate.calibrate, "Make a run's probabilities true."),
    (compare.compare, "Say whether one recipe is better than another."),
    (report.report, "Write one page about a run."),
    (leaderboard.leaderboard, "List runs by test accuracy."),
    (predict.predict, "Say what is in pictures."),
    (figure.figure, "Draw a figure."),
    (keras.import_keras, "Make a run of weights that Keras saved."),
    (keras.export_keras, "Write a run's weights for Keras."),
    (reproduce.reproduce, "Train what was published, and compare."),
    (study.study, "Train a recipe with fields at other values."),
    (tune.lr_find, "Find a learning rate for a recipe."),
    (tune.tune, "Search for good settings of a recipe."),
    (watch.watch, "Show the curves of a training as it goes."),
):
    app.command(short_help=summary)(verb)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: docs/reference/exit-codes.md says what each means."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a name no terminal can show
    try:
        code = _run(sys.argv[1:] if arguments is None else list(arguments))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit must not fail too
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return _say("interrupted", 130)
    except Interrupted as error:
        return _say(str(error), error.exit_code)
    except CifarlabError as error:
        return _say(f"error: {error}", error.exit_code)
    except OSError as error:  # no space, no permission: the machine's state, not a bug
        where = f"{error.filename}: " if error.filename else ""
        return _say(f"error: {where}{error.strerror or error}", 2)
    except Exception as error:
        if _is_out_of_memory(error):
            return _say("error: not enough memory: try a smaller batch_size, or close other programs", 2)
        import traceback

        traceback.print_exc()
        return _say(
            f"error: this is a bug in cifarlab ({type(error).__name__}); please report it with the lines above",
            1,
        )


def _is_out_of_memory(error: Exception) -> bool:
    """Python's and torch.OutOfMemoryError by name, torch's on the CPU, a plain RuntimeError, by its words."""
    by_name = type(error).__name__ in ("MemoryError", "OutOfMemoryError", "_ArrayMemoryError")
    return by_name or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def _run(arguments: list[str]) -> int:
    command = typer.main.get_command(app)
    try:
        with command.make_context("cifarlab", arguments) as context:
            command.invoke(context)
    except typer.Exit as stop:
        return stop.exit_code
    except UsageError as mistake:
        raise UserError(_usage_message(mistake)) from None
    return 0


def _usage_message(mistake: Any) -> str:
    """Typer's message as one line in our form, with the nearest option and where to read on."""
    context = mistake.ctx
    path = context.command_path if context is not None else "cifarlab"
    given = getattr(mistake, "option_name", None)
    if given is not None and hasattr(mistake, "possibilities"):
        options = [name for parameter in context.command.params for name in parameter.opts] if context else []
        text = f"unknown option '{given}'{nearest(given, options)}"
    else:
        text = mistake.format_message().rstrip(".").replace(NOT_A_NUMBER, "should be a whole number")
        text = text[:1].lower() + text[1:]
    return f"{text} (`{path} --help` shows an example)"


def _say(line: str, code: int) -> int:
    try:
        sys.stderr.write(one_line(line) + "\n")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    return code
