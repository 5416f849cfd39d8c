"""Figures of a report, and the HTML page that embeds them.

The page is self-contained. Figures have a white background; in a dark theme, CSS inverts their
lightness and preserves their hues.
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from gpt3jax.report.wall_time import draw_times, time_table
from gpt3jax.style import (
    COLOURS,
    GREY,
    STROKES,
    STYLE,
    html_cells,
    html_figure,
    html_page,
)
from gpt3jax.train.monitor.goodput import Goodput

PF_DAY = 8.64e19
"""FLOPs in a petaflop/s-day."""


@dataclass(frozen=True)
class Curve:
    """The logged records of a run, for plotting."""

    name: str
    records: Sequence[dict[str, Any]]
    flops_per_token: int
    """Training FLOPs: 6 per matrix element, plus causal attention."""
    goodput: Goodput | None = None
    """Wall time by phase, if it was recorded."""

    def series(self, metric: str, compute: bool = False) -> tuple[list[float], list[float]]:
        """Tokens (or PF-days) and values of a metric, for the records that contain it."""
        first = 1 if compute else 0  # Zero compute cannot be shown on a logarithmic axis.
        records = [r for r in self.records if r.get(metric) is not None and r["tokens"] >= first]
        scale = self.flops_per_token / PF_DAY if compute else 1
        return [r["tokens"] * scale for r in records], [r[metric] for r in records]


def frontier(pf_days: float) -> float:
    """Loss (nats/token) of compute-optimal training: Brown et al. 2020, Figure 3.1.

    >>> round(frontier(3640), 3)
    1.734
    """
    return 2.57 * pf_days**-0.048


def draw_figures(curves: Sequence[Curve], folder: Path) -> list[Path]:
    """Saves every figure for which there is data as a PNG file, and returns the files.

    Raises:
      OSError: the folder cannot be written.
    """
    logged = {name for curve in curves for record in curve.records for name in record}
    batches = {r["batch_tokens"] for c in curves for r in c.records if "batch_tokens" in r}
    rate = {"learning_rate": "learning rate"}
    if len(batches) > 1:
        rate["batch_tokens"] = "tokens in a batch"
    gradient_norm = {"grad_norm": "gradient norm"}
    speed = {"tokens_per_s": "tokens/s"} | ({"mfu": "MFU"} if "mfu" in logged else {})
    with matplotlib.rc_context(STYLE):
        figures = {"loss": _losses(curves)}
        if "loss" in logged:
            figures["loss_by_compute"] = _losses(curves, compute=True)
            figures["learning_rate"] = _panels(curves, rate)
            figures["gradient_norm"] = _panels(curves, gradient_norm, log=True)
        if "noise_scale" in logged:
            figures["noise_scale"] = _panels(curves, {"noise_scale": "tokens"}, log=True)
        if "tokens_per_s" in logged:
            figures["throughput"] = _panels(curves, speed)
        if timed := _timed(curves):
            figures["where_the_time_went"] = draw_times(timed, STYLE["figure.figsize"][0])
        files = [folder / f"{name}.png" for name in figures]
        for file, figure in zip(files, figures.values(), strict=True):
            figure.savefig(file)
    return files


CAPTIONS = {
    "loss": "Lines: training loss of single batches. Points: validation loss, always on the same "
    "held-out windows.",
    "loss_by_compute": "One petaflop/s-day is 8.64e19 FLOPs. A token costs 6 FLOPs per matrix "
    "element, including the output matrix, plus causal attention. Dashed: L = 2.57 C^-0.048, the "
    "compute-optimal frontier of Brown et al. 2020, Figure 3.1. The paper's C excludes embeddings "
    "and its loss is on its own data and tokenizer, so the line is only a rough reference.",
    "learning_rate": "Learning rate as applied, and tokens per batch if the batch size varies.",
    "gradient_norm": "Global norm of the gradient before clipping.",
    "noise_scale": "Gradient noise scale, measured with gradient accumulation and averaged over "
    "the logged steps so far: roughly the batch size beyond which a larger batch saves few steps "
    "(McCandlish et al. 2018).",
    "throughput": "Mean since the previous record, excluding evaluations and saves. MFU is the "
    "model FLOPs over the bfloat16 peak of the devices, if the peak is known.",
    "where_the_time_went": "Shares of the wall time, from the start of the first session to the "
    "end of the last one. The share of step is the goodput.",
}
NOTE = (
    "Losses in nats/token are comparable for equal tokenizers and held-out text, bits/byte for "
    "equal held-out text."
)


def _timed(curves: Sequence[Curve]) -> list[tuple[str, Goodput]]:
    return [(curve.name, curve.goodput) for curve in curves if curve.goodput]


def _line_styles(curves: Sequence[Curve]) -> Iterable[tuple[Curve, dict[str, Any]]]:
    """Each run with its colour and stroke; the stroke changes when the colours are used up."""
    styles = itertools.cycle(itertools.product(STROKES, COLOURS))
    for curve, (stroke, colour) in zip(curves, styles, strict=False):
        yield curve, {"color": colour, "linestyle": stroke}


def _losses(curves: Sequence[Curve], *, compute: bool = False) -> Figure:
    """Training and validation loss against tokens, or against compute with the frontier."""
    figure = Figure()
    axes = figure.subplots()
    for curve, style in _line_styles(curves):
        axes.plot(*curve.series("loss", compute), **style, alpha=0.5, linewidth=0.8)
        x, y = curve.series("val_loss", compute)
        size = 4 if len(x) <= 40 else 2
        axes.plot(x, y, "o", color=style["color"], markersize=size, clip_on=False, zorder=3)
    handles = [
        Line2D([], [], color=GREY, alpha=0.5, linewidth=0.8, label="training"),
        Line2D([], [], color=GREY, linestyle="", marker="o", markersize=4, label="validation"),
    ]
    if compute:
        axes.set_xscale("log")
        ends = axes.get_xlim()
        law: dict[str, Any] = {"color": GREY, "linestyle": (0, (4, 2)), "linewidth": 1}
        handles += axes.plot(ends, [frontier(c) for c in ends], **law, label="Brown et al. 2020")
        axes.set_xlim(ends)
        axes.set_xlabel("training compute, petaflop/s-days")
    else:
        token_axis(axes)
    plain_log(axes)
    axes.set_ylabel("loss, nats/token")
    axes.legend(handles=handles)
    _name_runs(figure, curves)
    return figure


def _panels(curves: Sequence[Curve], metrics: dict[str, str], *, log: bool = False) -> Figure:
    """Metrics against tokens, in one panel each."""
    figure = Figure()
    rows = figure.subplots(len(metrics), sharex=True, squeeze=False)[:, 0]
    for axes, (metric, label) in zip(rows, metrics.items(), strict=True):
        for curve, style in _line_styles(curves):
            axes.plot(*curve.series(metric), **style, linewidth=1.2)
        axes.set_ylabel(label)
        if log:
            plain_log(axes)
        else:
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter(FuncFormatter(short))
    token_axis(rows[-1])
    figure.align_ylabels()
    _name_runs(figure, curves)
    return figure


def token_axis(axes: Axes) -> None:
    """Sets up the x axis for tokens, starting at 0."""
    axes.set_xlim(left=0)
    axes.set_xlabel("tokens")
    axes.xaxis.set_major_formatter(FuncFormatter(short))


def plain_log(axes: Axes) -> None:
    """Sets up a logarithmic y axis with labels within each decade."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    steps = (1, 2, 5) if high > 8 * low else (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
    axes.yaxis.set_major_locator(LogLocator(subs=steps))
    axes.yaxis.set_major_formatter(FuncFormatter(short))
    axes.yaxis.set_minor_formatter(NullFormatter())


