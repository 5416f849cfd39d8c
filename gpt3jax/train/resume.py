"""Where a run goes on: at its newest checkpoint that is whole, or where it is sent back to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from jax.sharding import Mesh

from gpt3jax.checkpoint.checkpointer import Checkpointer, Position, Tell
from gpt3jax.checkpoint.manifest import CheckpointManifest, DamagedError, read_manifest
from gpt3jax.config import Experiment
from gpt3jax.errors import ConfigError
from gpt3jax.run_dir import Run, Skip, write_atomic
from gpt3jax.sharding import processes
from gpt3jax.train import history
from gpt3jax.train.metrics import cut_after
from gpt3jax.train.monitor import event_log
from gpt3jax.train.run_setup import identities
from gpt3jax.train.state import TrainState, abstract_state


def furthest(checkpoints: Checkpointer) -> Position:
    """The newest position whose manifest can be read, without looking at its values."""
    for step in reversed(checkpoints.steps()):
        try:
            found = read_manifest(checkpoints.path(step))
        except DamagedError:
            continue
        return Position(found.step, found.sequences)
    return Position()


def restore(
    run: Run, experiment: Experiment, mesh: Mesh, checkpoints: Checkpointer, tell: Tell
) -> tuple[TrainState, CheckpointManifest] | None:
    """The newest state that can be trusted, and its manifest; None where there is no checkpoint.

    One that cannot is told, entered in the ledger and renamed, so that its step
    can be saved again.

    Raises:
      DamagedError: there are checkpoints, but none is whole.
    """
    abstract = abstract_state(experiment, mesh)
    known = processes.on_first(lambda: identities(run))

    def load(step: int) -> tuple[TrainState, CheckpointManifest]:
        found = read_manifest(checkpoints.path(step))
        check_is_own(found, step, known)
        return checkpoints.restore(step, abstract), found

    passed_over: list[int] = []

    def note(step: int, what: str) -> None:
        passed_over.append(step)
        if processes.is_first():
            event_log.record(run.ledger_file, "damaged", step=step, what=what)
        tell(step, what)

    found = checkpoints.newest(load, note)

    def set_aside() -> None:
        for step in passed_over:
            checkpoints.set_aside(step, "damaged")

    # Not before another is known to be good: when none is, all stay where they are.
    processes.on_first(set_aside)
    return found


def rewind(run: Run, checkpoints: Checkpointer, step: int, batches: int) -> None:
    """Send the run back to a checkpoint, and pass over the batches that come next.

    What PaLM's authors did by hand about loss spikes (arXiv 2204.02311, section
    5.1). The run's skips are the record of it: later checkpoints do not have
    them, and are set aside. Doing it twice is doing it once, so that a job that
    is started again with the same words goes on.

    Args:
      run: the run; its lock is held.
      checkpoints: its checkpoints.
      step: the checkpoint to go back to.
      batches: how many to pass over.

    Raises:
      ConfigError: there is no such checkpoint.
      DamagedError: it is not whole.
    """
    steps = checkpoints.steps()
    if step not in steps:
        raise ConfigError(f"there is no checkpoint {step} to rewind to. {run.path} has {steps}")
    if batches < 0:
        raise ConfigError(f"--skip is {batches}: it counts batches. Use 0 or more")
    found = checkpoints.manifest(step)
    earlier = tuple(skip for skip in run.skips() if skip.sequences < found.sequences)
    windows = _windows_ahead(run, found, batches)
    skips = (*earlier, Skip(step, found.sequences, windows))
    if skips != run.skips():
        event_log.record(
            run.ledger_file, "rewind", step=step, batches=batches, windows=windows,
            was_at=steps[-1],
        )  # fmt: skip
        write_atomic(run.skips_file, json.dumps([asdict(skip) for skip in skips], indent=2) + "\n")
    elif steps[-1] > step:
        return
    # What was measured after it no longer counts: it could have ended the run (early_stopping.py).
    cut_after(run.metrics_file, step)


def _windows_ahead(run: Run, found: CheckpointManifest, batches: int) -> int:
    """Windows in the batches after a checkpoint, as the run read them before or would read them."""
    for event in reversed(event_log.read(run.ledger_file)):
        # The run was sent back here before: what it had read then is no longer in the metrics.
        if event["event"] == "rewind":
            skip = Skip(event.get("step"), found.sequences, event.get("windows"))
            if skip in run.skips() and event.get("batches") == batches and skip.step == found.step:
                return skip.windows
            break
    if batches == 0:
        return 0
    return history.windows_read(run, found.step + batches).stop - found.sequences


def set_rewound_aside(run: Run, checkpoints: Checkpointer) -> None:
    """Rename the checkpoints that a rewind has left behind to STEP.rewound."""
    skips = run.skips()
    for step in checkpoints.steps():
        try:
            found = read_manifest(checkpoints.path(step))
        except DamagedError:
            continue
        if found.skips != tuple(skip for skip in skips if skip.sequences < found.sequences):
            checkpoints.set_aside(step, "rewound")


def check_is_own(found: CheckpointManifest, step: int, known: Sequence[str]) -> None:
    """Whether a checkpoint is of this run, and of the step that its folder names.

    Raises:
      DamagedError: it is not.
    """
    if found.step != step:
        raise DamagedError(f"its manifest is that of step {found.step}")
    if found.identity not in known:
        raise DamagedError("it is of another run: its identity is not this run's")
