"""The run's folder while it trains: made or checked, locked, and left in order."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpt3jax.config import ConfigError, Experiment
from gpt3jax.data import loader
from gpt3jax.data.manifest import TOKENIZER, load_manifest
from gpt3jax.run import Run


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


def create_or_check(run: Run, experiment: Experiment, identity: dict[str, Any]) -> None:
    """Write what the run is, or compare it with what is there.

    Raises:
      ConfigError: the folder holds a run with other numbers.
    """
    if run.exists():
        changed = differences(run.identity(), identity)
        if changed:
            raise ConfigError(
                f"{run.path} holds another experiment: {'; '.join(changed)}. "
                "Give the new one its own folder with --run"
            )
    else:
        tokenizer = Path(experiment.data.sources[0].path) / TOKENIZER
        shutil.copyfile(tokenizer, run.tokenizer_file)
        write_whole(run.identity_file, json.dumps(identity, indent=2) + "\n")
    # Last, since a run is there when this is; rewritten, since how it runs may change.
    write_whole(run.experiment_file, experiment.to_json())


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


def differences(before: Any, after: Any, name: str = "") -> list[str]:
    """`field: old, now new` for each leaf of two nested JSON values that differs."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            line
            for key in sorted(before.keys() | after.keys())
            for line in differences(before.get(key), after.get(key), f"{name}.{key}".lstrip("."))
        ]
    if json.dumps(before) == json.dumps(after):
        return []
    return [f"{name} was {json.dumps(before)}, now {json.dumps(after)}"]


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a crash leaves the old one or the new one."""
    replacement = path.with_name(path.name + ".new")
    with replacement.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(replacement, path)


@contextmanager
def only_one(run: Run) -> Iterator[None]:
    """Hold the run's lock; the kernel frees it when the process ends, however it ends.

    Raises:
      ConfigError: another process trains this run, or the folder cannot be written.
    """
    try:
        run.path.mkdir(parents=True, exist_ok=True)
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
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@contextmanager
def caught_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list, to stop in order; a second one changes nothing."""
    caught: list[int] = []
    names = (signal.SIGINT, signal.SIGTERM)
    before = {name: signal.signal(name, lambda number, _: caught.append(number)) for name in names}
    try:
        yield caught
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
