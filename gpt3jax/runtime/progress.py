"""A progress bar on stderr, or plain lines if stderr is not a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

PLAIN_SHARE = 0.25
"""Without a terminal, a line is printed each time this fraction of the work is completed."""


@contextmanager
def progress() -> Iterator[Callable[..., None]]:
    """Yield a function report(task, fraction done from 0 to 1, part="")."""
    console = Console(highlight=False, stderr=True)
    if not console.is_terminal:
        yield _plain(console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.percentage:.0f}%"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console, expand=True) as bar:
        tasks: dict[str, TaskID] = {}

        def report(what: str, share: float, part: str = "") -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=1.0)
            shown = f"{what}: {part}" if part and share < 1 else what
            bar.update(tasks[what], completed=share, description=shown)

        yield report


def _plain(console: Console) -> Callable[..., None]:
    shown: dict[str, int] = {}
    starts: dict[str, float] = {}

    def report(what: str, share: float, part: str = "") -> None:
        quarter, now = int(share / PLAIN_SHARE), time.monotonic()
        elapsed = now - starts.setdefault(what, now)
        if shown.get(what) != quarter:
            shown[what] = quarter
            has_estimate = elapsed > 0 and 0 < share < 1
            left = f", about {elapsed / share - elapsed:.0f} s left" if has_estimate else ""
            console.print(f"{what} {share:.0%}{left}", markup=False)

    return report
