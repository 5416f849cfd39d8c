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
                file = re.sub(r"\W", "_", f"loss_by_{name}")
                figures[file] = _parameter(measured, name), BY_PARAMETER
        if importance:
            figures["importance"] = _importance(importance), IMPORTANCE
        with_loss = sum(trial.val_loss is not None for trial in measured)
        if len(names(measured)) > 1 and with_loss >= MIN_PARALLEL:
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


def _column(trials: Sequence[Trial], name: str) -> list[Any]:
    """A parameter of each trial, None where it has none: numbers, or else strings (choices)."""
    values = [trial.params[name] for trial in trials if name in trial.params]
    are_numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    shown = iter(values if are_numbers else map(str, values))
    return [next(shown) if name in trial.params else None for trial in trials]


def _is_log(numbers: Sequence[float]) -> bool:
    """Whether to plot these values on a logarithmic axis."""
    return min(numbers) > 0 and max(numbers) > LOG_RANGE * min(numbers)


def _complete_losses(trials: Sequence[Trial]) -> list[float]:
    return [t.val_loss for t in trials if t.state == "complete" and t.val_loss is not None]


def _ceiling(complete: Sequence[float]) -> float:
    """The loss above which points are clipped."""
    return max(complete) + HEADROOM * max(max(complete) - min(complete), 0.01 * min(complete))


def _parameter(trials: Sequence[Trial], name: str) -> Figure:
    figure = Figure()
    axes = figure.subplots()
    column, winner = _column(trials, name), best(trials)
    top = _ceiling(_complete_losses(trials))
    for state, (mark, colour) in MARKS.items():
        subset = [
            (value, trial.val_loss)
            for value, trial in zip(column, trials, strict=True)
            if trial.state == state and value is not None
        ]
        x = [value for value, _ in subset]
        y = [top if y is None or state == "diverged" else min(y, top) for _, y in subset]
        if subset:
            axes.plot(x, y, mark, color=colour, markersize=5, label=state, clip_on=False, zorder=3)
    if winner and name in winner.params:
        value = column[list(trials).index(winner)]
        style = {"color": GREEN, "linewidth": 1, "linestyle": (0, (4, 2)), "zorder": 1}
        axes.axvline(value, **style, label=f"best: {short(winner.params[name])}")
        loss: Any = winner.val_loss  # The best trial always has a loss.
        axes.plot([value], [loss], "o", color=GREEN, markersize=7, zorder=4)
    values = [value for value in column if value is not None]
    if not isinstance(values[0], str) and _is_log(values):
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
    columns = {name: _column(trials, name) for name in names(trials)}
    columns["val_loss"] = [trial.val_loss for trial in trials]
    places = [_places(column) for column in columns.values()]
    complete = _complete_losses(trials)
    top, lowest = (_ceiling(complete), min(complete)) if complete else (1.0, 1.0)
    for trial, *values in zip(trials, *columns.values(), strict=True):
        x = [number for number, value in enumerate(values) if value is not None]
        y = [places[number][values[number]] for number in x]
        loss = top if trial.val_loss is None else min(trial.val_loss, top)
        share = (top - loss) / (top - lowest) if top > lowest else 0.5
        stroke = "-" if trial.state == "complete" else ":"
        axes.plot(x, y, stroke, color=BLUE, alpha=0.1 + 0.9 * share**2, linewidth=1.2)
    for x, place in enumerate(places):
        axes.axvline(x, color=GREY, linewidth=0.6)
        if isinstance(next(iter(place)), str):
            for choice, y in place.items():
                axes.text(x + 0.03, y, choice, fontsize=9, parse_math=False)
        else:
            for value, y, side in ((min(place), -0.03, "top"), (max(place), 1.03, "bottom")):
                axes.text(x, y, short(value), ha="center", va=side, fontsize=9)
    axes.set_xticks(range(len(columns)), columns, parse_math=False)
    axes.set(yticks=[], ylim=(-0.12, 1.12), xlim=(-0.3, len(columns) - 0.7))
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False)
    return figure


def _places(column: Sequence[Any]) -> dict[Any, float]:
    """Where each value stands from 0 to 1: numbers on their scale, choices by their index."""
    values = list(dict.fromkeys(value for value in column if value is not None))
    if isinstance(values[0], str):
        return {value: index / max(1, len(values) - 1) for index, value in enumerate(values)}
    scale = math.log if _is_log(values) else float
    low, high = scale(min(values)), scale(max(values))
    return {value: (scale(value) - low) / (high - low or 1.0) for value in values}


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
