"""The run's folder while it trains: made or checked, locked, and left in order."""

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
"""Fields that decide the shapes of the parameters."""
STRUCTURE = SHAPES | {"model.lora_rank", "model.lora_matrices", "train.only"}
"""Fields that decide which arrays the state has."""


def data_identity(experiment: Experiment) -> dict[str, Any]:
    """What decides the windows of the run; jax is not needed to tell.

    Raises:
      ConfigError: the data is not there, or was prepared for another model.
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
    """The run that `init_from` names, and the step if it names one; jax is not needed to tell.

    Raises:
      ConfigError: there is no such run, or its shapes or its tokenizer are others.
    """
    named = re.fullmatch(r"(.+)@(\d{1,15})", experiment.init_from, re.DOTALL)
    if named is None or os.path.isdir(experiment.init_from):
        path, step = experiment.init_from, None
    else:
        path, step = named[1], int(named[2])
    base = open_run(path)
    ours, theirs = experiment.model, base.experiment().model
    for name in sorted(each.removeprefix("model.") for each in SHAPES | {"model.mup_base"}):
        mine, found = getattr(ours, name), getattr(theirs, name)
        if mine != found:
            raise ConfigError(
                f"--model.{name.replace('_', '-')} is {mine}, but {path} has {found}: its "
                f"parameters would not fit. Use {found}, or another --init-from"
            )
    tokenizer = load_manifest(experiment.data.sources[0].path).tokenizer
    if tokenizer != base.tokenizer_hash:
        raise ConfigError(
            f"data {experiment.data.sources[0].name!r} has tokenizer {tokenizer}, but {path} has "
            f"{base.tokenizer_hash}: ids would not mean the same. Prepare it with --tokenizer "
            f"{path}"
        )
    return path, step


def check_writable(path: Path) -> None:
    """Refuse a folder for a run that cannot be written, before anything takes time.

    Raises:
      ConfigError: neither it nor the folder that it would be made in can be.
    """
    there = next(each for each in (path, *path.absolute().parents) if os.path.exists(each))
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise ConfigError(f"{path} cannot be written: {there} is not ours. Choose another --run")


def create_or_check(
    run: Run,
    experiment: Experiment,
    identity: dict[str, Any],
    dtype: str | None = None,
    allowed: Sequence[str] = (),
) -> None:
    """Write what the run is, or compare it with what is there.

    Args:
      run: the folder.
      experiment: what to train.
      identity: what decides its numbers.
      dtype: what layers multiply in, if it is known; it decides the numbers, too.
      allowed: fields that may differ from now on, by dotted name or group; the
        change is recorded in the ledger.

    Raises:
      ConfigError: the folder holds a run with other numbers, or its files are damaged.
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
    # Last, since a run is there when this is; rewritten, since how it runs may change.
    write_atomic(run.experiment_file, experiment.to_json())


def _dtype_before(run: Run) -> str | None:
    """What layers multiplied in when the run was trained last; None if that is not known."""
    known = [session.dtype for session in history.sessions(run) if session.dtype]
    asked = run.experiment().model.dtype
    return known[-1] if known else None if asked == "auto" else asked


def identities(run: Run) -> list[str]:
    """Hashes of what the run is and was, as its checkpoints name it; the present one last."""
    changes = [event for event in event_log.read(run.ledger_file) if event["event"] == "change"]
    return [*(change.get("before") for change in changes), short_hash(run.identity())]


def check_is_shared(run: Run) -> str:
    """The experiment that this host finds in the run's folder, for all hosts to compare.

    Raises:
      ConfigError: the first host wrote it, but here it is not.
    """
    try:
        return run.experiment_file.read_text()
    except OSError as error:
        raise ConfigError(
            f"{run.path} is not there, though the first host made it: a run lies where all hosts "
            "see it. Use --run on a shared file system"
        ) from error


class Difference(NamedTuple):
    """A leaf of two nested JSON values that is not the same."""

    name: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.name} was {json.dumps(self.before)}, now {json.dumps(self.after)}"


def differences(before: Any, after: Any, name: str = "") -> list[Difference]:
    """Each leaf that differs, by dotted name."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            found
            for key in sorted(before.keys() | after.keys())
            for found in differences(before.get(key), after.get(key), f"{name}.{key}".lstrip("."))
        ]
    if json.dumps(before) == json.dumps(after):
        return []
    return [Difference(name, before, after)]


def _is_allowed(change: Difference, allowed: Sequence[str]) -> bool:
    """Whether it was asked for. What arrays there are cannot be: no checkpoint would fit."""
    if change.name in STRUCTURE:
        return False
    return any(change.name == name or change.name.startswith(f"{name}.") for name in allowed)


@contextmanager
def only_one(run: Run) -> Iterator[None]:
    """Hold the run's lock; the kernel frees it when the process ends, however it ends.

    Raises:
      ConfigError: another process trains this run, or the folder cannot be written, or only
        through a link.
    """
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        check_output_folder(run.path, run.checkpoints.name)
        lock = run.lock_file.open("a+")
    except OSError as error:
        raise ConfigError(f"{run.path} cannot be written: {error}. Choose another --run") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise ConfigError(
                f"{run.path} is being trained by process {lock.read().strip()}: two would spoil "
                "it. Wait for that one, or stop it"
            ) from None
        lock.truncate(0)
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        lock.write(f"{os.getpid()} of {socket.gethostname()} since {now}")
        lock.flush()
        yield


@contextmanager
def caught_signals() -> Iterator[list[int]]:
    """Collect signals that ask to stop in a list, to do it in order; a second changes nothing.

    A hangup that was to be ignored, as under nohup, still is.
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
