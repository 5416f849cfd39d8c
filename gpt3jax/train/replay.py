"""Steps done again, to find what changed in silence: memory, a processor, a library, a file."""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import jax

from gpt3jax.config import Experiment
from gpt3jax.plan.choose import mesh_for
from gpt3jax.run import Run
from gpt3jax.train import incident, seal
from gpt3jax.train.checkpoint import Checkpoints, Position, leaves_of
from gpt3jax.train.parent import first_state
from gpt3jax.train.state import TrainState, abstract_state
from gpt3jax.train.step import Metrics
from gpt3jax.train.stepper import Batch, Stepper


@dataclass(frozen=True)
class Replay:
    """How the steps went this time."""

    mesh: dict[str, int]
    compared: int
    """Logged values and states of checkpoints."""
    differences: list[tuple[int, str]]
    """Step, and what was another."""


def replay(run: Run, checkpoints: Checkpoints, begin: int, last: int) -> Replay:
    """Do steps begin+1 to last again, and compare them bit for bit with what is there of them.

    Args:
      run: the run; nothing in it is changed.
      checkpoints: its checkpoints.
      begin: the step of one of them, or 0 for the start.
      last: the last step to do.

    Raises:
      ConfigError: the data or the devices do not fit.
      DamagedError: the checkpoint is not whole.
    """
    experiment = run.experiment()
    mesh, _ = mesh_for(experiment)
    logged = {record["step"]: record for record in run.metrics()}
    seals = {step: seal.read(checkpoints.path(step)) for step in checkpoints.steps()}
    compared, differences = 0, []
    with jax.set_mesh(mesh):
        state, start = _begin(run, experiment, mesh, checkpoints, begin)
        stepper = Stepper(experiment, mesh, start, run.skips())
        with closing(stepper.feed):
            while stepper.position.step < last:
                batch = stepper.next_batch()
                state, metrics = stepper.step(state, batch)
                step, found = batch.after.step, _numbers(batch, metrics)
                known = {k: v for k, v in logged.get(step, {}).items() if k in found}
                if step in seals:
                    known["state"] = seals[step].state
                    found["state"] = replace(seals[step], leaves=leaves_of(state)).state
                compared += len(known)
                whats = [
                    f"{name} was {value}, is {found[name]}"
                    for name, value in known.items()
                    if value != found[name]
                ]
                if found["loss"] is None or found["grad_norm"] is None:
                    # Its update was left out: the state is still the one that made it.
                    model, windows = experiment.model, batch.windows
                    bad = incident.first_bad(state.params, windows, batch.count, model)
                    whats.append(f"not finite. First: {bad}")
                differences += [(step, what) for what in whats]
    return Replay(dict(mesh.shape), compared, differences)


def _begin(
    run: Run, experiment: Experiment, mesh: jax.sharding.Mesh, checkpoints: Checkpoints, step: int
) -> tuple[TrainState, Position]:
    if step not in checkpoints.steps():  # The start of a run that was not imported.
        return first_state(run, experiment, mesh), Position()
    found = checkpoints.seal(step)
    state = checkpoints.restore(step, abstract_state(experiment, mesh))
    return state, Position(found.step, found.sequences)


def _numbers(batch: Batch, metrics: Metrics) -> dict[str, Any]:
    """What a step comes to, as its record has it."""
    numbers = {name: float(value) for name, value in metrics.items()}
    finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
    return {
        **finite, "learning_rate": batch.learning_rate, "sequences": batch.after.sequences,
    }  # fmt: skip
