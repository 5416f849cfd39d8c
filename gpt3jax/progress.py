"""A progress bar for long work, or plain lines when the output is piped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_SHARE = 0.25
"""When piped, a line is printed each time this much more is done."""


@contextmanager
def progress() -> Iterator[Callable[[str, float], None]]:
    """Give a function to call with (what is being done, share done from 0 to 1)."""
    console = Console(highlight=False)
    if not console.is_terminal:
        yield _plain(console)
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(bar_width=None),
        TextColumn("{task.percentage:.0f}%"), TimeRemainingColumn(compact=True),
    )  # fmt: skip
    with Progress(*columns, console=console, expand=True) as bar:
        tasks: dict[str, int] = {}

        def report(what: str, share: float) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=1.0)
            bar.update(tasks[what], completed=share)

        yield report


def _plain(console: Console) -> Callable[[str, float], None]:
    shown: dict[str, int] = {}

    def report(what: str, share: float) -> None:
        quarter = int(share / PLAIN_SHARE)
        if shown.get(what) != quarter:
            shown[what] = quarter
            console.print(f"{what} {share:.0%}", markup=False)

    return report
