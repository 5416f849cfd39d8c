"""Plot scores against the number of demonstrations, as in the paper's Figure 1.2."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from gpt3jax.evals.summary import described
from gpt3jax.serde import short_hash
from gpt3jax.style import COLOURS, GREY, STYLE


def plot(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Plot a panel per task: scores with 95 % intervals, and the baselines guessing and zero-shot.

    Args:
      rows: the result of `summarise`.
      file: the PNG file to write.
    """
    panels: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        panels.setdefault((row["task"], short_hash(row["asked"])), []).append(row)
    protocols = Counter(task for task, _ in panels)
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * columns + 0.4, 2.9 * lines))
        grid = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
        for axes, ((task, _), of_panel) in zip(grid, panels.items(), strict=False):
            title = task.replace("_", " ")
            title += f"\n{described(of_panel[0])}" if protocols[task] > 1 else ""
            _panel(axes, title, sorted(of_panel, key=itemgetter("shots")))
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        for axes in grid[::columns]:
            axes.set_ylabel("score, %")
        figure.savefig(file)


def _panel(axes: Any, title: str, rows: Sequence[dict[str, Any]]) -> None:
    shots = [row["shots"] for row in rows]
    scores = [100 * row["score"] for row in rows]
    errors = [[100 * abs(row["interval"][end] - row["score"]) for row in rows] for end in (0, 1)]
    axes.errorbar(shots, scores, yerr=errors, color=COLOURS[0], marker="o", ms=4, capsize=2)
    if rows[0]["shots"] == 0 and len(rows) > 1:
        axes.axhline(scores[0], color=COLOURS[0], lw=1, ls=":", label="none shown")
    if rows[0]["chance"] is not None:
        axes.axhline(100 * rows[0]["chance"], color=GREY, lw=1, ls="--", label="guessing")
    if len(shots) > 1:
        axes.set_xscale("symlog", base=2, linthresh=1)
    axes.set_xticks(shots, [str(k) for k in shots])
    axes.set_ylim(-3, 103)
    axes.set_title(title, fontsize=10.5, parse_math=False)
    axes.set_xlabel("demonstrations (K)")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best")
