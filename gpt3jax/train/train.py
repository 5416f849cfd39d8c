"""One session of training: the run's folder is taken, the state found, and the loop let go."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from signal import SIGTERM
from typing import Any

import jax

from gpt3jax.checkpoint.checkpointer import Checkpointer, Position
from gpt3jax.config import Data, Experiment
from gpt3jax.data.manifest import verify
from gpt3jax.errors import ConfigError
from gpt3jax.model.param_specs import count_params
from gpt3jax.model.trainable import trained, trained_count
from gpt3jax.run_dir import Changes, Run
from gpt3jax.sharding import processes
from gpt3jax.sharding.mesh import make_mesh
from gpt3jax.train import early_stopping, history, resume
from gpt3jax.train.init_from import base_data, find, first_state
from gpt3jax.train.loop import Loop, evaluation_is_missing
from gpt3jax.train.monitor import event_log, phase_timer
from gpt3jax.train.run_setup import (
    caught_signals,
    check_is_shared,
    create_or_check,
    data_identity,
    differences,
    only_one,
)
from gpt3jax.train.schedules import is_done
from gpt3jax.train.state import TrainState
from gpt3jax.train.step import layers_dtype


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended."""

    position: Position
    steps_taken: int
    signal: int | None
    """The signal that stopped it early, if one did."""


def train(
    experiment: Experiment,
    path: Path,
    *,
    mesh: jax.sharding.Mesh | None = None,
    why: str = "mesh as given",
    stuck_after: float = 0.0,
    changes: Changes = Changes(),  # noqa: B008 (frozen)
    began: float | None = None,
) -> Outcome:
    """Start the run at `path`, or resume the one that is there.

    Every process of a job calls this; the first alone writes what is shared.

    Args:
      experiment: what to train.
      path: the run's folder, which all hosts see.
      mesh: of all devices; the experiment's own, which then has no `auto`, if not given.
      why: this mesh, for the record.
      stuck_after: of several processes, seconds without progress after which one
        ends itself; 0: never.
      changes: to the run that is there.
      began: seconds since 1970 at which the caller set out; now, if not given.

    Raises:
      ConfigError: experiment, data, devices, hosts and run do not go together.
      NotFiniteError: training diverged; the last checkpoint is finite.
      SaveError: the checkpoint cannot be written.
      DamagedError: there are checkpoints, but none is whole.
    """
    began = began or time.time()
    mesh = mesh or make_mesh(experiment.mesh)
    data = _agreed(experiment)
    run = Run(path)
    with ExitStack() as held:
        processes.on_first(lambda: held.enter_context(only_one(run)))
        caught = held.enter_context(caught_signals())
        # Closed after all that takes time, so that its seconds are counted.
        counted = held.enter_context(ExitStack())
        held.enter_context(jax.set_mesh(mesh))
        checkpoints = Checkpointer(run.checkpoints, experiment.train.keep)
        held.callback(checkpoints.close)
        identity = {**experiment.identity(), "data": data}
        processes.on_first(lambda: _prepare(run, experiment, identity, checkpoints, changes))
        processes.agree(lambda: {"run": check_is_shared(run)})
        patience = experiment.train.patience
        is_over = processes.on_first(
            lambda: early_stopping.finish_interrupted_stop(run, checkpoints, patience)
        )
        start = processes.on_first(lambda: asdict(resume.furthest(checkpoints)))
        if is_over or _is_finished(run, Position(**start), experiment):
            return Outcome(Position(**start), 0, None)
        reached = processes.on_first(lambda: phase_timer.close_interrupted_session(run))
        # Alone, nobody waits for us: a slow step of a laptop is no reason to end.
        kept = phase_timer.PhaseTimer(run, began, stuck_after if jax.process_count() > 1 else 0.0)
        counted.callback(kept.close)
        kept.enter("restore")
        notes: list[str] = []
        state, position = _begin(run, experiment, mesh, checkpoints, notes)
        _record_start(run, experiment, mesh, position, why, notes)
        kept.enter("start", position.step)
        base = _base(run, notes)
        loop = Loop(experiment, run, mesh, checkpoints, position, caught, kept, reached, base)
        if "auto" in asdict(experiment.mesh).values():
            notes.append(why)
        for note in notes:
            loop.display.note(note)
        try:
            end = loop.go(state)
        finally:
            loop.close()
        signal = (caught or [SIGTERM])[0] if loop.is_stopping else None
        if processes.is_first():
            event_log.record(run.ledger_file, "stop", step=end.step, signal=signal)
        # If it ended early, that is an earlier one.
        last = processes.on_first(lambda: asdict(resume.furthest(checkpoints)))
        return Outcome(Position(**last), end.step - position.step, signal)


