"""The history of a run, read from its own records: sessions, and the windows of each step.

A session's first event in the event log has the complete experiment, the mesh and the dtype. The
metrics have the position and the batch size after every logged step, and after every step whose
next batch has another size. Current settings are used only for steps that are still to come.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpt3jax import serde
from gpt3jax.config import Experiment
from gpt3jax.errors import ConfigError
from gpt3jax.run_dir import Run, read_events
from gpt3jax.train.schedules import batch_range


@dataclass(frozen=True)
class Session:
    """The recorded settings of one session; None where they were not recorded."""

    step: int
    """The session began after this step."""
    experiment: Experiment | None
    mesh: dict[str, int] | None
    """Devices along each axis."""
    dtype: str | None
    """Dtype of the layers' matrix products: float32, bfloat16 or float8."""
    device: str | None


def sessions(run: Run) -> list[Session]:
    """The sessions whose steps still count, in the order of their steps.

    A session replaces earlier ones that began at the same step or later.
    """
    result: list[Session] = []
    for event in read_events(run.ledger_file):
        if event["event"] not in ("start", "resume") or not isinstance(event.get("step"), int):
            continue
        result = [session for session in result if session.step < event["step"]]
        result.append(_session(run, event))
    return result


def _session(run: Run, event: dict[str, Any]) -> Session:
    try:
        experiment = run.located(serde.build(Experiment, event.get("experiment")))
        mesh = serde.build(dict[str, int], event.get("mesh"))
    except (ValueError, ConfigError):  # Written by an earlier version, or damaged.
        experiment = mesh = None
    return Session(event["step"], experiment, mesh, event.get("dtype"), event.get("device"))


def windows_read(run: Run, step: int) -> range:
    """The global sequences of the batch of a step; future steps use the current settings.

    Args:
      run: the run.
      step: the step, counted from 1.

    Raises:
      ConfigError: the batch size grew and an earlier version did not record each change.
    """
    experiment = run.experiment()
    before = step_before = 0
    for record in run.metrics():
        position, tokens = record.get("sequences"), record.get("batch_tokens")
        if not isinstance(position, int):
            continue
        if record["step"] >= step and isinstance(tokens, int):
            size = tokens // experiment.model.context
            is_uniform = position - before == (record["step"] - step_before) * size
            if not is_uniform and record["step"] != step:
                raise ConfigError(
                    f"{run.path} does not say which windows step {step} read: its batch grew, and "
                    "the version that trained it recorded logged steps only. Name one of those: "
                    f"{record['step']}"
                )
            end = position - (record["step"] - step) * size
            return range(end - size, end)
        if record["step"] < step:
            before, step_before = position, record["step"]
    return batch_range(step - 1 - step_before, experiment, before)
