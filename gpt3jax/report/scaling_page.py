"""`gpt3jax report --scaling-law`: Figure 3.1 of Brown et al. 2020 for one's own runs.

Compute is 6 FLOPs per matrix element and token, including the output matrix, plus causal attention;
the paper excludes embeddings. Parameter counts exclude embeddings.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from gpt3jax.errors import ConfigError
from gpt3jax.plan import scaling_laws
from gpt3jax.plan.scaling_laws import Law, Laws, Point
from gpt3jax.report.compare import writing
from gpt3jax.report.page import PF_DAY, frontier, plain_log, short
from gpt3jax.run_dir import Run, open_run
from gpt3jax.serde import short_hash
from gpt3jax.style import COLOURS, GREY, STYLE, html_cells, html_figure, html_page

FORMULAS = {
    "compute": "L = {a:.3g} C^-{b:.3g}",
    "parameters": "L = {a:.3g} N^-{b:.3g}",
    "both": "L = {E:.3g} + {A:.3g} N^-{alpha:.3g} + {B:.3g} D^-{beta:.3g}",
}


def write_laws(runs: Sequence[Path], out: Path | None = None) -> tuple[list[Point], Laws, Path]:
    """Fits scaling laws to runs, and plots them and how well they predict the largest run.

    Args:
      runs: Run directories, all on the same data. Unfinished runs are ignored.
      out: Output directory; if None, `scaling-law` in the parent directory of the first run.

    Returns:
      The finished runs, the laws, and index.html; scaling_law.json, for `gpt3jax plan --law`, is
      in the same directory.

    Raises:
      ConfigError: there are too few runs, their data differ, or the output cannot be written.
    """
    opened = [open_run(path) for path in runs]
    data = _same_data(opened)
    finished = [each for each in map(_point, opened) if each is not None]
    points, curves = [point for point, _ in finished], [curve for _, curve in finished]
    laws = scaling_laws.fit(points, data)
    with writing(out, opened[0].path.parent / "scaling-law") as folder:
        files = [folder / f"{name}.png" for name in CAPTIONS]
        with matplotlib.rc_context(STYLE):
            _by_compute(points, curves, laws).savefig(files[0])
            _by_parameters(points, laws).savefig(files[1])
            _predicted(points, laws).savefig(files[2])
        scaling_laws.write(laws, folder / "scaling_law.json")
        file = folder / "index.html"
        file.write_text(_page(points, laws, files), encoding="utf-8")
    return points, laws, file


def _same_data(runs: Sequence[Run]) -> str:
    """Identity of the data of all runs, which must agree for their losses to be comparable."""
    known: dict[str, Path] = {}
    for run in runs:
        identity = run.identity()["data"]
        sources = [[each["name"], each["manifest"]] for each in identity["sources"]]
        known.setdefault(short_hash([identity["tokenizer"], sources]), run.path)
    if len(known) != 1:
        one, other = [str(path) for path in (*known.values(), "no run")][:2]
        raise ConfigError(
            f"{one} and {other} have different data: their losses are not comparable. Name "
            "runs of one data set"
        )
    return next(iter(known))


Curve = tuple[list[float], list[float]]
"""Compute in petaflop/s-days and validation loss in nats/token."""


def _point(run: Run) -> tuple[Point, Curve] | None:
    """The final point and the loss curve of a run, or None if its schedule is not complete."""
    from gpt3jax.model.param_specs import flops_per_token

    experiment = run.experiment()
    model, train = experiment.model, experiment.train
    records = [r for r in run.metrics() if r.get("val_loss") is not None and r.get("tokens")]
    if not records or not (
        records[-1]["tokens"] >= train.tokens or records[-1]["step"] == train.steps
    ):
        return None
    scale = flops_per_token(model) / PF_DAY
    last, name = records[-1], run.path.resolve().name
    size, tokens = scaling_laws.matrix_parameters(model), last["tokens"]
    point = Point(name, size, tokens, tokens * scale, last["val_loss"])
    curve = [r["tokens"] * scale for r in records], [r["val_loss"] for r in records]
    return point, curve


def _laws_by_kind(laws: Laws) -> dict[str, Law]:
    return {law.kind: law for law in laws.laws}


def _held_out(points: Sequence[Point], laws: Laws) -> list[Point]:
    names = {prediction.name for prediction in laws.predictions}
    return [point for point in points if point.name in names]


LAW_STYLE: dict[str, Any] = {"color": COLOURS[1], "linestyle": (0, (4, 2)), "linewidth": 1.2}
HELD_OUT_STYLE: dict[str, Any] = {"color": "#000000", "marker": "*", "markersize": 10}


def _scatter(axes: Axes, points: Sequence[Point], x: str, **style: Any) -> Line2D:
    """Plots the losses of runs against one of their fields."""
    style = {"marker": "o", "linestyle": "", **style}
    (line,) = axes.plot([getattr(p, x) for p in points], [p.loss for p in points], **style)
    return line


def _by_compute(points: Sequence[Point], curves: Sequence[Curve], laws: Laws) -> Figure:
    """As Figure 3.1: loss curves coloured by model size, and the power law of the frontier."""
    figure = Figure(figsize=(5.0, 3.9))
    axes = figure.subplots()
    sizes = sorted({point.parameters for point in points})
    colours = dict(
        zip(sizes, matplotlib.colormaps["viridis"](np.linspace(0, 0.7, len(sizes))), strict=True)
    )
    for point, (x, y) in zip(points, curves, strict=True):
        axes.plot(x, y, color=colours[point.parameters], linewidth=0.9, alpha=0.6)
        axes.plot(x[-1], y[-1], "o", color=colours[point.parameters], markersize=4, zorder=3)
    axes.set_xscale("log")
    law = _laws_by_kind(laws)["compute"]
    along = np.geomspace(min(x[0] for x, _ in curves), 1.5 * max(p.pf_days for p in points), 50)
    low, high = np.array([law.interval(0, 0, c) for c in along]).T
    axes.fill_between(along, low, high, color=COLOURS[1], alpha=0.15, linewidth=0)
    (line,) = axes.plot(along, [law.loss(0, 0, c) for c in along], **LAW_STYLE)
    line.set_label(FORMULAS["compute"].format(**law.constants))
    largest = _held_out(points, laws)
    label = "held out, measured"
    star = _scatter(axes, largest, "pf_days", **HELD_OUT_STYLE, zorder=5, label=label)
    low, high = min(p.loss for p in points), max(y[0] for _, y in curves)
    axes.set_ylim(0.93 * low, 1.03 * high)
    plain_log(axes)
    axes.set_xlabel("training compute, petaflop/s-days")
    axes.set_ylabel("validation loss, nats/token")
    axes.legend(handles=[line, star], loc="upper right")
    dots = [Line2D([], [], marker="o", linestyle="", markersize=4, color=colours[s]) for s in sizes]
    names = [short(float(f"{size:.2g}")) for size in sizes]
    figure.legend(
        dots,
        names,
        loc="outside upper left",
        ncols=min(len(sizes), 7),
        handletextpad=0.1,
        columnspacing=0.8,
        title="parameters",
        title_fontsize=9,
        fontsize=9,
    )
    return figure


def _by_parameters(points: Sequence[Point], laws: Laws) -> Figure:
    """The best run of each model size, and the power law of parameters."""
    figure = Figure()
    axes = figure.subplots()
    largest = _held_out(points, laws)
    rest = [point for point in points if point not in largest]
    _scatter(axes, rest, "parameters", color=GREY, markersize=3, alpha=0.6, label="runs")
    best = scaling_laws.best_of_sizes(rest)
    _scatter(axes, best, "parameters", color=COLOURS[0], markersize=5, label="best of each size")
    if law := _laws_by_kind(laws).get("parameters"):
        sizes = [point.parameters for point in points]
        along = np.geomspace(min(sizes), max(sizes))
        label = FORMULAS["parameters"].format(**law.constants)
        axes.plot(along, [law.loss(n, 0, 0) for n in along], **LAW_STYLE, label=label)
    _scatter(axes, largest, "parameters", **HELD_OUT_STYLE, label="held out")
    axes.set_xscale("log")
    axes.xaxis.set_minor_formatter(NullFormatter())
    plain_log(axes)
    axes.set_xlabel("parameters without embeddings")
    axes.set_ylabel("validation loss, nats/token")
    axes.legend()
    return figure


def _predicted(points: Sequence[Point], laws: Laws) -> Figure:
    """Loss predicted by the best law against the measured loss, for every run."""
    figure = Figure()
    axes = figure.subplots()
    law, largest = laws.best(), _held_out(points, laws)
    rest = [p for p in points if p not in largest]
    fitted: dict[str, Any] = {"marker": "o", "color": COLOURS[0], "markersize": 4}
    for label, subset, style in (("fitted", rest, fitted), ("held out", largest, HELD_OUT_STYLE)):
        expected = [law.loss(p.parameters, p.tokens, p.pf_days) for p in subset]
        ends = [law.interval(p.parameters, p.tokens, p.pf_days) for p in subset]
        sides = [(max(0, x - a), max(0, b - x)) for x, (a, b) in zip(expected, ends, strict=True)]
        errors, measured = np.array(sides).T.reshape(2, -1), [p.loss for p in subset]
        axes.errorbar(
            measured, expected, yerr=errors, label=label, linestyle="", elinewidth=1, **style
        )
    low, high = min(p.loss for p in points), max(p.loss for p in points)
    axes.plot([low, high], [low, high], color=GREY, linewidth=0.8, zorder=1)
    axes.set_xlabel("measured, nats/token")
    axes.set_ylabel("expected, nats/token")
    axes.legend()
    return figure


CAPTIONS = {
    "compute": "Lines: validation loss of each run against the compute spent so far; dots mark the "
    "ends. Dashed: the power law of the frontier, fitted without the held-out run, with the 95 % "
    "prediction interval of a single run. Before its end, a run's loss is above that of a run with "
    "a shorter schedule.",
    "parameters": "The power law of the best run of each size. It applies if data is not the "
    "limit. Each size was trained on what its budget allowed, so it is an upper bound.",
    "prediction": "Predictions of the best law, with the 95 % prediction interval of a single run.",
}


def describe(law: Law) -> tuple[str, str]:
    """The formula of a law, and its constants with their intervals."""
    constants = ", ".join(
        f"{name} {value:.4g} ({law.intervals[name][0]:.4g} to {law.intervals[name][1]:.4g})"
        for name, value in law.constants.items()
    )
    return FORMULAS[law.kind].format(**law.constants), constants


def verdicts(points: Sequence[Point], laws: Laws) -> list[str]:
    """One sentence per prediction, comparing it with the measured loss."""
    sentences = []
    for each in laws.predictions:
        point = next(point for point in points if point.name == each.name)
        law = _laws_by_kind(laws)[each.law]
        times = point.pf_days / law.most_pf_days
        inside = "within" if each.low <= each.measured <= each.high else "outside"
        sentences.append(
            f"{each.name}, {times:.1f} times the compute: by {each.law} "
            f"{each.predicted:.4f} nats/token ({each.low:.4f} to {each.high:.4f}), measured "
            f"{each.measured:.4f}: off by {each.error:+.4f}, {inside} the 95 % prediction interval "
            f"(Student's t, {law.freedom} degrees of freedom)"
        )
    return sentences


def describe_point(point: Point) -> tuple[str, ...]:
    """Parameters, tokens, petaflop/s-days and loss of a run, formatted."""
    n, d = f"{point.parameters:,.0f}", f"{point.tokens:,.0f}"
    return n, d, f"{point.pf_days:.3g}", f"{point.loss:.4f}"


def _page(points: Sequence[Point], laws: Laws, figures: Sequence[Path]) -> str:
    titles = ("loss by compute", "loss by parameters", "loss expected and measured")
    images = "".join(
        html_figure(file, CAPTIONS[file.stem], title)
        for file, title in zip(figures, titles, strict=True)
    )
    fits = ""
    for law in laws.laws:
        formula, constants = describe(law)
        fits += f"<tr><th scope=row>{law.kind}</th>{html_cells((formula, law.fitted))}"
        fits += f"{html_cells([constants], 'td class=why')}</tr>\n"
    rows = "".join(
        f"<tr><th scope=row>{html.escape(p.name)}</th>{html_cells(describe_point(p))}</tr>\n"
        for p in points
    )
    items = "".join(f"<li>{html.escape(line)}.</li>" for line in verdicts(points, laws))
    paper = html.escape(
        "The paper's law, for comparison: L = 2.57 C^-0.048 on its own data, "
        f"{frontier(laws.laws[0].most_pf_days):.2f} nats/token at the same compute, with a "
        "different tokenizer."
    )
    body = f"""<h2>What the smaller runs predict of the largest</h2><ul>{items}</ul>
<div class=grid>
{images}</div>
<h2>Laws</h2>
<p>Intervals: 95 %, Student's t around the least-squares fit in log L; the degrees of freedom are
the number of runs minus the number of constants. The law is assumed to hold. {paper}</p>
<div class=wide><table><thead><tr><th></th><th>law</th><th>runs</th><th class=why>constants</th>
</tr></thead><tbody>{fits}</tbody></table></div>
<h2>Runs</h2>
<div class=wide><table><thead><tr><th></th><th>parameters</th><th>tokens</th>
<th>petaflop/s-days</th><th>val_loss</th></tr></thead><tbody>{rows}</tbody></table></div>
"""
    return html_page("Scaling law", "report", body, "li{margin:.3rem 0}")
