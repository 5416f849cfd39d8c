"""`gpt3jax doctor`: check the requirements of a run."""

from __future__ import annotations

import dataclasses
import os
from json import dumps
from pathlib import Path

from gpt3jax.config import Experiment
from gpt3jax.run_dir import Run
from gpt3jax.style import wide_console

COLOURS = {"ok": "green", "warning": "yellow", "failure": "bold red"}


def doctor(
    experiment: Experiment | None = None, run: Path | None = None, json: bool = False
) -> int:
    """Check the requirements of a run before it starts, and suggest a fix for each failure.

    Examples:
      gpt3jax doctor
      gpt3jax doctor experiments/tiny.py --run runs/tiny
      gpt3jax doctor experiments/gpt3_1b3.py --train.microbatch 8 --json

    Args:
      experiment: The experiment file, for checks of disk space, memory and data; optional.
      run: The run directory, which need not exist; default runs/NAME.
      json: Print the checks as JSON.
    """
    from rich.table import Table
    from rich.text import Text

    from gpt3jax.doctor.diagnose import examine
    from gpt3jax.runtime.memory import allow_device_memory

    # Leaves the GPU's memory to other processes.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    allow_device_memory()
    folder = run or Path("runs") / (experiment.name if experiment else "")
    checks = examine(experiment, Run(folder))
    counts = {status: sum(check.status == status for check in checks) for status in COLOURS}
    if json:
        print(dumps([dataclasses.asdict(check) for check in checks], indent=2))
    else:
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column()
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for check in checks:
            message = f"{check.finding}. {check.cure}" if check.cure else check.finding
            table.add_row(Text(check.status, COLOURS[check.status]), check.name, Text(message))
        wide_console().print(table)
        print(", ".join(f"{status} {count}" for status, count in counts.items()))
    return int(counts["failure"] > 0)
