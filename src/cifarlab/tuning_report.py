"""What a search found and what it cost: `tune.json`, `tune.md` and `tune.png` in its folder."""

from __future__ import annotations

import json
import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifarlab import text
from cifarlab.errors import UserError
from cifarlab.files import write_atomic
from cifarlab.run import Run, chosen_row, is_run

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from cifarlab.tuning import Search


def report_of(search: Search, study: optuna.Study, finals: optuna.Study) -> dict[str, Any]:
    """The whole report as data: what `tune.json` holds."""
    from cifarlab.tuning import counted

    trials = [_trial(trial) for trial in counted(study)]
    finalists = _finalists(search, study, finals)
    if not finalists or finalists[0]["median_loss"] is None:
        raise UserError("no finalist's training ended well: every one diverged or failed")
    spent = [*study.get_trials(deepcopy=False), *finals.get_trials(deepcopy=False)]
    return {
        "recipe": search.recipe.name,
        "data": search.source.name,
        "objective": "validation loss, cross-entropy without the L2 term",
        "seed": search.recipe.seed,
        "trials": trials,
        "finalists": finalists,
        "winner": finalists[0],
        "importance": _importance(study),
        "cost": {
            "trials": len(trials),
            **{state: sum(trial["state"] == state for trial in trials) for state in STATES},
            "finalist_trainings": sum(map(_has_ended, finals.get_trials(deepcopy=False))),
            "elapsed_seconds": sum(trial.user_attrs.get("elapsed_seconds", 0.0) for trial in spent),
            "images": sum(trial.user_attrs.get("images", 0) for trial in spent),
        },
    }


STATES = ("complete", "pruned", "diverged", "failed")


