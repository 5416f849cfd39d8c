"""A worker: the `gpt3jax train` process of one trial, monitored through the metrics of its run."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import optuna

from gpt3jax.errors import ConfigError
from gpt3jax.run_dir import Run, read_events
from gpt3jax.sweep.store import beat

TRAIN = "gpt3jax train"
STOP_S = 600.0
"""Seconds for a run to save and exit, after which it is killed."""
DIVERGED = 1.05
"""A trial has diverged if its validation loss exceeds the untrained loss by this factor."""
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Share:
    """The CPU cores and GPUs of one worker."""

    cores: frozenset[int]
    gpus: str | None
    """Value of CUDA_VISIBLE_DEVICES; None if there are no GPUs."""


def shares(workers: int) -> list[Share | None]:
    """Splits the cores and NVIDIA GPUs of the machine evenly among workers.

    There is no split for one worker, or on systems without CPU affinity (macOS). On CPUs the number
    of cores affects the last bits of the results: to repeat a trial that had one core, use
    `taskset -c 0 COMMAND`.

    Raises:
      ConfigError: there are GPUs, but fewer than workers.
    """
    if workers == 1 or not sys.platform.startswith("linux"):
        return [None] * workers
    cores = sorted(os.sched_getaffinity(0))
    gpus = visible_gpus()
    if 0 < len(gpus) < workers:
        raise ConfigError(
            f"--workers asks for {workers} workers, but {len(gpus)} GPUs are available: each "
            "worker needs at least one. Lower --workers"
        )
    return [
        Share(
            # With more workers than cores, some share one.
            frozenset(cores[number::workers] or [cores[number % len(cores)]]),
            ",".join(gpus[number::workers]) if gpus else None,
        )
        for number in range(workers)
    ]


def visible_gpus() -> list[str]:
    """Names of the available NVIDIA GPUs, in the form of CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip()]
    folder = Path("/proc/driver/nvidia/gpus")
    return [str(number) for number in range(len(list(folder.iterdir())))] if folder.is_dir() else []


def prepare_child(cores: frozenset[int] | None) -> None:
    """Runs in the child before exec: sets its CPU affinity, and SIGTERM on death of the parent."""
    if cores:
        os.sched_setaffinity(0, cores)
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@dataclass
class Job:
    """A trial and the process that trains it."""

    trial: optuna.Trial
    place: int
    slot: int
    """Index of the worker on this machine."""
    run: Run
    log: Path
    """File with the output of the process."""
    process: subprocess.Popen[bytes]
    began: float = field(default_factory=time.monotonic)
    reported: dict[int, float] = field(default_factory=dict)
    """Validation loss by tokens, as reported to Optuna."""
    size: int = -1
    """Size of the metrics file when it was last read."""
    stop: str = ""
    """Outcome for which a stop was requested: pruned, diverged or stopped; empty if none was."""
    why: str = ""
    """Reason for the stop."""
    stop_time: float = 0.0
    last_beat: float = field(default_factory=time.monotonic)

    def request_stop(self, stop: str, why: str) -> None:
        """Makes the process save and exit."""
        if not self.stop:
            self.stop, self.why, self.stop_time = stop, why, time.monotonic()
            self.process.terminate()

    def follow(self, prune: bool, beat_s: float) -> bool:
        """Reports new losses to Optuna and stops bad trials; returns whether there were any."""
        now = time.monotonic()
        if now - self.last_beat > beat_s:
            self.last_beat = now
            beat(self.trial)
        if self.stop and now - self.stop_time > STOP_S:
            self.process.kill()
        try:
            size = self.run.metrics_file.stat().st_size
        except FileNotFoundError:
            return False
        if size == self.size:
            return False
        self.size = size
        new = [(t, loss) for t, loss in curve(self.run) if t not in self.reported]
        for tokens, loss in new:
            self.trial.report(loss, tokens)
            self.reported[tokens] = loss
            self._check_loss(tokens, loss, prune)
        return bool(new)

    def _check_loss(self, tokens: int, loss: float, prune: bool) -> None:
        untrained = self.reported.get(0)
        if untrained is not None and loss > DIVERGED * untrained:
            why = f"val_loss {loss:.3f} after {tokens:,} tokens, untrained {untrained:.3f}"
            self.request_stop("diverged", why)
        elif prune and self.trial.should_prune():
            self.request_stop("pruned", f"val_loss {loss:.3f} after {tokens:,} tokens is too high")


def start(trial: optuna.Trial, slot: int, run: Run, words: list[str], share: Share | None) -> Job:
    """Starts the process of a trial; its output goes to logs/ next to the run directory.

    Raises:
      OSError: the process cannot be started.
    """
    log = run.path.parent / "logs" / f"{run.path.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    if share and share.gpus is not None:
        environment["CUDA_VISIBLE_DEVICES"] = share.gpus
    if " ".join(words[:2]) == TRAIN:
        # Uses this interpreter and package, regardless of PATH.
        words = [sys.executable, "-m", "gpt3jax", *words[1:]]
    with log.open("ab") as output:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            preexec_fn=partial(prepare_child, share and share.cores),
            # Ctrl-C must reach only the sweep, which then stops its trials.
            start_new_session=True,
        )
    return Job(trial, trial.user_attrs["place"], slot, run, log, process)


def curve(run: Run) -> Iterable[tuple[int, float]]:
    """Yields tokens and validation loss (nats/token) for each record with a finite loss."""
    for record in run.metrics():
        loss, tokens = record.get("val_loss"), record.get("tokens")
        if loss is not None and tokens is not None:
            yield tokens, loss


def has_diverged(run: Run) -> bool:
    """Whether the last events of a run include a non-finite step."""
    events = [e["event"] for e in read_events(run.ledger_file) if e["event"] != "clock"]
    return "not finite" in events[-8:]


def error_message(log: Path) -> str:
    """The error message at the end of a log, or else its last line."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines[-20:] if line.startswith("error: ")]
    return (errors or lines or ["there was no output"])[-1].removeprefix("error: ")[:300]
