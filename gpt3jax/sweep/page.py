"""Self-contained HTML page of a sweep: the best command, figures, and all trials.

Figures have a white background; in a dark theme the page inverts them, like a report.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from gpt3jax.style import CSS
from gpt3jax.sweep.plots import draw_figures
from gpt3jax.sweep.show import PF_DAY, names, short, summary, tokens_of
from gpt3jax.sweep.store import Trial, best


def write_page(trials: Sequence[Trial], importance: dict[str, float], folder: Path) -> Path:
    """Writes the figures and index.html to a folder.

    Args:
      trials: all trials of the sweep.
      importance: importance of each parameter; see `results.importances`.
      folder: the output directory.

    Raises:
      OSError: the folder cannot be written.
    """
    figures = draw_figures(trials, importance, folder)
    file = folder / "index.html"
    file.write_text(page(trials, figures, folder.name), encoding="utf-8")
    return file


def page(trials: Sequence[Trial], figures: dict[Path, str], name: str) -> str:
    """Returns the page as HTML; all texts are escaped.

    Args:
      trials: all trials of the sweep.
      figures: captions by PNG file; the files are embedded.
      name: name of the sweep.
    """
    images = ""
    for file, caption in figures.items():
        title = file.stem.replace("_", " ")
        data = base64.b64encode(file.read_bytes()).decode()
        images += (
            f"<figure><h2>{html.escape(title.capitalize())}</h2><img alt='Figure: "
            f"{html.escape(title, quote=True)}' src='data:image/png;base64,{data}'>"
            f"<figcaption>{caption}</figcaption></figure>\n"
        )
    return TEMPLATE.format(
        title=html.escape(name),
        style=CSS + SWEEP_CSS,
        summary=html.escape(summary(trials)),
        best=_best(trials),
        figures=images,
        table=_table(trials),
    )


def _best(trials: Sequence[Trial]) -> str:
    winner = best(trials)
    if winner is None:
        return "<p>No trial was complete.</p>"
    values = ", ".join(f"{key} {short(value)}" for key, value in winner.params.items())
    cost = f"{winner.seconds / 60:.1f} minutes of one worker"
    if winner.flops:
        cost += f", {winner.flops:.2e} FLOPs ({winner.flops / PF_DAY:.2g} petaflop/s-days)"
    return (
        f"<h2>Best: trial {winner.number}, {winner.val_loss:.4f} nats/token{winner.windows}</h2>"
        f"<p>{html.escape(values)}. It took {cost}.</p><pre>{html.escape(winner.command)}</pre>"
    )


def _table(trials: Sequence[Trial]) -> str:
    winner, params = best(trials), names(trials)
    columns = ("trial", *params, "val_loss", "tokens", "minutes", "state", "")
    head = "".join(f"<th scope=col>{html.escape(column)}</th>" for column in columns)
    rows = ""
    ranked = sorted(trials, key=lambda t: (t.state != "complete", t.val_loss or 1e9, t.number))
    for trial in ranked:
        values = [short(trial.params[p]) if p in trial.params else "–" for p in params]
        values += ["–" if trial.val_loss is None else f"{trial.val_loss:.4f}"]
        values += [f"{tokens_of(trial):,}", f"{trial.seconds / 60:.1f}", trial.state]
        cells = "".join(f"<td>{html.escape(value)}</td>" for value in values)
        mark = " class=best" if trial is winner else ""
        command = f"<small>{html.escape(trial.command)}</small>" if trial.command else ""
        why = f"{html.escape(trial.why)}<br>" if trial.why else ""
        rows += (
            f"<tr{mark}><th scope=row>{trial.number}</th>{cells}"
            f"<td class=why>{why}{command}</td></tr>\n"
        )
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table>"


SWEEP_CSS = """
tr.best td,tr.best th{font-weight:600}
thead th{vertical-align:bottom} .why small{white-space:nowrap}
"""

TEMPLATE = """<!doctype html>
<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">
<title>{title}: gpt3jax sweep</title><style>{style}</style>
<h1>{title}</h1>
<p>{summary}</p>
{best}
<div class=grid>
{figures}</div>
<h2>Trials</h2>
<p>Complete trials come first, by validation loss in nats/token. Minutes are of one worker.</p>
<div class=wide>{table}</div>
"""
