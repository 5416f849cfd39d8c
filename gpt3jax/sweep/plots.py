"""The figures of a sweep: each parameter against the loss, importance, all at once, curves."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from gpt3jax.report.page import token_axis
from gpt3jax.style import COLOURS, GREY, STYLE
from gpt3jax.sweep.show import names, short
from gpt3jax.sweep.store import Trial, best

BLUE, RED, GREEN = COLOURS[0], COLOURS[1], COLOURS[2]
MARKS = {"complete": ("o", BLUE), "pruned": ("x", GREY), "diverged": ("^", RED)}
LOG_RANGE = 20
"""Positive values that span more than this factor are drawn on a logarithmic axis."""
ROOM = 0.35
"""Of the range of losses of complete trials: worse ones than so far above are drawn at the top."""
FEWEST = 4
"""Trials with a loss before all parameters are drawn at once."""


def draw_figures(
    trials: Sequence[Trial], importance: dict[str, float], folder: Path
) -> dict[Path, str]:
    """Draw what there is to show, as PNG in a folder; returns files and captions.

    Raises:
      OSError: the folder cannot be written.
    """
    measured = [trial for trial in trials if trial.state in MARKS and trial.params]
    figures: dict[str, tuple[Figure, str]] = {}
    with matplotlib.rc_context(STYLE):
        if any(trial.state == "complete" for trial in measured):
            for name in names(measured):
                figures[re.sub(r"\W", "_", f"loss_by_{name}")] = (
                    _parameter(measured, name),
                    BY_PARAMETER,
                )
        if importance:
            figures["importance"] = _importance(importance), IMPORTANCE
        if len(names(measured)) > 1 and len(measured) >= FEWEST:
            figures["parallel_coordinates"] = _parallel(measured), PARALLEL
        if any(len(trial.curve) > 1 for trial in measured):
            figures["learning_curves"] = _curves(measured), CURVES
        written = {}
        for name, (figure, caption) in figures.items():
            file = folder / f"{name}.png"
            figure.savefig(file)
            written[file] = caption
    return written


BY_PARAMETER = (
    "Each point is a trial; the line marks the best complete one. Pruned ones stand at the loss "
    "they were stopped at. What lies far above the others, or diverged, stands at the top edge."
)
IMPORTANCE = "Share of the differences in loss that each parameter explains, by PED-ANOVA."
PARALLEL = "Each line is a trial, darker the lower its loss; dashed: pruned or diverged."
CURVES = (
    "Validation loss of each trial, on the same held-out windows. Grey: pruned, to where it was "
    "stopped. Red: diverged."
)


def is_log(values: Sequence[Any]) -> bool:
    """Whether numbers are better seen on a logarithmic axis."""
    are_numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    return are_numbers and min(values) > 0 and max(values) > LOG_RANGE * min(values)


def _ceiling(trials: Sequence[Trial]) -> float:
    """The highest loss that is drawn as it is."""
    done = [t.val_loss for t in trials if t.state == "complete" and t.val_loss is not None]
    return max(done) + ROOM * max(max(done) - min(done), 0.01 * min(done))


def _parameter(trials: Sequence[Trial], name: str) -> Figure:
    figure = Figure()
    axes = figure.subplots()
    there = [trial for trial in trials if name in trial.params]
    values = [trial.params[name] for trial in there]
    top, winner = _ceiling(trials), best(trials)
    is_choice = not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    for state, (mark, colour) in MARKS.items():
        some = [trial for trial in there if trial.state == state]
        x = [str(t.params[name]) if is_choice else t.params[name] for t in some]
        y = [top if t.val_loss is None or state == "diverged" else min(t.val_loss, top)
             for t in some]  # fmt: skip
        if some:
            axes.plot(x, y, mark, color=colour, markersize=5, label=state, clip_on=False, zorder=3)
    if winner and name in winner.params:
        value = str(winner.params[name]) if is_choice else winner.params[name]
        look = {"color": GREEN, "linewidth": 1, "linestyle": (0, (4, 2)), "zorder": 1}
        axes.axvline(value, **look, label=f"best: {short(winner.params[name])}")
        axes.plot([value], [winner.val_loss], "o", color=GREEN, markersize=7, zorder=4)
    if is_log(values):
        axes.set_xscale("log")
    axes.set_xlabel(name, parse_math=False)
    axes.set_ylabel("validation loss, nats/token")
    axes.legend()
    return figure


def _importance(importance: dict[str, float]) -> Figure:
    figure = Figure(figsize=(STYLE["figure.figsize"][0], 0.9 + 0.4 * len(importance)))
    axes = figure.subplots()
    ordered = list(importance.items())[::-1]
    axes.barh(range(len(ordered)), [share for _, share in ordered], height=0.6, color=BLUE)
    axes.set_yticks(range(len(ordered)), [name for name, _ in ordered], parse_math=False)
    axes.set_xlabel("importance")
    axes.set_xlim(0, 1)
    axes.grid(visible=False, axis="y")
    return figure


def _parallel(trials: Sequence[Trial]) -> Figure:
    figure = Figure()
    axes = figure.subplots()
    columns = [*names(trials), "val_loss"]
    scales = [_unit([_value(trial, name) for trial in trials]) for name in columns]
    done = sorted(t.val_loss for t in trials if t.state == "complete" and t.val_loss is not None)
    top = _ceiling(trials) if done else 1.0
    for index, trial in enumerate(trials):
        points = [(x, scale[index]) for x, scale in enumerate(scales) if scale[index] is not None]
        loss = top if trial.val_loss is None else min(trial.val_loss, top)
        share = (top - loss) / (top - done[0]) if done and top > done[0] else 0.5
        look = "-" if trial.state == "complete" else ":"
        axes.plot(*zip(*points, strict=True), look, color=BLUE, alpha=0.1 + 0.9 * share**2,
                  linewidth=1.2)  # fmt: skip
    for x, name in enumerate(columns):
        found = [v for v in (_value(trial, name) for trial in trials) if v is not None]
        axes.axvline(x, color=GREY, linewidth=0.6)
        ends = (found[0], found[-1]) if isinstance(found[0], str) else (min(found), max(found))
        if not isinstance(found[0], str):
            for y, text in zip((0, 1), ends, strict=True):
                axes.text(x, y + (0.03 if y else -0.03), short(text), ha="center",
                          va="bottom" if y else "top", fontsize=9)  # fmt: skip
        else:
            for choice in dict.fromkeys(found):
                axes.text(x + 0.03, _place(choice, found), choice, fontsize=9, parse_math=False)
    axes.set_xticks(range(len(columns)), columns, parse_math=False)
    axes.set(yticks=[], ylim=(-0.12, 1.12), xlim=(-0.3, len(columns) - 0.7))
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False)
    return figure


def _value(trial: Trial, name: str) -> Any:
    value = trial.val_loss if name == "val_loss" else trial.params.get(name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if value is None or is_number else str(value)


def _place(value: Any, values: Sequence[Any]) -> float:
    choices = list(dict.fromkeys(v for v in values if v is not None))
    return choices.index(value) / max(1, len(choices) - 1)


def _unit(values: Sequence[Any]) -> list[float | None]:
    """Values from 0 to 1: numbers by size, or by order of magnitude; choices in their order."""
    there = [value for value in values if value is not None]
    if any(isinstance(value, str) for value in there):
        return [None if value is None else _place(value, values) for value in values]
    move = math.log if is_log(there) else float
    low, high = move(min(there)), move(max(there))
    width = high - low or 1.0
    return [None if value is None else (move(value) - low) / width for value in values]


def _curves(trials: Sequence[Trial]) -> Figure:
    figure = Figure()
    axes = figure.subplots()
    winner = best(trials)
    untrained = max((t.curve[0] for t in trials if 0 in t.curve), default=math.inf)
    for trial in trials:
        colour = MARKS[trial.state][1]
        look = {"color": colour, "linewidth": 1.0, "alpha": 0.6}
        if trial is winner:
            look = {"color": GREEN, "linewidth": 2.0, "zorder": 4}
        axes.plot(list(trial.curve), list(trial.curve.values()), **look)
        if trial.state != "complete" and trial.curve:
            tokens, loss = list(trial.curve.items())[-1]
            axes.plot([tokens], [loss], MARKS[trial.state][0], color=colour, markersize=4)
    seen = {trial.state for trial in trials}
    kinds = [Line2D([], [], color=MARKS[s][1], label=s) for s in MARKS if s in seen]
    if winner:
        kinds.append(Line2D([], [], color=GREEN, linewidth=2, label=f"best: {winner.number}"))
    _keep_in_sight(axes, trials, untrained)
    token_axis(axes)
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.set_ylabel("validation loss, nats/token")
    axes.legend(handles=kinds)
    return figure


def _keep_in_sight(axes: Axes, trials: Sequence[Trial], untrained: float) -> None:
    """What diverged must not press the others flat."""
    losses = [loss for trial in trials for loss in trial.curve.values()]
    low, high = min(losses), max(losses)
    if math.isfinite(untrained) and high > untrained:
        axes.set_ylim(low - 0.04 * (untrained - low), untrained + 0.12 * (untrained - low))
