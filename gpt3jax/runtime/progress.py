"""A progress bar for long work, or plain lines when the output is piped; on stderr."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_SHARE = 0.25
"""When piped, a line is printed each time this much more is done."""


@contextmanager
def progress() -> Iterator[Callable[..., None]]:
    """Give a function to call with (what is being done, share done from 0 to 1, and which part)."""
    console = Console(highlight=False, stderr=True)
    if not console.is_terminal:
        yield _plain(console)
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(bar_width=None),
        TextColumn("{task.percentage:.0f}%"), TimeRemainingColumn(compact=True),
    )  # fmt: skip
    with Progress(*columns, console=console, expand=True) as bar:
        tasks: dict[str, int] = {}

        def report(what: str, share: float, part: str = "") -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=1.0)
            shown = f"{what}: {part}" if part and share < 1 else what
            bar.update(tasks[what], completed=share, description=shown)

        yield report


def _plain(console: Console) -> Callable[..., None]:
    shown: dict[str, int] = {}
    began: dict[str, float] = {}

    def report(what: str, share: float, part: str = "") -> None:
        quarter, now = int(share / PLAIN_SHARE), time.monotonic()
        passed = now - began.setdefault(what, now)
        if shown.get(what) != quarter:
            shown[what] = quarter
            is_known = passed > 0 and 0 < share < 1
            left = f", about {passed / share - passed:.0f} s left" if is_known else ""
            console.print(f"{what} {share:.0%}{left}", markup=False)

    return report
