"""Self-contained HTML page of a sweep: the best command, figures, and all trials.

Figures have a white background; in a dark theme the page inverts them, like a report.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from gpt3jax.errors import ConfigError
from gpt3jax.report.page import PF_DAY
from gpt3jax.run_dir import write_atomic
from gpt3jax.style import html_cells, html_figure, html_page
from gpt3jax.sweep.plots import draw_figures
from gpt3jax.sweep.show import as_csv, names, short, summary, tokens_of
from gpt3jax.sweep.store import Trial, best

CSS = """
tr.best td,tr.best th{font-weight:600}
thead th{vertical-align:bottom} .why small{white-space:nowrap}
"""


def write_results(trials: Sequence[Trial], importance: dict[str, float], folder: Path) -> Path:
    """Writes the figures, trials.csv and index.html to a folder; returns the path of the page.

    Raises:
      ConfigError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "trials.csv", as_csv(trials))
        figures = draw_figures(trials, importance, folder)
        file = folder / "index.html"
        file.write_text(_page(trials, figures, folder.name), encoding="utf-8")
    except OSError as error:
        message = f"{folder} cannot be written: {error}. Choose another --storage"
        raise ConfigError(message) from error
    return file


def _page(trials: Sequence[Trial], figures: dict[Path, str], name: str) -> str:
    images = "".join(html_figure(file, caption) for file, caption in figures.items())
    body = f"""<p>{html.escape(summary(trials))}</p>
{_best(trials)}
<div class=grid>
{images}</div>
<h2>Trials</h2>
<p>Complete trials come first, by validation loss in nats/token. Minutes are of one worker.</p>
<div class=wide>{_table(trials)}</div>
"""
    return html_page(name, "sweep", body, CSS)


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
    rows = ""
    for trial in sorted(trials, key=lambda t: (t.state != "complete", t.val_loss or 1e9, t.number)):
        values = [short(trial.params[p]) if p in trial.params else "–" for p in params]
        values += ["–" if trial.val_loss is None else f"{trial.val_loss:.4f}"]
        values += [f"{tokens_of(trial):,}", f"{trial.seconds / 60:.1f}", trial.state]
        mark = " class=best" if trial is winner else ""
        why = f"{html.escape(trial.why)}<br>" if trial.why else ""
        why += f"<small>{html.escape(trial.command)}</small>" if trial.command else ""
        rows += (
            f"<tr{mark}><th scope=row>{trial.number}</th>{html_cells(values)}"
            f"<td class=why>{why}</td></tr>\n"
        )
    head = html_cells(columns, "th scope=col")
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table>"
