"""Figures of a sweep: loss by parameter, importance, parallel coordinates, learning curves."""

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
"""Positive values that span more than this factor are plotted on a logarithmic axis."""
HEADROOM = 0.35
"""Losses further above those of complete trials than this share of their range are clipped."""
MIN_PARALLEL = 4
"""Minimum number of trials with a loss for the parallel-coordinates plot."""


def draw_figures(
    trials: Sequence[Trial], importance: dict[str, float], folder: Path
) -> dict[Path, str]:
    """Saves every figure for which there is data as PNG, and returns files with captions.

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
        if len(names(measured)) > 1 and len(measured) >= MIN_PARALLEL:
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
    "Each point is a trial; the line marks the best complete one. Pruned trials are plotted at the "
    "loss at which they were stopped. Very large losses and diverged trials are at the top edge."
)
IMPORTANCE = "Share of the variation in loss that each parameter explains, by PED-ANOVA."
PARALLEL = "Each line is a trial, darker the lower its loss; dashed: pruned or diverged."
CURVES = (
    "Validation loss of each trial, on the same held-out windows. Grey: pruned, up to the step at "
    "which it was stopped. Red: diverged."
)


def is_log(values: Sequence[Any]) -> bool:
    """Whether to plot these values on a logarithmic axis."""
    are_numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    return are_numbers and min(values) > 0 and max(values) > LOG_RANGE * min(values)


def _ceiling(trials: Sequence[Trial]) -> float:
    """The loss above which points are clipped."""
    complete = [t.val_loss for t in trials if t.state == "complete" and t.val_loss is not None]
    return max(complete) + HEADROOM * max(max(complete) - min(complete), 0.01 * min(complete))


def _parameter(trials: Sequence[Trial], name: str) -> Figure:
    figure = Figure()
    axes = figure.subplots()
    with_value = [trial for trial in trials if name in trial.params]
    values = [trial.params[name] for trial in with_value]
    top, winner = _ceiling(trials), best(trials)
    is_choice = not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    for state, (mark, colour) in MARKS.items():
        subset = [trial for trial in with_value if trial.state == state]
        x = [str(t.params[name]) if is_choice else t.params[name] for t in subset]
        y = [
            top if t.val_loss is None or state == "diverged" else min(t.val_loss, top)
            for t in subset
        ]
        if subset:
            axes.plot(x, y, mark, color=colour, markersize=5, label=state, clip_on=False, zorder=3)
    if winner and name in winner.params:
        value: Any = str(winner.params[name]) if is_choice else winner.params[name]
        style = {"color": GREEN, "linewidth": 1, "linestyle": (0, (4, 2)), "zorder": 1}
        axes.axvline(value, **style, label=f"best: {short(winner.params[name])}")
        loss: Any = winner.val_loss  # The best trial always has a loss.
        axes.plot([value], [loss], "o", color=GREEN, markersize=7, zorder=4)
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
    complete = sorted(
        t.val_loss for t in trials if t.state == "complete" and t.val_loss is not None
    )
    top = _ceiling(trials) if complete else 1.0
    for index, trial in enumerate(trials):
        points = [(x, scale[index]) for x, scale in enumerate(scales) if scale[index] is not None]
        loss = top if trial.val_loss is None else min(trial.val_loss, top)
        share = (top - loss) / (top - complete[0]) if complete and top > complete[0] else 0.5
        stroke = "-" if trial.state == "complete" else ":"
        axes.plot(
            *zip(*points, strict=True),
            stroke,
            color=BLUE,
            alpha=0.1 + 0.9 * share**2,
            linewidth=1.2,
        )
    for x, name in enumerate(columns):
        values = [v for v in (_value(trial, name) for trial in trials) if v is not None]
        axes.axvline(x, color=GREY, linewidth=0.6)
        ends = (values[0], values[-1]) if isinstance(values[0], str) else (min(values), max(values))
        if not isinstance(values[0], str):
            for y, text in zip((0, 1), ends, strict=True):
                axes.text(
                    x,
                    y + (0.03 if y else -0.03),
                    short(text),
                    ha="center",
                    va="bottom" if y else "top",
                    fontsize=9,
                )
        else:
            for choice in dict.fromkeys(values):
                axes.text(x + 0.03, _place(choice, values), choice, fontsize=9, parse_math=False)
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
    """Scales values to [0, 1]: numbers linearly or logarithmically, choices by their index."""
    present = [value for value in values if value is not None]
    if any(isinstance(value, str) for value in present):
        return [None if value is None else _place(value, values) for value in values]
    scale = math.log if is_log(present) else float
    low, high = scale(min(present)), scale(max(present))
    width = high - low or 1.0
    return [None if value is None else (scale(value) - low) / width for value in values]


def _curves(trials: Sequence[Trial]) -> Figure:
    figure = Figure()
    axes = figure.subplots()
    winner = best(trials)
    untrained = max((t.curve[0] for t in trials if 0 in t.curve), default=math.inf)
    for trial in trials:
        colour = MARKS[trial.state][1]
        style: dict[str, Any] = {"color": colour, "linewidth": 1.0, "alpha": 0.6}
        if trial is winner:
            style = {"color": GREEN, "linewidth": 2.0, "zorder": 4}
        axes.plot(list(trial.curve), list(trial.curve.values()), **style)
        if trial.state != "complete" and trial.curve:
            tokens, loss = list(trial.curve.items())[-1]
            axes.plot([tokens], [loss], MARKS[trial.state][0], color=colour, markersize=4)
    seen = {trial.state for trial in trials}
    handles = [Line2D([], [], color=MARKS[s][1], label=s) for s in MARKS if s in seen]
    if winner:
        handles.append(Line2D([], [], color=GREEN, linewidth=2, label=f"best: {winner.number}"))
    _limit_loss_axis(axes, trials, untrained)
    token_axis(axes)
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.set_ylabel("validation loss, nats/token")
    axes.legend(handles=handles)
    return figure


def _limit_loss_axis(axes: Axes, trials: Sequence[Trial], untrained: float) -> None:
    """Clips the loss axis above the untrained loss, so that diverged trials do not dominate it."""
    losses = [loss for trial in trials for loss in trial.curve.values()]
    low, high = min(losses), max(losses)
    if math.isfinite(untrained) and high > untrained:
        axes.set_ylim(low - 0.04 * (untrained - low), untrained + 0.12 * (untrained - low))
