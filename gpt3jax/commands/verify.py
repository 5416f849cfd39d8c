"""`gpt3jax verify`: verify the hashes of a run, or replay steps."""

from __future__ import annotations

from dataclasses import asdict
from json import dumps
from pathlib import Path

from tyro.conf import Positional

from gpt3jax.run_dir import open_run
from gpt3jax.style import wide_console


def verify(run: Positional[Path], replay: str | None = None, json: bool = False) -> int:
    """Verify every hash of a run, or replay steps and compare the results bit for bit.

    Examples:
      gpt3jax verify runs/tiny
      gpt3jax verify runs/tiny --replay 400:410

    Args:
      run: The run.
      replay: A:B repeats steps A+1 to B from a checkpoint at or before A and compares the logged
        metrics. A difference on the same machine indicates silent data corruption.
      json: Print the results as JSON.
    """
    from rich.table import Table

    from gpt3jax.doctor.verify import check_hashes, check_replay

    opened = open_run(run)
    verdicts = check_replay(opened, replay) if replay else check_hashes(opened)
    if json:
        print(dumps([asdict(verdict) for verdict in verdicts], indent=2))
    else:
        table = Table(box=None, pad_edge=False, show_header=False)
        for verdict in verdicts:
            table.add_row("ok" if verdict.is_good else "BAD", verdict.what, verdict.finding)
        wide_console().print(table, soft_wrap=True)
    return int(not all(verdict.is_good for verdict in verdicts))
