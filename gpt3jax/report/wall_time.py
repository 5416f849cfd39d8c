"""The part of a report that says where the wall time of its runs went: a figure and a table."""

from __future__ import annotations

import html
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

from gpt3jax.train.monitor.goodput import PHASES, Goodput

# Okabe and Ito's, where the devices or the host are at work; each with the ink that reads on it.
COLOURS = {
    "step": ("#0072B2", "white"), "replay": ("#D55E00", "white"), "data": ("#E69F00", "black"),
    "evaluate": ("#009E73", "white"), "save": ("#56B4E9", "black"), "compile": ("#CC79A7", "black"),
    "restore": ("#F0E442", "black"), "start": ("#999999", "black"), "idle": ("#dddddd", "black"),
}  # fmt: skip

INK = "#333333"
LONGEST_NAME = 40
"""Letters of a run's name that fit beside its wall time."""
LETTER = 0.0165
"""A letter's width as a share of a bar, with a little room."""
SHOWN = 0.0005
"""The least share that is 0.1%, and worth a place in the legend."""

Clocked = Sequence[tuple[str, Goodput]]
"""Name of each run that kept a clock, and what its time went to."""


def draw_times(clocked: Clocked, width: float) -> Figure:
    """A bar for each run: the phases' shares of its wall time. `width` is in inches."""
    figure = Figure(figsize=(width, 1.2 + 0.6 * len(clocked)))
    axes = figure.subplots()
    seen: set[str] = set()
    for row, (name, spent) in enumerate(clocked):
        left = 0.0
        for phase, share in spent.shares().items():
            colour, ink = COLOURS[phase]
            axes.barh(row, share, left=left, height=0.55, color=colour)
            label = f"{phase}\n{share:.0%}"
            if share > LETTER * max(map(len, label.split("\n"))):
                look = {"color": ink, "ha": "center", "va": "center", "fontsize": 9.5}
                axes.text(left + share / 2, row, label, **look, linespacing=1.0)
            left += share
            seen |= {phase} if share >= SHOWN else set()
        # The end of a long name, since that is where runs differ; $ in it is no formula.
        short = name if len(name) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME :]}"
        for x, side, text in ((0, "left", short), (1, "right", duration(spent.wall_seconds))):
            axes.text(x, row - 0.29, text, ha=side, va="bottom", color=INK, parse_math=False)
    axes.set(xlim=(0, 1), ylim=(len(clocked) - 0.65, -0.7), yticks=[])
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("share of wall time")
    phases = [phase for phase, _ in PHASES if phase in seen]
    columns = 5
    # A legend is filled by columns, and read by rows.
    phases = [phase for column in range(columns) for phase in phases[column::columns]]
    squares = [Rectangle((0, 0), 1, 1, color=COLOURS[phase][0]) for phase in phases]
    look = {"ncols": columns, "handlelength": 0.9, "columnspacing": 1.2, "handletextpad": 0.5}
    figure.legend(squares, phases, loc="outside lower center", **look)
    return figure


def time_table(clocked: Clocked) -> str:
    """HTML: phases down, runs across, and what each phase is."""
    head = "".join(f"<th scope=col>{html.escape(name)}</th>" for name, _ in clocked)
    rows = [
        (phase, [_cell(spent, phase) for _, spent in clocked], meaning) for phase, meaning in PHASES
    ]
    rows += [
        ("wall", [duration(spent.wall_seconds) for _, spent in clocked], "all of it"),
        ("sessions", [str(spent.sessions) for _, spent in clocked], "calls of train"),
        ("killed", [str(spent.killed) for _, spent in clocked], "of them, as a later one found"),
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


def _cell(spent: Goodput, phase: str) -> str:
    seconds, share = spent.seconds_by_phase[phase], spent.shares()[phase]
    return f"{duration(seconds)} <small>{share:.1%}</small>" if seconds else "–"


def duration(seconds: float) -> str:
    """A time as a person says it.

    >>> duration(1.25), duration(600), duration(4 * 86400)
    ('1.2 s', '10.0 min', '96.0 h')
    """
    for unit, scale in (("s", 1), ("min", 60)):
        if seconds < 100 * scale:
            return f"{seconds / scale:.1f} {unit}"
    return f"{seconds / 3600:,.1f} h"
