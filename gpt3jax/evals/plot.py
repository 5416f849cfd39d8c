"""Score against the number of demonstrations: the paper's Figure 1.2, for the user's own model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from gpt3jax.style import COLOURS, GREY, STYLE


def plot(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Draw a panel per task, as PNG: score and its standard error, guessing, and none shown.

    Args:
      rows: what `summarise` gives.
      file: written.
    """
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    columns = min(3, len(tasks))
    lines = -(-len(tasks) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * columns + 0.4, 2.9 * lines))
        grid = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
        for axes, task in zip(grid, tasks, strict=False):
            _panel(axes, task, sorted((r for r in rows if r["task"] == task), key=_shots))
        for axes in grid[len(tasks) :]:
            axes.set_visible(False)
        for axes in grid[::columns]:
            axes.set_ylabel("score, %")
        figure.savefig(file)


def _shots(row: dict[str, Any]) -> int:
    return row["shots"]


def _panel(axes: Any, task: str, rows: Sequence[dict[str, Any]]) -> None:
    shots = [row["shots"] for row in rows]
    scores = [100 * row["score"] for row in rows]
    errors = [100 * (row["standard_error"] or 0) for row in rows]
    axes.errorbar(shots, scores, yerr=errors, color=COLOURS[0], marker="o", ms=4, capsize=2)
    if rows[0]["shots"] == 0 and len(rows) > 1:
        axes.axhline(scores[0], color=COLOURS[0], lw=1, ls=":", label="none shown")
    if rows[0]["chance"] is not None:
        axes.axhline(100 * rows[0]["chance"], color=GREY, lw=1, ls="--", label="guessing")
    if len(shots) > 1:
        axes.set_xscale("symlog", base=2, linthresh=1)
    axes.set_xticks(shots, [str(k) for k in shots])
    axes.set_ylim(-3, 103)
    axes.set_title(task.replace("_", " "), fontsize=10.5, parse_math=False)
    axes.set_xlabel("demonstrations (K)")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best")