def _agreed(experiment: Experiment) -> dict[str, Any]:
    """The data's identity, when all hosts have the same code and experiment."""
    trained(experiment)  # Or it says why not.

    def facts() -> dict[str, Any]:
        data = data_identity(experiment)
        for source in experiment.data.sources:
            verify(source.path, processes.index(), jax.process_count())
        return {
            "code": event_log.code_version(),
            "experiment": asdict(experiment),
            "data": data,
        }

    return processes.agree(facts)["data"]


def _prepare(
    run: Run,
    experiment: Experiment,
    identity: dict[str, Any],
    checkpoints: Checkpointer,
    changes: Changes,
) -> None:
    """Make the folder what it should be before anything is read from it."""
    if changes.rewind_to is not None and not run.exists():
        raise ConfigError(f"{run.path} is no run yet: there is nothing to rewind. Name its --run")
    if changes.skip and changes.rewind_to is None:
        raise ConfigError("--skip goes with --rewind-to: from which step on? Name a checkpoint")
    if not run.exists() and checkpoints.steps():
        raise ConfigError(
            f"{run.path} has checkpoints but no experiment.json: whose they are is not known. "
            "Restore it, or start anew with another --run"
        )
    if experiment.init_from:
        # Of a run that is there, the base may have been trained on, or be gone.
        begun = run.identity().get("parent") if run.exists() else asdict(find(experiment))
        identity = {**identity, "parent": begun}
    dtype = layers_dtype(experiment.model)
    create_or_check(run, experiment, identity, dtype, changes.allow_change)
    if changes.rewind_to is not None:
        resume.rewind(run, checkpoints, changes.rewind_to, changes.skip)
    resume.set_rewound_aside(run, checkpoints)


def _begin(
    run: Run,
    experiment: Experiment,
    mesh: jax.sharding.Mesh,
    checkpoints: Checkpointer,
    notes: list[str],
) -> tuple[TrainState, Position]:
    """The state to go on from; `notes` gets what there is to say of it."""

    def tell(step: int, what: str) -> None:
        notes.append(f"checkpoint {step} is damaged and was passed over: {what}")

    found = resume.restore(run, experiment, mesh, checkpoints, tell)
    if found is None:
        return first_state(run, experiment, mesh), Position()
    state, manifest = found
    if changed := differences(manifest.code, event_log.code_version()):
        what = "; ".join(map(str, changed))
        notes.append(f"since the checkpoint, {what}: losses may differ in their last bits")
    return state, Position(manifest.step, manifest.sequences)


def _record_start(
    run: Run, experiment: Experiment, mesh: jax.sharding.Mesh, at: Position, why: str,
    notes: list[str],
) -> None:  # fmt: skip
    """Enter the beginning of a session in the ledger, with all that it runs with.

    What has changed since the session before, and how few parameters train, is noted.
    """
    parameters, trainable = count_params(experiment.model), trained_count(experiment)
    if trainable < parameters or experiment.init_from:
        notes.append(f"{parameters:,} parameters, {trainable:,} of them trained")
    if processes.is_first():
        if changed := _changed_roundings(run, experiment, mesh):
            notes.append(
                f"since the session before, {'; '.join(changed)}: the same batches and rates, but "
                "losses may differ in their last bits"
            )
        event_log.record(
            run.ledger_file, "resume" if at.step else "start", step=at.step,
            sequences=at.sequences, experiment=asdict(experiment),
            dtype=layers_dtype(experiment.model),
            mesh=dict(mesh.shape), why=why, device=jax.devices()[0].device_kind,
            hosts=jax.process_count(), parameters=parameters, trainable=trainable,
            parent=run.identity().get("parent"), **event_log.code_version(),
        )  # fmt: skip


def _changed_roundings(run: Run, experiment: Experiment, mesh: jax.sharding.Mesh) -> list[str]:
    """What differs from the session before and may change the last bits of numbers, in words."""
    last = history.sessions(run)[-1:]
    if not last or last[0].experiment is None:
        return []
    names = ("model.scan_layers", "model.remat", "train.microbatch")
    found = differences(asdict(last[0].experiment), asdict(experiment))
    found = [each for each in found if each.name in names]
    found += differences(last[0].mesh, dict(mesh.shape), "mesh")
    found += differences(last[0].device, jax.devices()[0].device_kind, "device")
    return list(map(str, found))


def _base(run: Run, notes: list[str]) -> Data | None:
    """What the run's parent was trained on, if all hosts can read it."""
    data, why = base_data(run)
    if whys := [each for each in processes.exchange(why) if each]:
        notes.append(whys[0])
    return None if whys else data


def _is_finished(run: Run, at: Position, experiment: Experiment) -> bool:
    tokens = at.sequences * experiment.model.context
    return (
        at.step > 0
        and is_done(at.step, tokens, experiment)
        and not evaluation_is_missing(run, at, experiment)
    )
