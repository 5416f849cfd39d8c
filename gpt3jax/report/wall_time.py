"""The part of a report about wall time by phase: a figure and a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

from gpt3jax.style import html_cells
from gpt3jax.train.monitor.goodput import PHASES, Goodput

# Fill and text colour of each phase. Productive phases use Okabe and Ito's palette.
COLOURS = {
    "step": ("#0072B2", "white"), "replay": ("#D55E00", "white"), "data": ("#E69F00", "black"),
    "evaluate": ("#009E73", "white"), "save": ("#56B4E9", "black"), "compile": ("#CC79A7", "black"),
    "restore": ("#F0E442", "black"), "start": ("#999999", "black"), "idle": ("#dddddd", "black"),
}  # fmt: skip

INK = "#333333"
LONGEST_NAME = 40
"""Characters of a run's name that fit beside its wall time."""
LETTER_WIDTH = 0.0165
"""Width of a character with margin, as a share of a bar."""
MIN_SHARE = 0.0005
"""Smallest share in the legend: it rounds to 0.1%."""

Timed = Sequence[tuple[str, Goodput]]
"""Name and wall time of each run that recorded it."""


def draw_times(timed: Timed, width: float) -> Figure:
    """Draws a bar per run with the share of each phase in its wall time. `width` is in inches."""
    figure = Figure(figsize=(width, 1.2 + 0.6 * len(timed)))
    axes = figure.subplots()
    seen: set[str] = set()
    for row, (name, goodput) in enumerate(timed):
        left = 0.0
        for phase, share in goodput.shares().items():
            colour, ink = COLOURS[phase]
            axes.barh(row, share, left=left, height=0.55, color=colour)
            label = f"{phase}\n{share:.0%}"
            if share > LETTER_WIDTH * max(map(len, label.split("\n"))):
                how: dict[str, Any] = {
                    "ha": "center",
                    "va": "center",
                    "fontsize": 9.5,
                    "linespacing": 1.0,
                }
                axes.text(left + share / 2, row, label, color=ink, **how)
            left += share
            seen |= {phase} if share >= MIN_SHARE else set()
        # Long names are cut at the front, as runs usually differ at the end.
        short = name if len(name) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME :]}"
        for x, side, text in ((0, "left", short), (1, "right", duration(goodput.wall_seconds))):
            axes.text(x, row - 0.29, text, ha=side, va="bottom", color=INK, parse_math=False)
    axes.set(xlim=(0, 1), ylim=(len(timed) - 0.65, -0.7), yticks=[])
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("share of wall time")
    phases = [phase for phase, _ in PHASES if phase in seen]
    columns = 5
    # Matplotlib fills a legend by columns, but it is read by rows.
    phases = [phase for column in range(columns) for phase in phases[column::columns]]
    squares = [Rectangle((0, 0), 1, 1, color=COLOURS[phase][0]) for phase in phases]
    spaces: dict[str, Any] = {"handlelength": 0.9, "columnspacing": 1.2, "handletextpad": 0.5}
    figure.legend(squares, phases, loc="outside lower center", ncols=columns, **spaces)
    return figure


def time_table(timed: Timed) -> str:
    """HTML table with a row per phase, a column per run and a description of each phase."""
    head = html_cells((name for name, _ in timed), "th scope=col")
    rows = [
        (phase, [_cell(goodput, phase) for _, goodput in timed], meaning)
        for phase, meaning in PHASES
    ]
    rows += [
        ("wall", [duration(goodput.wall_seconds) for _, goodput in timed], "total"),
        ("sessions", [str(goodput.sessions) for _, goodput in timed], "calls of train"),
        ("killed", [str(goodput.killed) for _, goodput in timed], "sessions that were killed"),
    ]
    body = "".join(
        f"<tr><th scope=row>{label}</th>{''.join(f'<td class=time>{cell}</td>' for cell in cells)}"
        f"<td class=why>{meaning}</td></tr>\n"
        for label, cells, meaning in rows
    )
    return (
        "<h2>Time by phase</h2>\n<div class=wide><table>"
        f"<thead><tr><th></th>{head}<th></th></tr></thead>\n"
        f"<tbody>{body}</tbody></table></div>\n"
    )


def _cell(goodput: Goodput, phase: str) -> str:
    seconds, share = goodput.seconds_by_phase[phase], goodput.shares()[phase]
    return f"{duration(seconds)} <small>{share:.1%}</small>" if seconds else "–"


def duration(seconds: float) -> str:
    """Formats a duration.

    >>> duration(1.25), duration(600), duration(4 * 86400)
    ('1.2 s', '10.0 min', '96.0 h')
    """
    for unit, scale in (("s", 1), ("min", 60)):
        if seconds < 100 * scale:
            return f"{seconds / scale:.1f} {unit}"
    return f"{seconds / 3600:,.1f} h"
