"""A training process that dies where it is told to: `victim.py STAGE:NTH train FILE ...`.

The package knows nothing of this: its functions are wrapped from outside. The
kill is SIGKILL, by the process to itself; nothing runs after it.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from gpt3jax import cli

PHASES = ("start", "restore", "compile", "data", "step", "save", "evaluate")
"""Killed when the main thread enters the phase."""


def strike(*_, **__):
    """Die at once."""
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner, name: str, nth: int, act: Callable = strike) -> None:
    """Do something at the nth call of a function, before it."""
    whole, calls = getattr(owner, name), []

    def wrapped(*arguments, **named):
        calls.append(1)
        if len(calls) == nth:
            act(*arguments, **named)
        return whole(*arguments, **named)

    setattr(owner, name, wrapped)


def after(owner, name: str, nth: int) -> None:
    """Die after the nth call of a function."""
    whole, calls = getattr(owner, name), []

    def wrapped(*arguments, **named):
        result = whole(*arguments, **named)
        calls.append(1)
        if len(calls) == nth:
            strike()
        return result

    setattr(owner, name, wrapped)


def half_a_file(path: Path, text: str) -> None:
    """Die while a file is written that is to be renamed."""
    path.with_name(path.name + ".new").write_text(text[: len(text) // 2])
    strike()


def half_a_record(self, record: dict) -> None:
    """Die in the middle of a line of metrics."""
    self._file.write(json.dumps(record)[:20])
    self._file.flush()
    strike()


def half_an_event(path: Path, event: str, **_) -> None:
    """Die in the middle of a line of the ledger."""
    with path.open("a") as file:
        file.write(json.dumps({"event": event})[:9])
    strike()


def half_a_folder(folder: Path, **_) -> None:
    """Die while a folder is removed."""
    shutil.os.remove(next(path for path in Path(folder).rglob("*") if path.is_file()))
    strike()


def starve(*_) -> None:
    """From now on, no file can be opened; what is being saved is let go."""
    import resource
    import time

    time.sleep(3)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))


def prepare(stage: str, nth: int) -> None:
    """Wrap what has to be wrapped, so that the stage is deadly."""
    from gpt3jax.checkpoint import checkpointer, manifest
    from gpt3jax.train import loop, metrics, run_setup, stepper
    from gpt3jax.train.monitor import event_log, phase_timer

    if stage in PHASES:
        entered = phase_timer.PhaseTimer.enter
        calls = []

        def enter(self, phase, step=None):
            calls.append(phase)
            if phase == stage and calls.count(phase) == nth:
                strike()
            entered(self, phase, step)

        phase_timer.PhaseTimer.enter = enter
        return
    {
        "creating": lambda: before(run_setup, "write_atomic", nth, half_a_file),
        "hashed": lambda: before(checkpointer.ocp, "save_checkpointables_async", nth),
        "writing": lambda: after(checkpointer.ocp, "save_checkpointables_async", nth),
        "written": lambda: before(manifest.CheckpointManifest, "write", nth),
        "sealing": lambda: before(manifest, "write_atomic", nth, half_a_file),
        "sealed": lambda: before(checkpointer.Checkpointer, "_name", nth),
        "named": lambda: after(checkpointer.Checkpointer, "_name", nth),
        "pruning": lambda: before(checkpointer.shutil, "rmtree", nth, half_a_folder),
        "metrics": lambda: before(metrics.MetricsLog, "write", nth, half_a_record),
        "ledger": lambda: before(event_log, "record", nth, half_an_event),
        "sampled": lambda: after(metrics.MetricsLog, "sample", nth),
        "ending": lambda: before(loop.Loop, "close", nth),
        "descriptors": lambda: before(stepper.Stepper, "next_batch", nth, starve),
    }[stage]()


STAGES = (
    *PHASES, "creating", "hashed", "writing", "written", "sealing", "sealed", "named", "pruning",
    "metrics", "ledger", "sampled", "ending",
)  # fmt: skip


def note_what_is_read(file: Path) -> None:
    """Append step and hash of each batch to a file, as the devices get it."""
    import hashlib

    import numpy as np

    from gpt3jax.train import stepper

    whole = stepper.Stepper.next_batch
    out = file.open("a", buffering=1)

    def noted(self):
        batch = whole(self)
        windows = np.asarray(batch.windows)[: batch.count]
        digest = hashlib.sha256(windows.tobytes()).hexdigest()[:16]
        line = {"step": batch.after.step, "sequences": list(batch.sequences), "hash": digest}
        out.write(json.dumps(line) + "\n")
        return batch

    stepper.Stepper.next_batch = noted


if __name__ == "__main__":
    where, *words = sys.argv[1:]
    stage, _, count = where.partition(":")
    if "SEEN" in os.environ:
        note_what_is_read(Path(os.environ["SEEN"]))
    if stage != "none":
        prepare(stage, int(count or 1))
    sys.exit(cli.main(words))
