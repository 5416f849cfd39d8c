"""`gpt3jax doctor`: check the requirements of a run."""

from __future__ import annotations

from pathlib import Path

from gpt3jax.config import Experiment


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
    from gpt3jax.doctor.diagnose import diagnose

    return diagnose(experiment, run, as_json=json)
