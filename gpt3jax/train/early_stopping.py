"""Early stopping: when validation has got no better for long enough, the best state is the last.

What is decided follows from the logged validation losses alone, so that a run that
was killed decides the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from gpt3jax.checkpoint.checkpointer import Checkpointer
from gpt3jax.run_dir import Run, read_events
from gpt3jax.train.monitor import event_log


class Verdict(NamedTuple):
    """What the evaluations so far say."""

    best: int | None
    """The step of the best; None if there is none yet."""
    is_over: bool


def evaluations(run: Run) -> list[list[Any]]:
    """[step, val_loss] of each evaluation in the log; not of step 0, which no checkpoint has."""
    found = [record for record in run.metrics() if "val_loss" in record and record["step"] > 0]
    return [[record["step"], record["val_loss"]] for record in found]


def verdict(found: Sequence[Sequence[Any]], patience: int) -> Verdict:
    """Which evaluation is the best, the first of equals, and whether `patience` are not better.

    >>> verdict([[10, 2.0], [20, 1.5], [30, 1.7], [40, 1.6]], patience=2)
    Verdict(best=20, is_over=True)
    """
    known = [(loss, step) for step, loss in found if loss is not None and math.isfinite(loss)]
    if not known:
        return Verdict(None, False)
    _, best = min(known)
    later = sum(step > best for step, _ in found)
    return Verdict(best, 0 < patience <= later)


def finish_interrupted_stop(run: Run, checkpoints: Checkpointer, patience: int) -> bool:
    """Whether the run is over; if so, its newest checkpoint is then the best one.

    Later ones become STEP.worse. Doing it twice is doing it once.
    """
    best, is_over = verdict(evaluations(run), patience)
    if not is_over:
        return False
    later = [step for step in checkpoints.steps() if step > best]
    for step in later:
        checkpoints.set_aside(step, "worse")
    told = [e.get("step") for e in read_events(run.ledger_file) if e["event"] == "early stop"]
    if later or best not in told:
        event_log.record(run.ledger_file, "early stop", step=best, patience=patience, later=later)
    return True
