"""`gpt3jax doctor`: what a run needs, checked."""

from __future__ import annotations

from pathlib import Path

from gpt3jax.config import Experiment


def doctor(
    experiment: Experiment | None = None, run: Path | None = None, json: bool = False
) -> int:
    """Check what a run needs before it starts: one line each, and what cures a failure.

    Examples:
      gpt3jax doctor
      gpt3jax doctor experiments/tiny.py --run runs/tiny
      gpt3jax doctor experiments/gpt3_1b3.py --train.microbatch 8 --json

    Args:
      experiment: The experiment, for its disk, memory and data; not needed for the rest.
      run: Folder of the run, there or not; runs/NAME if not given.
      json: Print the checks as JSON.
    """
    from gpt3jax.doctor.diagnose import diagnose

    return diagnose(experiment, run, as_json=json)