def write_report(report: Mapping[str, Any], command: str, folder: Path) -> list[Path]:
    """Write the report as JSON, as a page and as a figure; returns their paths."""
    from cifarlab.figures import save_figure, search_figure

    content = {**report, "command": command}
    paths = [folder / name for name in ("tune.json", "tune.md", "tune.png")]
    write_atomic(paths[0], (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
    write_atomic(paths[1], as_markdown(content).encode())
    figure = search_figure(
        report["trials"], report["importance"], title=f"{report['recipe']}: {len(report['trials'])} trials"
    )
    save_figure(figure, paths[2])
    return paths


def train_command(recipe: str, settings: Mapping[str, Any], options: Sequence[str]) -> str:
    """The command that trains with `settings`, to be pasted into a shell."""
    words = ["train", recipe, *options]
    for field, value in settings.items():
        words += ["--set", f"{field}={value if isinstance(value, str) else json.dumps(value)}"]
    return text.command(*words)


def as_markdown(report: Mapping[str, Any]) -> str:
    cost, winner = report["cost"], report["winner"]
    lines = [
        f"# Search over {report['recipe']} on {report['data']}",
        "",
        f"The winner is trial {winner['trial']}: {values_text(winner['values'])}. Its median over"
        f" {len(winner['losses'])} new seeds: {median_text(winner)}.",
        "",
        "```sh",
        report["command"],
        "```",
        "",
        cost_text(cost),
        "The test set was not opened. What decided is the validation loss without the L2 term.",
        "",
        "![trials](tune.png)",
        "",
        "## Finalists",
        "",
        text.markdown_table(
            ["trial", "median loss", "median accuracy", "losses by seed", "values"],
            [_finalist_row(each) for each in report["finalists"]],
        ),
        "",
        "## Trials",
        "",
        text.markdown_table(
            ["trial", "state", "loss", "epochs", "time", "values"],
            [_trial_row(trial) for trial in report["trials"]],
        ),
    ]
    return "\n".join(lines) + "\n"


def values_text(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} = {value if isinstance(value, str) else json.dumps(value)}" for name, value in values.items()
    )


def median_text(finalist: Mapping[str, Any]) -> str:
    accuracy = text.percent(finalist["median_accuracy"], 2)
    return f"validation loss {text.number(finalist['median_loss'])}, accuracy {accuracy}"


def cost_text(cost: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{cost[state]} {state}" for state in STATES if cost[state])
    return (
        f"The search cost {text.count(cost['trials'], 'trial')} ({counts}) and"
        f" {text.count(cost['finalist_trainings'], 'training')} of finalists:"
        f" {text.duration(cost['elapsed_seconds'])} of training, {cost['images']:,} pictures."
    )


def _trial(trial: FrozenTrial) -> dict[str, Any]:
    attributes, losses = trial.user_attrs, trial.user_attrs.get("losses", [])
    state = (
        "diverged"
        if attributes.get("diverged")
        else "failed"
        if "error" in attributes
        else trial.state.name.lower()
    )
    return {
        "number": attributes.get("origin", trial.number),
        "state": state,
        "loss": trial.value if state == "complete" else min(losses, default=None),
        "epochs": len(losses),
        "elapsed_seconds": attributes.get("elapsed_seconds", 0.0),
        "images": attributes.get("images", 0),
        "values": attributes.get("values", {}),
        "error": attributes.get("error"),
    }


def _finalists(search: Search, study: optuna.Study, finals: optuna.Study) -> list[dict[str, Any]]:
    """By median loss; a training that diverged counts as the worst."""
    trials = study.get_trials(deepcopy=False)
    rows = []
    for number, by_seed in _trainings_of_finalists(search, finals).items():
        origin = trials[number].user_attrs.get("origin", number)
        losses = {
            seed: None if _ended_badly(final) else final.value for seed, final in sorted(by_seed.items())
        }
        folder = search.folder / "finalists" / f"trial-{origin:04d}"
        accuracies = {
            seed: None if _ended_badly(final) else _accuracy(folder / f"seed-{seed}")
            for seed, final in sorted(by_seed.items())
        }
        rows.append(
            {
                "trial": origin,
                "values": trials[number].user_attrs["values"],
                "losses": losses,
                "accuracies": accuracies,
                "median_loss": _median(list(losses.values()), worst=math.inf),
                "median_accuracy": _median(list(accuracies.values()), worst=0.0),
            }
        )
    return sorted(rows, key=lambda row: (row["median_loss"] is None, row["median_loss"], row["trial"]))


def _trainings_of_finalists(search: Search, finals: optuna.Study) -> dict[int, dict[int, FrozenTrial]]:
    """By trial and seed, with this search's seeds; of an earlier search with fewer, only who has them all by now."""
    found: dict[int, dict[int, FrozenTrial]] = {}
    for final in finals.get_trials(deepcopy=False):
        number, seed = final.user_attrs.get("task", (None, None))
        if _has_ended(final) and seed in search.finalist_seeds:
            found.setdefault(number, {})[seed] = final
    most = max(map(len, found.values()), default=0)
    return {number: by_seed for number, by_seed in found.items() if len(by_seed) == most}


def _has_ended(final: FrozenTrial) -> bool:
    return final.state.is_finished() and (final.value is not None or _ended_badly(final))


def _ended_badly(final: FrozenTrial) -> bool:
    return bool(final.user_attrs.get("diverged")) or "error" in final.user_attrs


def _accuracy(path: Path) -> float | None:
    """Validation accuracy of the weights that `evaluate` takes; None where the run is on another machine."""
    if not is_run(path) or not Run(path).metrics:
        return None
    return chosen_row(Run(path).metrics, Run(path).recipe)["validation_accuracy"]


def _median(values: list[float | None], worst: float) -> float | None:
    median = statistics.median([worst if value is None else value for value in values])
    return median if math.isfinite(median) and any(value is not None for value in values) else None


def _importance(study: optuna.Study) -> dict[str, float]:
    """Each field's share of what the loss depends on; empty where too few trials were finished to say."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter(
            "error", UserWarning
        )  # "The number of trials is too small": no answer, not an equal share
        try:
            return dict(optuna.importance.get_param_importances(study))
        except (ValueError, RuntimeError, UserWarning):
            return {}


def _finalist_row(each: Mapping[str, Any]) -> list[str]:
    losses = ", ".join(f"{seed}: {text.number(loss)}" for seed, loss in each["losses"].items())
    accuracy = text.percent(each["median_accuracy"], 2)
    return [
        str(each["trial"]),
        text.number(each["median_loss"]),
        accuracy,
        losses,
        values_text(each["values"]),
    ]


def _trial_row(trial: Mapping[str, Any]) -> list[str]:
    told = values_text(trial["values"]) + (f"; {trial['error']}" if trial["error"] else "")
    seconds = text.duration(trial["elapsed_seconds"])
    return [
        str(trial["number"]),
        trial["state"],
        text.number(trial["loss"]),
        str(trial["epochs"]),
        seconds,
        told,
    ]
