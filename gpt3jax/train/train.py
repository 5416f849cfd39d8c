"""A training session: lock the run directory, restore or initialise the state, run the loop."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from signal import SIGTERM
from typing import Any

import jax

from gpt3jax.checkpoint.checkpointer import Checkpointer, Position
from gpt3jax.config import Data, Experiment
from gpt3jax.data import loader
from gpt3jax.data.manifest import verify
from gpt3jax.errors import ConfigError
from gpt3jax.model.gpt3 import scans_layers
from gpt3jax.model.param_specs import count_params
from gpt3jax.model.trainable import trained, trained_count
from gpt3jax.run_dir import Changes, Run
from gpt3jax.sharding import processes
from gpt3jax.sharding.legal_meshes import check_fits
from gpt3jax.sharding.mesh import make_mesh
from gpt3jax.train import early_stopping, history, resume
from gpt3jax.train.init_from import (
    base_data,
    find_parent,
    first_state,
    inherit_skips,
    parent_of,
)
from gpt3jax.train.loop import Loop, evaluation_is_missing
from gpt3jax.train.monitor import event_log, phase_timer
from gpt3jax.train.monitor.profile import StepTrace
from gpt3jax.train.run_setup import (
    caught_signals,
    check_decay_ends,
    check_is_shared,
    create_or_check,
    data_identity,
    differences,
    run_lock,
)
from gpt3jax.train.schedules import is_done, total_tokens
from gpt3jax.train.state import TrainState
from gpt3jax.train.step import layers_dtype
from gpt3jax.train.trackers import DEFAULT

MOST_EPOCHS = 4
"""Passes over a source beyond which the repetition is noted."""


@dataclass(frozen=True)
class Outcome:
    """The result of `train`."""

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
    trace: StepTrace | None = None,
    trackers: Sequence[str] = DEFAULT,
) -> Outcome:
    """Start the run at `path`, or resume it.

    Every process of a job calls this function; only process 0 writes shared files.

    Args:
      experiment: the experiment.
      path: the run directory, on a file system that all hosts share.
      mesh: mesh of all devices; by default the experiment's, which must not contain `auto`.
      why: the reason for this mesh, for the event log.
      stuck_after: with several processes, seconds without progress after which the watchdog ends
        the process; 0 disables it.
      changes: changes to an existing run.
      began: start of the session in seconds since 1970; now by default.
      trace: steps to trace.
      trackers: names of trackers.py.

    Raises:
      ConfigError: experiment, data, devices, hosts and run are not compatible.
      NotFiniteError: training diverged; the last checkpoint is finite.
      SaveError: the checkpoint cannot be written.
      DamagedError: there are checkpoints, but none is intact.
    """
    began = began or time.time()
    mesh = mesh or make_mesh(experiment.mesh)
    check_fits(experiment, **mesh.shape)
    data = _agreed(experiment)
    run = Run(path)
    with ExitStack() as stack:
        processes.on_first(lambda: stack.enter_context(run_lock(run)))
        caught = stack.enter_context(caught_signals())
        # Entered early, so that the timer is closed last and counts the other exits.
        timer_stack = stack.enter_context(ExitStack())
        stack.enter_context(jax.set_mesh(mesh))
        checkpoints = Checkpointer(run.checkpoints, experiment.train.keep)
        stack.callback(checkpoints.close)
        identity = {**experiment.identity(), "data": data}
        processes.on_first(lambda: _prepare(run, experiment, identity, checkpoints, changes))
        processes.agree(lambda: {"run": check_is_shared(run)})
        patience = experiment.train.patience
        is_over = processes.on_first(
            lambda: early_stopping.finish_interrupted_stop(run, checkpoints, patience)
        )
        start = processes.on_first(lambda: asdict(resume.furthest(checkpoints)))
        if trace:
            trace.check(start["step"])
        if is_over or _is_finished(run, Position(**start), experiment):
            return Outcome(Position(**start), 0, None)
        reached = processes.on_first(lambda: phase_timer.close_interrupted_session(run))
        # No watchdog in a single process: nobody waits for it, and its steps may be slow.
        timer = phase_timer.PhaseTimer(run, began, stuck_after if jax.process_count() > 1 else 0.0)
        timer_stack.callback(timer.close)
        steps, signal = _loop(
            run, experiment, mesh, checkpoints, caught, timer, reached, why, trace, trackers
        )
        # Early stopping returns to an earlier checkpoint.
        last = processes.on_first(lambda: asdict(resume.furthest(checkpoints)))
        return Outcome(Position(**last), steps, signal)


def _loop(
    run: Run,
    experiment: Experiment,
    mesh: jax.sharding.Mesh,
    checkpoints: Checkpointer,
    caught: list[int],
    timer: phase_timer.PhaseTimer,
    reached: int,
    why: str,
    trace: StepTrace | None,
    trackers: Sequence[str],
) -> tuple[int, int | None]:
    """Restore the state and train until the end or a signal: steps taken, and the signal."""
    timer.enter("restore")
    notes: list[str] = []
    state, position = _begin(run, experiment, mesh, checkpoints, notes)
    _record_start(run, experiment, mesh, position, why, notes)
    timer.enter("start", position.step)
    # A branch trains on the data of its parent.
    base = _base(run, notes) if experiment.inherit == "parameters" else None
    loop = Loop(
        experiment, run, mesh, checkpoints, position, caught, timer, reached, base, trace, trackers
    )
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
    return end.step - position.step, signal


def _agreed(experiment: Experiment) -> dict[str, Any]:
    """The identity of the data, after checking that all hosts have the same code and experiment."""
    trained(experiment)  # Checks the patterns.

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
    """Create or check the run directory and apply `changes`, before anything is read from it."""
    if changes.rewind_to is not None and not run.exists():
        raise ConfigError(f"{run.path} is not a run: there is nothing to rewind. Check --run")
    if changes.skip and changes.rewind_to is None:
        raise ConfigError("--skip goes with --rewind-to: name the checkpoint to rewind to")
    if not run.exists() and checkpoints.steps():
        raise ConfigError(
            f"{run.path} has checkpoints but no experiment.json, so their experiment is not known. "
            "Restore the file, or start anew with another --run"
        )
    if not run.exists():
        check_decay_ends(experiment)
        run.skips_file.unlink(missing_ok=True)  # Of a creation that was interrupted.
    if experiment.init_from and run.exists():
        # The recorded parent counts: the base may have changed since.
        identity = {**identity, "parent": run.identity().get("parent")}
    elif experiment.init_from:
        parent = find_parent(experiment)
        identity = {**identity, "parent": asdict(parent)}
        if experiment.inherit == "state":
            # First, since the folder is a run once it has been created.
            inherit_skips(run, parent)
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
    """The restored or initial state and its position; appends messages to `notes`."""

    def tell(step: int, reason: str) -> None:
        notes.append(f"checkpoint {step} is damaged and was passed over: {reason}")

    restored = resume.restore(run, experiment, mesh, checkpoints, tell)
    if restored is None:
        state, start = first_state(run, experiment, mesh)
        if start.step:
            notes.append(
                f"continues {experiment.init_from} from step {start.step}: its parameters, its "
                f"moments and its position in the data, {start.sequences:,} windows; the schedule "
                "is this run's own"
            )
        return state, start
    state, manifest = restored
    if changed := differences(manifest.code, event_log.code_version()):
        changes = "; ".join(map(str, changed))
        notes.append(f"since the checkpoint, {changes}: losses may differ in their last bits")
    return state, Position(manifest.step, manifest.sequences)


def _record_start(
    run: Run,
    experiment: Experiment,
    mesh: jax.sharding.Mesh,
    at: Position,
    why: str,
    notes: list[str],
) -> None:
    """Record the start of a session and its settings in the event log.

    Appends to `notes` the number of trained parameters, sources that are repeated often, and
    changes since the previous session.
    """
    parameters, trainable = count_params(experiment.model), trained_count(experiment)
    if trainable < parameters or experiment.init_from:
        notes.append(f"{parameters:,} parameters, {trainable:,} of them trained")
    windows = total_tokens(experiment) // experiment.model.context
    epochs = loader.epochs(experiment.data, experiment.model.context, windows)
    notes += [
        f"{name} will be read {count:.1f} times: beyond {MOST_EPOCHS} epochs, repeated text "
        "teaches less and less (arXiv 2305.16264)"
        for name, count in epochs.items()
        if count > MOST_EPOCHS
    ]
    if processes.is_first():
        if changed := _changed_roundings(run, experiment, mesh):
            notes.append(
                f"since the session before, {'; '.join(changed)}: the same batches and rates, but "
                "losses may differ in their last bits"
            )
        is_new = at.step == _first_step(run, experiment)
        event_log.record(
            run.ledger_file, "start" if is_new else "resume", step=at.step,
            sequences=at.sequences, experiment=asdict(experiment),
            dtype=layers_dtype(experiment.model),
            mesh=dict(mesh.shape), why=why, device=jax.devices()[0].device_kind,
            hosts=jax.process_count(), parameters=parameters, trainable=trainable,
            parent=run.identity().get("parent"), epochs=epochs, **event_log.code_version(),
        )  # fmt: skip


def _first_step(run: Run, experiment: Experiment) -> int:
    """The step at which a run begins: 0, or that of the checkpoint whose state it inherited."""
    parent = parent_of(run) if experiment.inherit == "state" else None
    return parent.step if parent else 0


def _changed_roundings(run: Run, experiment: Experiment, mesh: jax.sharding.Mesh) -> list[str]:
    """Descriptions of the changes since the last session that may affect rounding."""
    last = history.sessions(run)[-1:]
    if not last or last[0].experiment is None:
        return []
    names = ["model.remat", "train.microbatch"]
    if scans_layers(last[0].experiment.model) != scans_layers(experiment.model):
        names.append("model.scan_layers")
    changes = differences(asdict(last[0].experiment), asdict(experiment))
    changes = [each for each in changes if each.name in names]
    changes += differences(last[0].mesh, dict(mesh.shape), "mesh")
    changes += differences(last[0].device, jax.devices()[0].device_kind, "device")
    return list(map(str, changes))


def _base(run: Run, notes: list[str]) -> Data | None:
    """The data of the run's parent, if all hosts can read it."""
    data, problem = base_data(run)
    if problems := [each for each in processes.exchange(problem) if each]:
        notes.append(problems[0])
    return None if problems else data


def _is_finished(run: Run, at: Position, experiment: Experiment) -> bool:
    tokens = at.sequences * experiment.model.context
    return (
        at.step > 0
        and is_done(at.step, tokens, experiment)
        and not evaluation_is_missing(run, at, experiment)
    )
