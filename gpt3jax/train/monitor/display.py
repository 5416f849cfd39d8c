"""Terminal output of training: a progress bar, or plain lines if the output is piped."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

COMPILING_S = 10.0
"""Seconds between the lines about a compilation, where there is no bar."""


class Display:
    """Progress of one run; silent on all processes but the first."""

    def __init__(
        self, total_tokens: int, done_tokens: int, step: int, *, silent: bool = False
    ) -> None:
        """Start at `done_tokens`, after step `step`."""
        self._console = Console(quiet=silent, highlight=False, soft_wrap=True)
        self._bar = None
        if self._console.is_terminal and not silent:
            # The last column is truncated on a narrow terminal.
            figures = Column(no_wrap=True, overflow="ellipsis", ratio=1)
            self._bar = Progress(
                TextColumn("step {task.fields[step]:,}  {task.percentage:.0f}%"),
                TimeRemainingColumn(compact=True),
                TextColumn("left"),
                BarColumn(bar_width=12),
                TextColumn("{task.fields[figures]}", table_column=figures),
                console=self._console,
                expand=True,
            )
            self._task = self._bar.add_task(
                "", total=total_tokens, completed=done_tokens, step=step, figures=""
            )
            self._bar.start()
        self._total = total_tokens
        self._last: dict[str, Any] = {}
        self._tenth = int(10 * done_tokens / total_tokens)

    def show(self, record: dict[str, Any]) -> None:
        """Show a logged record.

        On a terminal the bar shows the newest figures, and a line is printed for each evaluation
        and for each tenth of the tokens. Otherwise a line is printed for each record.
        """
        with self._ignore_closed_output():
            self._show(record)

    def _show(self, record: dict[str, Any]) -> None:
        share = record["tokens"] / self._total
        line = f"step {record['step']:>7,}  {share:4.0%}  "
        if self._bar is None:
            self._console.print(line + figures(record))
            return
        self._last |= {name: record[name] for name in ("loss", "tokens_per_s") if name in record}
        self._bar.update(
            self._task,
            completed=record["tokens"],
            step=record["step"],
            figures=figures(self._last),
        )
        tenth, is_measured = int(10 * share), "val_loss" in record
        if is_measured or tenth > self._tenth:
            self._tenth = tenth
            self._console.print(line + figures(record))

    def note(self, text: str) -> None:
        """Print a message on a separate line."""
        with self._ignore_closed_output():
            self._console.print(text, markup=False)

    @contextmanager
    def compiling(self, what: str) -> Iterator[None]:
        """Say that `what` is compiled, with the seconds so far: in the bar, or in lines."""
        elapsed, is_done = _Elapsed(f"compiling {what}"), threading.Event()

        def print_lines() -> None:
            while not is_done.wait(COMPILING_S):
                self.note(str(elapsed))

        if self._bar:
            self._bar.update(self._task, figures=elapsed)
        else:
            threading.Thread(target=print_lines, daemon=True).start()
        try:
            yield
        finally:
            is_done.set()
            if self._bar:
                self._bar.update(self._task, figures=figures(self._last))

    def close(self) -> None:
        if self._bar:
            with self._ignore_closed_output():
                self._bar.stop()

    @contextmanager
    def _ignore_closed_output(self) -> Iterator[None]:
        """Continue silently if the terminal or the reader of the pipe is gone."""
        try:
            yield
        except (OSError, SystemExit):  # Rich raises SystemExit for a broken pipe.
            self._console.quiet, self._bar = True, None
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Elapsed:
    """A text with the seconds since it was made; the bar formats it anew at each refresh."""

    def __init__(self, text: str) -> None:
        self._text, self._began = text, time.monotonic()

    def __str__(self) -> str:
        return f"{self._text}, {time.monotonic() - self._began:.0f} s"


def figures(record: dict[str, Any]) -> str:
    """The figures of a record as text, with units."""
    parts = []
    if "loss" in record:
        parts.append(f"loss {record['loss']:.3f} nats/token")
    parts += held_out_losses(record)
    if "tokens_per_s" in record:
        parts.append(f"{record['tokens_per_s']:,.0f} tokens/s")
    return "  ".join(parts)


def held_out_losses(record: dict[str, Any]) -> list[str]:
    """The validation losses of a record as text, with the number of windows."""
    parts = []
    for name, words in (("val", "validation"), ("base_val", "the base's validation")):
        if record.get(f"{name}_loss") is None:
            continue
        text = f"{words} {record[f'{name}_loss']:.3f} nats/token"
        if record.get(f"{name}_bits_per_byte") is not None:
            text += f", {record[f'{name}_bits_per_byte']:.3f} bits/byte"
        parts.append(text + over_windows(record, name))
    return parts


def over_windows(record: dict[str, Any], name: str = "val") -> str:
    """The number of held-out windows of a loss as text; empty if not recorded."""
    windows, available = record.get(f"{name}_windows"), record.get(f"{name}_windows_available")
    return "" if windows is None else f" ({windows:,} of {available:,} windows)"
