"""Set up the run directory for training: create or check it, lock it, and handle signals."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from gpt3jax.config import Experiment
from gpt3jax.data import loader
from gpt3jax.data.manifest import TOKENIZER, load_manifest
from gpt3jax.errors import ConfigError
from gpt3jax.run_dir import Run, check_output_folder, open_run, write_atomic
from gpt3jax.serde import short_hash
from gpt3jax.train import history
from gpt3jax.train.monitor import event_log

SHAPES = {
    f"model.{name}"
    for name in ("n_layers", "d_model", "n_heads", "d_head", "vocabulary", "context")
}
"""Fields that determine the shapes of the parameters."""
STRUCTURE = SHAPES | {
    "model.lora_rank", "model.lora_matrices", "train.only", "optimizer.name", "optimizer.moments",
    "optimizer.adamw.moments",
}  # fmt: skip
"""Fields that determine which arrays the state has."""


def data_identity(experiment: Experiment) -> dict[str, Any]:
    """Identifies the windows of the run. Does not import jax.

    Raises:
      ConfigError: the data is missing, or was prepared for another model.
    """
    identity = loader.identity(experiment.data, experiment.seed, experiment.model.context)
    path = experiment.data.sources[0].path
    tokens, rows = load_manifest(path).vocabulary, experiment.model.vocabulary
    if tokens > rows:
        raise ConfigError(
            f"--model.vocabulary is {rows}, but the tokenizer of {path} has {tokens} tokens: some "
            f"would have no embedding. Use {tokens} or more"
        )
    return identity


def check_base(experiment: Experiment) -> tuple[str, int | None]:
    """The path of the run that `init_from` names, and the step if given. Does not import jax.

    Raises:
      ConfigError: there is no such run, or its shapes or its tokenizer differ, or, where its
        state is inherited, something else than the schedule.
    """
    named = re.fullmatch(r"(.+)@(\d{1,15})", experiment.init_from, re.DOTALL)
    if named is None or os.path.isdir(experiment.init_from):
        path, step = experiment.init_from, None
    else:
        path, step = named[1], int(named[2])
    base = open_run(path)
    ours, theirs = experiment.model, base.experiment().model
    for name in sorted(each.removeprefix("model.") for each in SHAPES | {"model.mup_base"}):
        own, base_value = getattr(ours, name), getattr(theirs, name)
        if own != base_value:
            raise ConfigError(
                f"--model.{name.replace('_', '-')} is {own}, but {path} has {base_value}: its "
                f"parameters would not fit. Use {base_value}, or another --init-from"
            )
    tokenizer = load_manifest(experiment.data.sources[0].path).tokenizer
    if tokenizer != base.tokenizer_hash:
        raise ConfigError(
            f"data {experiment.data.sources[0].name!r} has tokenizer {tokenizer}, but {path} has "
            f"{base.tokenizer_hash}: ids would not mean the same. Prepare it with --tokenizer "
            f"{path}"
        )
    if experiment.inherit == "state":
        ours, theirs = {**experiment.identity(), "data": data_identity(experiment)}, base.identity()
        for change in differences(theirs, ours):
            if change.name.split(".")[0] not in ("schedule", "init_from", "inherit", "parent"):
                raise ConfigError(
                    f"--inherit state continues {path}, where {change}: only the schedule may "
                    "change. Use the run's value, or --inherit parameters"
                )
    return path, step


def check_writable(path: Path) -> None:
    """Check early that a run directory can be written or created.

    Raises:
      ConfigError: it, or its first existing parent, is not a writable folder.
    """
    existing = next(each for each in (path, *path.absolute().parents) if os.path.exists(each))
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        raise ConfigError(
            f"{path} cannot be written: {existing} is not a writable folder. Choose another --run"
        )


def check_decay_ends(experiment: Experiment) -> None:
    """Check that a new run decays its learning rate; old ones may have been stopped before.

    `train.steps` does not count: it stops a run early on purpose.

    Raises:
      ConfigError: it ends before its schedule does.
    """
    schedule, tokens = experiment.schedule, experiment.train.tokens
    # The last batch may go beyond `tokens`.
    if schedule.decay_fraction and schedule.decay_tokens >= tokens + experiment.train.batch_tokens:
        raise ConfigError(
            f"--schedule.decay-tokens is {schedule.decay_tokens:,}, but the run ends after "
            f"{tokens:,} tokens: its learning rate would not have decayed. Lower it, raise "
            "--train.tokens, or keep the rate constant with --schedule.decay-fraction 0"
        )


def create_or_check(
    run: Run,
    experiment: Experiment,
    identity: dict[str, Any],
    dtype: str | None = None,
    allowed: Sequence[str] = (),
) -> None:
    """Create the files of a run, or check that an existing run has the same identity.

    Args:
      run: the run directory.
      experiment: the experiment.
      identity: everything that determines the results.
      dtype: dtype of the layers' matrix products, if known, which also affects results.
      allowed: fields that may change, by dotted name or group; changes are recorded in the event
        log.

    Raises:
      ConfigError: the directory contains a run with another identity, or damaged files.
    """
    if run.exists():
        changed = differences(run.identity(), identity)
        before = _dtype_before(run)
        if dtype and before and dtype != before:
            changed.append(Difference("model.dtype", before, dtype))
        refused = [each for each in changed if not _is_allowed(each, allowed)]
        if refused:
            names = [change.name for change in refused]
            insist = f", or insist: --allow-change {' '.join(names)}"
            if STRUCTURE & set(names):
                insist = ""
            raise ConfigError(
                f"{run.path} holds another experiment: {'; '.join(map(str, refused))}. Give the "
                f"new one its own --run{insist}"
            )
        if changed:
            before = short_hash(run.identity())
            event_log.record(run.ledger_file, "change", before=before, what=list(map(str, changed)))
            write_atomic(run.identity_file, json.dumps(identity, indent=2) + "\n")
    else:
        tokenizer = Path(experiment.data.sources[0].path) / TOKENIZER
        shutil.copyfile(tokenizer, run.tokenizer_file)
        write_atomic(run.identity_file, json.dumps(identity, indent=2) + "\n")
    # Last, since this file makes it a run; rewritten, since runtime settings may change.
    write_atomic(run.experiment_file, experiment.to_json())


def _dtype_before(run: Run) -> str | None:
    """Dtype of the layers' matrix products in the last session; None if it is not known."""
    recorded = [session.dtype for session in history.sessions(run) if session.dtype]
    configured = run.experiment().model.dtype
    return recorded[-1] if recorded else None if configured == "auto" else configured


