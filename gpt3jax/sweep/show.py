"""Progress of a sweep as a live table, or as lines when piped; and its CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from rich.live import Live
from rich.table import Table

from gpt3jax.errors import truncate
from gpt3jax.report.page import PF_DAY
from gpt3jax.style import pluralize, wide_console
from gpt3jax.sweep.store import Trial, best

ROWS = 40
"""Maximum rows of the live table, which shows the newest trials."""


def names(trials: Sequence[Trial]) -> list[str]:
    """Names of all parameters of the trials, in the order of the space."""
    return list(dict.fromkeys(name for trial in trials for name in trial.params))


def short(value: Any) -> str:
    """Formats a parameter for tables.

    >>> short(0.00061234567), short(3), short("cosine")
    ('0.0006123', '3', 'cosine')
    """
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def tokens_of(trial: Trial) -> int:
    """Tokens processed at the last validation loss."""
    return max(trial.curve, default=0)


def table(trials: Sequence[Trial], rows: int | None = None) -> Table:
    """A table with a row per trial, or for the last `rows` started ones; * marks the best."""
    result, winner = Table(box=None, pad_edge=False), best(trials)
    for name in ("trial", *names(trials), "val_loss", "tokens", "minutes"):
        result.add_column(name, justify="right", no_wrap=True)
    result.add_column("state")
    started = [trial for trial in trials if trial.state != "waiting" or trial.attempts > 1]
    for trial in started[-rows:] if rows else trials:
        state = f"{trial.state}: {trial.why}" if trial.why else trial.state
        result.add_row(
            f"{'*' if trial is winner else ''}{trial.number}",
            *(short(trial.params[n]) if n in trial.params else "" for n in names(trials)),
            "" if trial.val_loss is None else f"{trial.val_loss:.4f}",
            f"{tokens_of(trial):,}", f"{trial.seconds / 60:.1f}", truncate(state, 80),
        )  # fmt: skip
    return result


@contextmanager
def watching() -> Iterator[Callable[[list[Trial]], None]]:
    """Yields a function that displays the trials: as a live table, or as lines when piped."""
    console = wide_console()
    if not console.is_terminal:
        yield partial(_print_changes, {})
        return
    with Live(console=console, refresh_per_second=4) as live:

        def show(trials: list[Trial]) -> None:
            view = table(trials, min(ROWS, console.height - 4))
            view.caption = summary(trials)
            live.update(view)

        yield show


def _print_changes(shown: dict[int, tuple[str, int]], trials: list[Trial]) -> None:
    for trial in trials:
        status = (trial.state, trial.attempts)
        if status in (shown.get(trial.number), ("waiting", 1)):
            continue
        shown[trial.number] = status
        values = ", ".join(f"{name} {short(value)}" for name, value in trial.params.items())
        loss = "" if trial.val_loss is None else f", val_loss {trial.val_loss:.4f}"
        why = f" ({trial.why})" if trial.why else ""
        print(f"trial {trial.number} {trial.state}: {values}{loss}{why}", flush=True)


def summary(trials: Sequence[Trial]) -> str:
    """Counts of trials by state, and the compute spent.

    Worker-hours exclude attempts whose driver was killed.
    """
    states = ("complete", "pruned", "diverged", "failed", "running", "waiting")
    counts = [(state, sum(t.state == state for t in trials)) for state in states]
    ended = ", ".join(f"{count} {state}" for state, count in counts if count)
    hours = sum(trial.seconds for trial in trials) / 3600
    days = sum(trial.flops for trial in trials) / PF_DAY
    spent = f"{hours:.2f} worker-hours, {days:.2g} petaflop/s-days"
    return f"{pluralize(len(trials), 'trial')}: {ended}. {spent}"


def as_csv(trials: Sequence[Trial]) -> str:
    """The trials as CSV, one row each, without the curves."""
    text, params = io.StringIO(), names(trials)
    writer = csv.writer(text, lineterminator="\n")
    columns = ("val_loss", "tokens", "seconds", "flops", "attempts", "why", "command")
    writer.writerow(["trial", "state", *params, *columns])
    for trial in trials:
        row = [trial.number, trial.state, *(trial.params.get(name, "") for name in params)]
        loss = "" if trial.val_loss is None else trial.val_loss
        row += [loss, tokens_of(trial), round(trial.seconds, 1), trial.flops]
        writer.writerow([*row, trial.attempts, trial.why, trial.command])
    return text.getvalue()
