"""Replay steps and compare them bit for bit, to detect silent corruption of memory or files, faulty
processors, and changes of libraries."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import jax

from gpt3jax.checkpoint.checkpointer import Checkpointer, Position, leaves_of
from gpt3jax.checkpoint.manifest import CheckpointManifest, read_manifest
from gpt3jax.config import Experiment, Mesh
from gpt3jax.run_dir import Run
from gpt3jax.runtime.kept_programs import KeptPrograms
from gpt3jax.sharding.mesh import make_mesh
from gpt3jax.train import history
from gpt3jax.train.init_from import first_state
from gpt3jax.train.monitor import nonfinite
from gpt3jax.train.state import TrainState, abstract_state
from gpt3jax.train.step import Metrics, layers_dtype
from gpt3jax.train.stepper import Batch, Stepper

MeshFor = Callable[[Experiment], jax.sharding.Mesh]


@dataclass(frozen=True)
class Replay:
    """The result of a replay."""

    compared: int
    """Number of compared values: metrics and checkpoint states."""
    differences: list[tuple[int, str]]
    """Step and description of each difference."""
    notes: list[str]
    """Settings of the sessions that could not be reproduced."""


def replay(
    run: Run,
    checkpoints: Checkpointer,
    begin: int,
    first: int,
    last: int,
    mesh_for: MeshFor,
) -> Replay:
    """Replay steps begin + 1 to last, and compare those after `first` bit for bit.

    Each step has the windows and the settings that the run's records have for it.

    Args:
      run: the run; read only.
      checkpoints: its checkpoints.
      begin: the step of a checkpoint, or 0 for the start.
      first: the last step that is not compared.
      last: the last step.
      mesh_for: returns a mesh for steps whose recorded mesh does not fit the devices here.

    Raises:
      ConfigError: data or devices do not fit, or the records do not determine the windows.
      DamagedError: the checkpoint is damaged.
    """
    logged = {record["step"]: record for record in run.metrics()}
    manifests = {step: read_manifest(checkpoints.path(step)) for step in checkpoints.steps()}
    compared, differences, notes = 0, [], []
    for experiment, state, batch, metrics in _steps(run, checkpoints, begin, last, mesh_for, notes):
        step = batch.after.step
        if step <= first:
            continue
        before, now = _values(logged.get(step, {}), manifests.get(step), state, batch, metrics)
        compared += len(before)
        changes = [
            f"{name} was {value}, is {now[name]}"
            for name, value in before.items()
            if value != now[name]
        ]
        if now["loss"] is None or now["grad_norm"] is None:
            # The update was not applied, so this is still the state before the step.
            bad = nonfinite.first_bad(state.params, batch.windows, batch.count, experiment.model)
            changes.append(f"not finite. First: {bad}")
        differences += [(step, change) for change in changes]
    return Replay(compared, differences, notes)


def _steps(
    run: Run, checkpoints: Checkpointer, begin: int, last: int, mesh_for: MeshFor, notes: list[str]
) -> Iterator[tuple[Experiment, TrainState, Batch, Metrics]]:
    """Replay each step after `begin`; yields with the step's mesh set."""
    previous: tuple[TrainState, Position] | None = None
    for step, end, experiment, mesh in _legs(run, begin, last, mesh_for, notes):
        spans = [history.windows_read(run, each) for each in range(step + 1, end + 1)]
        # The last size repeats, since the feed prefetches further batches, which are not used.
        sizes = [*((len(span), 1) for span in spans), (len(spans[-1]), sys.maxsize)]
        with jax.set_mesh(mesh):
            state, start = previous or _begin(run, experiment, mesh, checkpoints, begin)
            shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(experiment, mesh))
            state = jax.device_put(state, shardings)
            programs = KeptPrograms(run.autotune, is_writer=False)
            stepper = Stepper(experiment, mesh, start, run.skips(), sizes, programs)
            with closing(stepper.feed):
                while stepper.position.step < end:
                    batch = stepper.next_batch()
                    is_first = not stepper.is_compiled
                    state, metrics = stepper.step(state, batch)
                    if is_first and stepper.has_other_kernels:
                        notes.append(
                            f"steps {step + 1} to {end}: the run has no compiled step for this GPU "
                            "and these libraries, so XLA chose kernels anew: bits may differ"
                        )
                    yield experiment, state, batch, metrics
        previous = state, stepper.position


def _legs(
    run: Run, begin: int, last: int, mesh_for: MeshFor, notes: list[str]
) -> Iterator[tuple[int, int, Experiment, jax.sharding.Mesh]]:
    """(first step - 1, last step, experiment, mesh) for each session's range of steps.

    Appends to `notes` the settings that cannot be reproduced here.
    """
    sessions = [session for session in history.sessions(run) if session.step < last]
    sessions = sessions or [history.Session(0, None, None, None, None)]
    ends = [session.step for session in sessions[1:]] + [last]
    for session, end in zip(sessions, ends, strict=True):
        if end <= begin:
            continue
        step = max(begin, session.step)
        which = f"steps {step + 1} to {end}"
        if session.experiment is None:
            notes.append(f"{which}: their settings were not recorded, the run's newest are taken")
        experiment, sizes = session.experiment or run.experiment(), session.mesh
        if sizes and math.prod(sizes.values()) == jax.device_count():
            mesh = make_mesh(Mesh(**sizes), jax.devices())
        else:
            mesh = mesh_for(replace(experiment, mesh=run.experiment().mesh))
        with jax.set_mesh(mesh):
            dtype = layers_dtype(experiment.model)
        here = history.Session(
            session.step, experiment, dict(mesh.shape), dtype, jax.devices()[0].device_kind
        )
        for name in ("mesh", "dtype", "device"):
            was, now = getattr(session, name), getattr(here, name)
            if was not in (None, now):
                notes.append(f"{which}: {name} was {was}, here it is {now}: bits may differ")
        yield step, end, experiment, mesh


def _values(
    record: dict[str, Any],
    manifest: CheckpointManifest | None,
    state: TrainState,
    batch: Batch,
    metrics: Metrics,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The recorded values of a step, and the replayed ones."""
    now = _numbers(batch, metrics)
    before = {name: value for name, value in record.items() if name in now}
    if manifest is not None:
        before["state"] = manifest.state
        now["state"] = replace(manifest, leaves=leaves_of(state)).state
    return before, now


def _begin(
    run: Run, experiment: Experiment, mesh: jax.sharding.Mesh, checkpoints: Checkpointer, step: int
) -> tuple[TrainState, Position]:
    if step not in checkpoints.steps():  # The start of a run that was not imported.
        return first_state(run, experiment, mesh)
    manifest = checkpoints.manifest(step)
    state = checkpoints.restore(step, abstract_state(experiment, mesh))
    return state, Position(manifest.step, manifest.sequences)


def _numbers(batch: Batch, metrics: Metrics) -> dict[str, Any]:
    """The values of a step in the form of its record."""
    numbers = {name: float(value) for name, value in metrics.items()}
    finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
    return {
        **finite,
        "learning_rate": batch.learning_rate,
        "sequences": batch.after.sequences,
    }
