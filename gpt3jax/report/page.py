"""The figures of a report, and the page that holds them.

The page needs nothing outside itself. Figures are drawn on white; in a dark
theme the page inverts their lightness and keeps their hues.
"""

from __future__ import annotations

import base64
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
from gpt3jax.style import COLOURS, CSS, GREY, STROKES, STYLE
from gpt3jax.train.monitor.goodput import Goodput

PF_DAY = 8.64e19
"""FLOPs in a petaflop/s-day."""


@dataclass(frozen=True)
class Curve:
    """The logged records of a run, to be drawn."""

    name: str
    records: Sequence[dict[str, Any]]
    flops_per_token: int
    """Training FLOPs: 6 per matrix element, plus causal attention."""
    spent: Goodput | None = None
    """What the run's time went to, where a clock was kept."""

    def series(self, metric: str, compute: bool = False) -> tuple[list[float], list[float]]:
        """Tokens (or PF-days) and the values of a metric, of the records that have it."""
        first = 1 if compute else 0  # No compute yet: not on a logarithmic axis.
        found = [r for r in self.records if r.get(metric) is not None and r["tokens"] >= first]
        scale = self.flops_per_token / PF_DAY if compute else 1
        return [r["tokens"] * scale for r in found], [r[metric] for r in found]


def frontier(pf_days: float) -> float:
    """Loss (nats/token) of compute-optimal training: Brown et al. 2020, Figure 3.1.

    >>> round(frontier(3640), 3)
    1.734
    """
    return 2.57 * pf_days**-0.048


def draw_figures(curves: Sequence[Curve], folder: Path) -> list[Path]:
    """Draw every figure that has something to show, as PNG in a folder.

    Raises:
      OSError: the folder cannot be written.
    """
    logged = {name for curve in curves for record in curve.records for name in record}
    batches = {r["batch_tokens"] for c in curves for r in c.records if "batch_tokens" in r}
    rate = {"learning_rate": "learning rate"}
    if len(batches) > 1:
        rate["batch_tokens"] = "tokens in a batch"
    norm = {"grad_norm": "gradient norm"}
    speed = {"tokens_per_s": "tokens/s"} | ({"mfu": "MFU"} if "mfu" in logged else {})
    with matplotlib.rc_context(STYLE):
        figures = {"loss": _losses(curves)}
        if "loss" in logged:
            figures["loss_by_compute"] = _losses(curves, compute=True)
            figures["learning_rate"] = _panels(curves, rate)
            figures["gradient_norm"] = _panels(curves, norm, log=True)
        if "noise_scale" in logged:
            figures["noise_scale"] = _panels(curves, {"noise_scale": "tokens"}, log=True)
        if "tokens_per_s" in logged:
            figures["throughput"] = _panels(curves, speed)
        if clocked := _clocked(curves):
            figures["where_the_time_went"] = draw_times(clocked, STYLE["figure.figsize"][0])
        files = [folder / f"{name}.png" for name in figures]
        for file, figure in zip(files, figures.values(), strict=True):
            figure.savefig(file)
    return files


CAPTIONS = {
    "loss": "Line: training loss, one batch each. Points: validation loss, on the same held-out "
    "windows each time.",
    "loss_by_compute": "One petaflop/s-day is 8.64e19 FLOPs; a token costs 6 per matrix element, "
    "the output matrix included, plus causal attention. Dashed: L = 2.57 C^-0.048, the "
    "compute-optimal frontier of Brown et al. 2020, Figure 3.1. There C leaves out embeddings, "
    "and the loss is on the paper's data with its tokenizer: an orientation, not a target.",
    "learning_rate": "As applied, and the tokens in a batch where they vary.",
    "gradient_norm": "Of the whole gradient, before it is clipped.",
    "noise_scale": "Where gradients are accumulated: the gradient noise scale, about the batch "
    "beyond which a larger one saves few steps (McCandlish et al. 2018); averaged over the logged "
    "steps so far.",
    "throughput": "Mean since the record before, without evaluations and saves. MFU, where the "
    "devices' bfloat16 peak is known: model FLOPs over that peak.",
    "where_the_time_went": "Shares of the wall time, from the first session's beginning to the "
    "last one's end. The share of step is the goodput.",
}
NOTE = (
    "Losses in nats/token compare if tokenizer and held-out text agree; bits/byte if the text does."
)


def _clocked(curves: Sequence[Curve]) -> list[tuple[str, Goodput]]:
    return [(curve.name, curve.spent) for curve in curves if curve.spent]


def _looks(curves: Sequence[Curve]) -> Iterable[tuple[Curve, dict[str, Any]]]:
    """Each run with its colour, and past the last colour with another stroke."""
    looks = itertools.cycle(itertools.product(STROKES, COLOURS))
    for curve, (stroke, colour) in zip(curves, looks, strict=False):
        yield curve, {"color": colour, "linestyle": stroke}


