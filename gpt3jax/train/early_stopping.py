"""Early stopping: end the run, at its best checkpoint, when validation has stopped improving.

The decision depends only on the logged validation losses, so that a run that was killed and resumed
decides the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from gpt3jax.checkpoint.checkpointer import Checkpointer
from gpt3jax.run_dir import Run, read_events
from gpt3jax.train.monitor import event_log


class Verdict(NamedTuple):
    """The decision after the evaluations so far."""

    best: int | None
    """Step of the best evaluation; None if there is none yet."""
    is_over: bool


def evaluations(run: Run) -> list[list[Any]]:
    """[step, val_loss] of each logged evaluation, except step 0, which has no checkpoint."""
    records = [record for record in run.metrics() if "val_loss" in record and record["step"] > 0]
    return [[record["step"], record["val_loss"]] for record in records]


def verdict(measured: Sequence[Sequence[Any]], patience: int) -> Verdict:
    """The first best evaluation, and whether at least `patience` evaluations came after it.

    >>> verdict([[10, 2.0], [20, 1.5], [30, 1.7], [40, 1.6]], patience=2)
    Verdict(best=20, is_over=True)
    """
    finite = [(loss, step) for step, loss in measured if loss is not None and math.isfinite(loss)]
    if not finite:
        return Verdict(None, False)
    _, best = min(finite)
    later = sum(step > best for step, _ in measured)
    return Verdict(best, 0 < patience <= later)


def finish_interrupted_stop(run: Run, checkpoints: Checkpointer, patience: int) -> bool:
    """Whether early stopping has ended the run; if so, renames later checkpoints to STEP.worse.

    The newest checkpoint is then the best one. Idempotent.
    """
    best, is_over = verdict(evaluations(run), patience)
    if best is None or not is_over:
        return False
    later = [step for step in checkpoints.steps() if step > best]
    for step in later:
        checkpoints.set_aside(step, "worse")
    recorded = [e.get("step") for e in read_events(run.ledger_file) if e["event"] == "early stop"]
    if later or best not in recorded:
        event_log.record(run.ledger_file, "early stop", step=best, patience=patience, later=later)
    return True
