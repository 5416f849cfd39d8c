"""What a run did, by its own record: which session did a step, and which windows it read.

A session's first event in the ledger has the whole experiment, the mesh and the dtype that it ran
with. The metrics have the position and the batch's size after every logged step, and after every
step whose next batch has another size. Nothing here is computed from today's settings, but for
steps that are still to come.
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
    """What ran from a step on, as far as its record says."""

    step: int
    """It began after this step."""
    experiment: Experiment | None
    mesh: dict[str, int] | None
    """Devices along each axis."""
    dtype: str | None
    """What layers multiply in: float32, bfloat16 or float8."""
    device: str | None


def sessions(run: Run) -> list[Session]:
    """The sessions whose steps still count, in the order of their steps.

    A session that began at or before another's first step did those steps again.
    """
    found: list[Session] = []
    for event in read_events(run.ledger_file):
        if event["event"] not in ("start", "resume") or not isinstance(event.get("step"), int):
            continue
        found = [session for session in found if session.step < event["step"]]
        found.append(_session(run, event))
    return found


def _session(run: Run, event: dict[str, Any]) -> Session:
    try:
        experiment = run.located(serde.build(Experiment, event.get("experiment")))
        mesh = serde.build(dict[str, int], event.get("mesh"))
    except (ValueError, ConfigError):  # Of an earlier version, or damaged.
        experiment = mesh = None
    return Session(event["step"], experiment, mesh, event.get("dtype"), event.get("device"))


def windows_read(run: Run, step: int) -> range:
    """The global sequences of the batch that a step read; of a step to come, as things stand.

    Args:
      run: the run.
      step: counted from 1.

    Raises:
      ConfigError: the record does not say: its batch grew, and this version was not there yet.
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
