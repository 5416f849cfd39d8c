"""Resume a run from its newest intact checkpoint, or rewind it to an earlier one."""

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
    """The newest position with a readable manifest; does not verify the arrays."""
    for step in reversed(checkpoints.steps()):
        try:
            manifest = read_manifest(checkpoints.path(step))
        except DamagedError:
            continue
        return Position(manifest.step, manifest.sequences)
    return Position()


def restore(
    run: Run, experiment: Experiment, mesh: Mesh, checkpoints: Checkpointer, tell: Tell
) -> tuple[TrainState, CheckpointManifest] | None:
    """The state and the manifest of the newest intact checkpoint; None if there is no checkpoint.

    Damaged ones are reported, recorded in the event log and renamed, so that their step can be
    saved again.

    Raises:
      DamagedError: there are checkpoints, but none is intact.
    """
    abstract = abstract_state(experiment, mesh)
    known = processes.on_first(lambda: identities(run))

    def load(step: int) -> tuple[TrainState, CheckpointManifest]:
        manifest = read_manifest(checkpoints.path(step))
        check_is_own(manifest, step, known)
        return checkpoints.restore(step, abstract), manifest

    damaged: list[int] = []

    def report(step: int, reason: str) -> None:
        damaged.append(step)
        if processes.is_first():
            event_log.record(run.ledger_file, "damaged", step=step, what=reason)
        tell(step, reason)

    newest = checkpoints.newest(load, report)

    def set_aside() -> None:
        for step in damaged:
            checkpoints.set_aside(step, "damaged")

    # Only after another checkpoint was restored; if none is intact, all stay in place.
    processes.on_first(set_aside)
    return newest


def rewind(run: Run, checkpoints: Checkpointer, step: int, batches: int) -> None:
    """Rewind the run to a checkpoint, and skip the batches that follow it.

    PaLM's authors treated loss spikes this way (arXiv 2204.02311, section 5.1). The skips are
    recorded in the run directory; later checkpoints do not contain them and are renamed. The
    operation is idempotent, so that a job restarted with the same arguments resumes normally.

    Args:
      run: the run, whose lock the caller holds.
      checkpoints: its checkpoints.
      step: the checkpoint to rewind to.
      batches: number of batches to skip.

    Raises:
      ConfigError: there is no such checkpoint.
      DamagedError: the checkpoint is damaged.
    """
    steps = checkpoints.steps()
    if step not in steps:
        raise ConfigError(f"there is no checkpoint {step} to rewind to. {run.path} has {steps}")
    if batches < 0:
        raise ConfigError(f"--skip is {batches}: it counts batches. Use 0 or more")
    manifest = checkpoints.manifest(step)
    earlier = tuple(skip for skip in run.skips() if skip.sequences < manifest.sequences)
    windows = _windows_ahead(run, manifest, batches)
    skips = (*earlier, Skip(manifest.step, manifest.sequences, windows))
    if skips != run.skips():
        event_log.record(
            run.ledger_file,
            "rewind",
            step=step,
            batches=batches,
            windows=windows,
            was_at=steps[-1],
        )
        write_atomic(run.skips_file, json.dumps([asdict(skip) for skip in skips], indent=2) + "\n")
    elif steps[-1] > step:
        return
    # Later evaluations no longer count; otherwise they could end the run (early_stopping.py).
    cut_after(run.metrics_file, step)


def _windows_ahead(run: Run, manifest: CheckpointManifest, batches: int) -> int:
    """Windows in the batches after a checkpoint, as the run read them before or would read them."""
    for event in reversed(event_log.read(run.ledger_file)):
        # After an identical rewind, the metrics of these batches have been dropped.
        if event["event"] == "rewind":
            step, windows = event.get("step"), event.get("windows")
            is_same = event.get("batches") == batches and step == manifest.step
            recorded = [(skip.step, skip.sequences, skip.windows) for skip in run.skips()]
            is_known = (step, manifest.sequences, windows) in recorded
            if is_same and is_known and windows is not None:
                return windows
            break
    if batches == 0:
        return 0
    return history.windows_read(run, manifest.step + batches).stop - manifest.sequences


def set_rewound_aside(run: Run, checkpoints: Checkpointer) -> None:
    """Rename the checkpoints that a rewind has made invalid to STEP.rewound."""
    skips = run.skips()
    for step in checkpoints.steps():
        try:
            manifest = read_manifest(checkpoints.path(step))
        except DamagedError:
            continue
        if manifest.skips != tuple(skip for skip in skips if skip.sequences < manifest.sequences):
            checkpoints.set_aside(step, "rewound")


def check_is_own(manifest: CheckpointManifest, step: int, known: Sequence[str | None]) -> None:
    """Check that a checkpoint belongs to this run and to the step that its folder names.

    Raises:
      DamagedError: it does not.
    """
    if manifest.step != step:
        raise DamagedError(f"its manifest is that of step {manifest.step}")
    if manifest.identity not in known:
        raise DamagedError("it is of another run: its identity is not this run's")