def short(value: float, _: int | None = None) -> str:
    """Formats a tick label.

    >>> short(1.5e6), short(300e9), short(6e-4), short(0.25)
    ('1.5M', '300B', '6e-4', '0.25')
    """
    for scale, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:g}{letter}"
    if 0 < abs(value) < 0.01:
        power = math.floor(math.log10(abs(value)))
        return f"{value / 10.0**power:.3g}e{power}"
    return f"{value:g}"


def _name_runs(figure: Figure, curves: Sequence[Curve]) -> None:
    """Adds a legend of run names above the axes if there is more than one run."""
    if len(curves) < 2:
        return
    columns = max(1, 56 // (max(len(curve.name) for curve in curves) + 7))
    figure.set_figheight(figure.get_figheight() + 0.2 * math.ceil(len(curves) / columns))
    legend = figure.legend(
        [Line2D([], [], **style) for _, style in _line_styles(curves)],
        [" "] * len(curves),
        loc="outside upper left",
        ncols=min(len(curves), columns),
        handlelength=1.6,
    )
    for text, curve in zip(legend.get_texts(), curves, strict=True):
        # Set here because a label with $ would be parsed as math and one with a leading _ hidden.
        text.set_parse_math(False)
        text.set_text(curve.name)


def page(
    differs: Sequence[tuple[str, dict[str, str]]],
    cells: Sequence[tuple[str, dict[str, str]]],
    curves: Sequence[Curve],
    figures: Sequence[Path],
    samples: Sequence[tuple[str, Sequence[tuple[int, str]]]],
) -> str:
    """Returns the report as a self-contained HTML page.

    Args:
      differs: Name of each run, and its values of what differs between the runs.
      cells: Name of each run and its formatted values by label.
      curves: The plotted runs; those with a `goodput` appear in the table of times.
      figures: Files from `draw_figures`, to embed.
      samples: Name of each run, and the step and text of its samples. The text is escaped.
    """
    names = [name for name, _ in cells]
    texts = "".join(
        f"<h3>{html.escape(name)}</h3><div class=grid>"
        + "".join(
            f"<section><p>step {step:,}</p><pre>{html.escape(text)}</pre></section>"
            for step, text in run_samples
        )
        + "</div>\n"
        for name, run_samples in samples
        if run_samples
    )
    timed = _timed(curves)
    note = f"<p>{NOTE}</p>" if len(cells) > 1 else ""
    images = "".join(html_figure(file, CAPTIONS[file.stem]) for file in figures)
    body = f"<h2>What differs</h2>\n{_table(differs)}<h2>Results</h2>\n" if differs[0][1] else ""
    body += f"{_table(cells)}{note}<div class=grid>\n{images}</div>\n"
    body += time_table(timed) if timed else ""
    body += f"<h2>Samples</h2>\n{texts}" if texts else ""
    return html_page(", ".join(names) if len(names) < 4 else f"{len(names)} runs", "report", body)


def _table(cells: Sequence[tuple[str, dict[str, str]]]) -> str:
    """A column for each run, and a row for each label."""
    head = html_cells((name for name, _ in cells), "th scope=col")
    rows = "".join(
        f"<tr><th scope=row>{html.escape(label, quote=False)}</th>"
        f"{html_cells(row[label] for _, row in cells)}</tr>\n"
        for label in cells[0][1]
    )
    return (
        f"<div class=wide><table><thead><tr><th></th>{head}</tr></thead>\n<tbody>\n{rows}"
        "</tbody></table></div>\n"
    )
