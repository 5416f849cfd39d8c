"""One trial at work: the `gpt3jax train` of it, followed from outside by what its run logs."""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import optuna

from gpt3jax.errors import ConfigError
from gpt3jax.run_dir import Run, read_events
from gpt3jax.sweep.store import beat

TRAIN = "gpt3jax train"
STOP_S = 600.0
"""Seconds to save in, after which a run that is to stop is killed."""
DIVERGED = 1.05
"""A validation loss so much above the untrained model's, or more, has diverged."""
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Share:
    """What of the machine one worker may use."""

    cores: frozenset[int]
    gpus: str | None
    """As CUDA_VISIBLE_DEVICES has it; None where there are none to share."""


def shares(workers: int) -> list[Share | None]:
    """The machine in as many parts: cores and NVIDIA GPUs, evenly.

    Not where one worker has it all, or the system does not let us (macOS). On CPUs the number
    of cores decides the last bits: `taskset -c 0 COMMAND` repeats a trial that had one of two.

    Raises:
      ConfigError: there are GPUs, but not one for each.
    """
    if workers == 1 or not sys.platform.startswith("linux"):
        return [None] * workers
    cores = sorted(os.sched_getaffinity(0))
    gpus = visible_gpus()
    if 0 < len(gpus) < workers:
        raise ConfigError(
            f"--workers asks for {workers} workers, but {len(gpus)} GPUs: each takes one or more. "
            "Lower it to that"
        )
    return [
        Share(
            # More workers than cores: some share one.
            frozenset(cores[number::workers] or [cores[number % len(cores)]]),
            ",".join(gpus[number::workers]) if gpus else None,
        )
        for number in range(workers)
    ]


def visible_gpus() -> list[str]:
    """The NVIDIA GPUs that we may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name.strip()]
    folder = Path("/proc/driver/nvidia/gpus")
    return [str(number) for number in range(len(list(folder.iterdir())))] if folder.is_dir() else []


def prepare_child(cores: frozenset[int] | None) -> None:
    """In the new process, before it runs: keep to its cores, and do not outlive the sweep."""
    if cores:
        os.sched_setaffinity(0, cores)
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def command(launch: str, file: Path, run: Path, words: Sequence[str]) -> list[str]:
    """The command of a trial; `launch` is what trains on one whole mesh."""
    return [*shlex.split(launch), str(file), "--run", str(run), *words]


@dataclass
class Work:
    """A trial and the process that trains it."""

    trial: optuna.Trial
    place: int
    slot: int
    """Which of this machine's workers."""
    run: Run
    log: Path
    """What the process says."""
    process: subprocess.Popen
    began: float = field(default_factory=time.monotonic)
    reported: dict[int, float] = field(default_factory=dict)
    """Validation loss by tokens, as Optuna knows it."""
    size: int = -1
    """Of the metrics, when they were read last."""
    stop: str = ""
    """Why it was told to stop, if it was: pruned, diverged, or the sweep ends."""
    why: str = ""
    """In words."""
    stopped: float = 0.0
    beaten: float = field(default_factory=time.monotonic)

    def tell_to_stop(self, what: str, why: str) -> None:
        """It saves, and ends."""
        if not self.stop:
            self.stop, self.why, self.stopped = what, why, time.monotonic()
            self.process.terminate()

    def follow(self, pruner_is_asked: bool, beat_s: float) -> bool:
        """Tell Optuna what is new, and stop what loses; whether anything was new."""
        now = time.monotonic()
        if now - self.beaten > beat_s:
            self.beaten = now
            beat(self.trial)
        if self.stop and now - self.stopped > STOP_S:
            self.process.kill()
        try:
            size = self.run.metrics_file.stat().st_size
        except FileNotFoundError:
            return False
        if size == self.size:
            return False
        self.size = size
        news = [(t, loss) for t, loss in curve(self.run) if t not in self.reported]
        for tokens, loss in news:
            self.trial.report(loss, tokens)
            self.reported[tokens] = loss
            self._judge(tokens, loss, pruner_is_asked)
        return bool(news)

    def _judge(self, tokens: int, loss: float, pruner_is_asked: bool) -> None:
        untrained = self.reported.get(0)
        if untrained is not None and loss > DIVERGED * untrained:
            why = f"val_loss {loss:.3f} after {tokens:,} tokens, untrained {untrained:.3f}"
            self.tell_to_stop("diverged", why)
        elif pruner_is_asked and self.trial.should_prune():
            self.tell_to_stop("pruned", f"val_loss {loss:.3f} after {tokens:,} tokens loses")


def start(trial: optuna.Trial, slot: int, run: Run, words: list[str], share: Share | None) -> Work:
    """Start the training of a trial; its output goes to a file beside the run.

    Raises:
      OSError: it cannot be started.
    """
    log = run.path.parent / "logs" / f"{run.path.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    if share and share.gpus is not None:
        environment["CUDA_VISIBLE_DEVICES"] = share.gpus
    if " ".join(words[:2]) == TRAIN:
        # Ours, from where we were imported, whatever PATH says.
        words = [sys.executable, "-m", "gpt3jax", *words[1:]]
    with log.open("ab") as output:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            env=environment, preexec_fn=partial(prepare_child, share and share.cores),
            # Ctrl-C is for the sweep, which stops its trials in order.
            start_new_session=True,
        )  # fmt: skip
    return Work(trial, trial.user_attrs["place"], slot, run, log, process)


def curve(run: Run) -> Iterable[tuple[int, float]]:
    """Tokens seen and validation loss (nats/token), wherever it was measured and is finite."""
    for record in run.metrics():
        loss, tokens = record.get("val_loss"), record.get("tokens")
        if loss is not None and tokens is not None:
            yield tokens, loss


def has_diverged(run: Run) -> bool:
    """Whether its steps were not finite at the end."""
    events = [e["event"] for e in read_events(run.ledger_file) if e["event"] != "clock"]
    return "not finite" in events[-8:]


def last_words(log: Path) -> str:
    """The error that a process ended with, or its last line."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines[-20:] if line.startswith("error: ")]
    return (errors or lines or ["it said nothing"])[-1].removeprefix("error: ")[:300]
