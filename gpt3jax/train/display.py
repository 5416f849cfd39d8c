"""What a person sees while a model trains: a progress bar, or plain lines when piped."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class Display:
    """Progress of one run; silent on all processes but the first."""

    def __init__(self, total_tokens: int, done_tokens: int, *, silent: bool = False):
        self._console = Console(quiet=silent, highlight=False, soft_wrap=True)
        self._bar = None
        if self._console.is_terminal and not silent:
            self._bar = Progress(
                TextColumn("step {task.fields[step]}"),
                BarColumn(bar_width=None),
                TextColumn("{task.percentage:.0f}%  {task.fields[figures]}"),
                TimeRemainingColumn(compact=True),
                TextColumn("left"),
                console=self._console,
                expand=True,
            )
            self._task = self._bar.add_task(
                "", total=total_tokens, completed=done_tokens, step=0, figures=""
            )
            self._bar.start()
        self._total = total_tokens
        self._last: dict[str, Any] = {}

    def show(self, record: dict[str, Any]) -> None:
        """Show a logged record; figures that it lacks stay as they were."""
        self._last |= record
        with self._reader_may_leave():
            self._show(record)

    def _show(self, record: dict[str, Any]) -> None:
        if self._bar:
            self._bar.update(
                self._task,
                completed=record["tokens"],
                step=record["step"],
                figures=figures(self._last),
            )
        else:
            share = record["tokens"] / self._total
            self._console.print(f"step {record['step']:>7,}  {share:4.0%}  {figures(record)}")

    def note(self, text: str) -> None:
        """Print a line of its own."""
        with self._reader_may_leave():
            self._console.print(text, markup=False)

    def close(self) -> None:
        if self._bar:
            with self._reader_may_leave():
                self._bar.stop()

    @contextmanager
    def _reader_may_leave(self) -> Iterator[None]:
        """Training goes on when its terminal has gone, or nobody reads the pipe any more."""
        try:
            yield
        except (OSError, SystemExit):  # Of rich, when a pipe is broken.
            self._console.quiet, self._bar = True, None
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def figures(record: dict[str, Any]) -> str:
    """The figures of a record in words and units."""
    parts = []
    if "loss" in record:
        parts.append(f"loss {record['loss']:.3f} nats/token")
    if "val_bits_per_byte" in record:
        parts.append(f"validation {record['val_bits_per_byte']:.3f} bits/byte")
    if "base_val_loss" in record:
        parts.append(f"the base's {record['base_val_loss']:.3f} nats/token")
    if "tokens_per_s" in record:
        parts.append(f"{record['tokens_per_s']:,.0f} tokens/s")
    return "  ".join(parts)