def _losses(curves: Sequence[Curve], *, compute: bool = False) -> Figure:
    """Training and validation loss against tokens, or against compute with the frontier."""
    figure = Figure()
    axes = figure.subplots()
    for curve, look in _looks(curves):
        axes.plot(*curve.series("loss", compute), **look | {"alpha": 0.5, "linewidth": 0.8})
        x, y = curve.series("val_loss", compute)
        size = 4 if len(x) <= 40 else 2
        axes.plot(x, y, "o", color=look["color"], markersize=size, clip_on=False, zorder=3)
    kinds = [
        Line2D([], [], color=GREY, alpha=0.5, linewidth=0.8, label="training"),
        Line2D([], [], color=GREY, linestyle="", marker="o", markersize=4, label="validation"),
    ]
    if compute:
        axes.set_xscale("log")
        ends = axes.get_xlim()
        law = {"color": GREY, "linestyle": (0, (4, 2)), "linewidth": 1}
        kinds += axes.plot(ends, [frontier(c) for c in ends], **law, label="Brown et al. 2020")
        axes.set_xlim(ends)
        axes.set_xlabel("training compute, petaflop/s-days")
    else:
        token_axis(axes)
    plain_log(axes)
    axes.set_ylabel("loss, nats/token")
    axes.legend(handles=kinds)
    _name_runs(figure, curves)
    return figure


def _panels(curves: Sequence[Curve], metrics: dict[str, str], *, log: bool = False) -> Figure:
    """Metrics against tokens, one panel each, one above the other."""
    figure = Figure()
    rows = figure.subplots(len(metrics), sharex=True, squeeze=False)[:, 0]
    for axes, (metric, label) in zip(rows, metrics.items(), strict=True):
        for curve, look in _looks(curves):
            axes.plot(*curve.series(metric), **look | {"linewidth": 1.2})
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
    """Tokens along x, from 0."""
    axes.set_xlim(left=0)
    axes.set_xlabel("tokens")
    axes.xaxis.set_major_formatter(FuncFormatter(short))


def plain_log(axes: Axes) -> None:
    """A logarithmic y axis that is labelled within its decades too."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    steps = (1, 2, 5) if high > 8 * low else (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
    axes.yaxis.set_major_locator(LogLocator(subs=steps))
    axes.yaxis.set_major_formatter(FuncFormatter(short))
    axes.yaxis.set_minor_formatter(NullFormatter())


def short(value: float, _: int | None = None) -> str:
    """A number as an axis shows it.

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
    """Names above the axes; a run alone needs none."""
    if len(curves) < 2:
        return
    columns = max(1, 56 // (max(len(curve.name) for curve in curves) + 7))
    figure.set_figheight(figure.get_figheight() + 0.2 * math.ceil(len(curves) / columns))
    legend = figure.legend(
        [Line2D([], [], **look) for _, look in _looks(curves)],
        [" "] * len(curves),
        loc="outside upper left",
        ncols=min(len(curves), columns),
        handlelength=1.6,
    )
    for text, curve in zip(legend.get_texts(), curves, strict=True):
        # Set afterwards: a name may hold $, which is no formula, or begin with _.
        text.set_parse_math(False)
        text.set_text(curve.name)


def page(
    cells: Sequence[tuple[str, dict[str, str]]],
    curves: Sequence[Curve],
    figures: Sequence[Path],
    samples: Sequence[tuple[str, Sequence[tuple[int, str]]]],
) -> str:
    """The report as one HTML page that loads nothing.

    Args:
      cells: Name of each run, and its figures by label.
      curves: What was drawn; those that kept a clock get a table of it.
      figures: What `draw_figures` drew; read and embedded.
      samples: Name of each run, and (step, text) of what it wrote; any text is safe.
    """
    title = ", ".join(name for name, _ in cells) if len(cells) < 4 else f"{len(cells)} runs"
    head = "".join(f"<th scope=col>{html.escape(name)}</th>" for name, _ in cells)
    rows = "".join(
        f"<tr><th scope=row>{label}</th>"
        + "".join(f"<td>{html.escape(row[label])}</td>" for _, row in cells)
        + "</tr>\n"
        for label in cells[0][1]
    )
    drawn = ""
    for file in figures:
        name, data = file.stem.replace("_", " "), base64.b64encode(file.read_bytes()).decode()
        drawn += (
            f"<figure><h2>{name.capitalize()}</h2><img alt='Figure: {name}' "
            f"src='data:image/png;base64,{data}'>"
            f"<figcaption>{CAPTIONS[file.stem]}</figcaption></figure>\n"
        )
    texts = "".join(
        f"<h3>{html.escape(name)}</h3><div class=grid>"
        + "".join(
            f"<section><p>step {step:,}</p><pre>{html.escape(text)}</pre></section>"
            for step, text in written
        )
        + "</div>\n"
        for name, written in samples
        if written
    )
    clocked = _clocked(curves)
    return TEMPLATE.format(
        title=html.escape(title), style=CSS, head=head, rows=rows, figures=drawn,
        times=time_table(clocked) if clocked else "",
        note=f"<p>{NOTE}</p>" if len(cells) > 1 else "",
        samples=f"<h2>Samples</h2>\n{texts}" if texts else "",
    )  # fmt: skip


TEMPLATE = """<!doctype html>
<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">
<title>{title}: gpt3jax report</title><style>{style}</style>
<h1>{title}</h1>
<div class=wide><table><thead><tr><th></th>{head}</tr></thead>
<tbody>
{rows}</tbody></table></div>
{note}<div class=grid>
{figures}</div>
{times}{samples}"""
