"""Steps done again, to find what changed in silence: memory, a processor, a library, a file."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import jax

from gpt3jax.config import Experiment
from gpt3jax.plan.choose import mesh_for
from gpt3jax.run import Run
from gpt3jax.train import incident, seal
from gpt3jax.train.checkpoint import Checkpoints, Position, leaves_of
from gpt3jax.train.seal import Seal
from gpt3jax.train.state import TrainState, abstract_state, sharded_state
from gpt3jax.train.step import Metrics
from gpt3jax.train.stepper import Batch, Stepper

COMPARED = ("loss", "grad_norm", "learning_rate", "sequences")


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
    states = {step: seal.read(checkpoints.path(step)) for step in checkpoints.steps()}
    compared, differences = 0, []
    with jax.set_mesh(mesh):
        state, start = _begin(experiment, mesh, checkpoints, begin)
        stepper = Stepper(experiment, mesh, start, run.skips())
        try:
            while stepper.position.step < last:
                batch = stepper.next_batch()
                state, metrics = stepper.step(state, batch)
                step, found = batch.after.step, _numbers(batch, metrics)
                record = logged.get(step, {})
                known = {name: record[name] for name in COMPARED if name in record}
                if step in states:
                    known["state"] = states[step].state
                    found["state"] = _state_hash(states[step], state)
                compared += len(known)
                for name, value in known.items():
                    if value != found[name]:
                        differences.append((step, f"{name} was {value}, is {found[name]}"))
                if found["loss"] is None or found["grad_norm"] is None:
                    # Its update was left out: the state is still the one that made it.
                    bad = incident.first_bad(
                        state.params, batch.windows, batch.count, experiment.model
                    )
                    differences.append((step, f"not finite. First: {bad}"))
        finally:
            stepper.feed.close()
    return Replay(dict(mesh.shape), compared, differences)


def _begin(
    experiment: Experiment, mesh: jax.sharding.Mesh, checkpoints: Checkpoints, step: int
) -> tuple[TrainState, Position]:
    if step == 0:
        return sharded_state(experiment, mesh), Position()
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


def _state_hash(known: Seal, state: TrainState) -> str:
    return replace(known, leaves=leaves_of(state)).state