def identities(run: Run) -> list[str | None]:
    """Hashes of the former identities of a run, as in its checkpoints, and of the current one."""
    changes = [event for event in event_log.read(run.ledger_file) if event["event"] == "change"]
    return [*(change.get("before") for change in changes), short_hash(run.identity())]


def check_is_shared(run: Run) -> str:
    """The text of experiment.json as this host reads it, for all hosts to compare.

    Raises:
      ConfigError: the first host wrote the file, but this host cannot read it.
    """
    try:
        return run.experiment_file.read_text()
    except OSError as error:
        raise ConfigError(
            f"{run.path} was created by the first host but is not visible here. Use a --run on a "
            "file system that all hosts share"
        ) from error


class Difference(NamedTuple):
    """A leaf that differs between two nested JSON values."""

    name: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.name} was {json.dumps(self.before)}, now {json.dumps(self.after)}"


def differences(before: Any, after: Any, name: str = "") -> list[Difference]:
    """Each leaf that differs, by dotted name."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            change
            for key in sorted(before.keys() | after.keys())
            for change in differences(before.get(key), after.get(key), f"{name}.{key}".lstrip("."))
        ]
    if json.dumps(before) == json.dumps(after):
        return []
    return [Difference(name, before, after)]


def _is_allowed(change: Difference, allowed: Sequence[str]) -> bool:
    """Whether `allowed` permits a change; never of `STRUCTURE`, since no checkpoint would fit."""
    if change.name in STRUCTURE:
        return False
    return any(change.name == name or change.name.startswith(f"{name}.") for name in allowed)


@contextmanager
def run_lock(run: Run) -> Iterator[None]:
    """Hold the exclusive lock of a run; the kernel releases it when the process ends.

    Raises:
      ConfigError: another process trains this run, or the run directory cannot be written, or
        only through a symbolic link.
    """
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        # W&B keeps a link to its newest run.
        check_output_folder(run.path, run.checkpoints.name, "wandb")
        lock = run.lock_file.open("a+")
    except OSError as error:
        raise ConfigError(f"{run.path} cannot be written: {error}. Choose another --run") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise ConfigError(
                f"{run.path} is being trained by process {lock.read().strip()}; two processes "
                "cannot train the same run. Wait for that one, or stop it"
            ) from None
        lock.truncate(0)
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        lock.write(f"{os.getpid()} of {socket.gethostname()} since {now}")
        lock.flush()
        yield


@contextmanager
def caught_signals() -> Iterator[list[int]]:
    """Collect SIGINT, SIGTERM and SIGHUP in a list, so that training can stop in order.

    SIGHUP stays ignored if it was, as under nohup.
    """
    caught: list[int] = []
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if not (number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN):
            before[number] = signal.signal(number, lambda number, _: caught.append(number))
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
