"""A run is a folder, complete in itself; this is what lies where in it."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpt3jax import serde
from gpt3jax.config import Experiment, Source
from gpt3jax.errors import ConfigError
from gpt3jax.serde import Count

LONGEST_LOG = 1 << 30
"""Bytes of a JSON-lines file."""


@dataclass(frozen=True)
class Skip:
    """A stretch of the data that the run passes over, after a loss spike."""

    step: Count
    """Taken from the checkpoint of this step on."""
    sequences: Count
    """Windows consumed at that step."""
    windows: Count
    """How many are passed over."""


@dataclass(frozen=True)
class Changes:
    """What is to be done to a run before it goes on; each is recorded in it."""

    allow_change: tuple[str, ...] = ()
    """Fields that may differ from the run's, by dotted name or group: schedule, data."""
    rewind_to: int | None = None
    """Go back to the checkpoint of this step."""
    skip: int = 0
    """Batches to pass over from there."""


@dataclass(frozen=True)
class Run:
    """Paths of a run, and what can be read from them without jax."""

    path: Path

    @property
    def experiment_file(self) -> Path:
        return self.path / "experiment.json"

    @property
    def identity_file(self) -> Path:
        return self.path / "identity.json"

    @property
    def tokenizer_file(self) -> Path:
        return self.path / "tokenizer.model"

    @property
    def ledger_file(self) -> Path:
        return self.path / "ledger.jsonl"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def lock_file(self) -> Path:
        return self.path / "lock"

    @property
    def clock_file(self) -> Path:
        return self.path / "clock.json"

    @property
    def skips_file(self) -> Path:
        return self.path / "skips.json"

    @property
    def incidents(self) -> Path:
        return self.path / "incidents"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    def stuck_file(self, process: int) -> Path:
        """Where a process that got stuck leaves the stacks of its threads."""
        return self.path / f"stuck-{process}.txt"

    def exists(self) -> bool:
        # os.path takes a name that no file can have for one that is not there.
        return os.path.exists(self.experiment_file)

    def experiment(self) -> Experiment:
        """The experiment as it was resolved when the run started; data paths as in `located`."""
        return self.located(_read_json(self.experiment_file, Experiment))

    def located(self, experiment: Experiment) -> Experiment:
        """The experiment with absolute data paths, so that it does not depend on where we are."""
        sources = experiment.data.sources
        known = {}
        are_found = all(_is_found(source.path) for source in sources)
        if not are_found and os.path.isfile(self.identity_file):
            known = {each["name"]: each["manifest"] for each in self.identity()["data"]["sources"]}

        def moved(source: Source) -> Source:
            path = self.locate(source.path, lambda at: _data_hash(at) == known.get(source.name))
            return replace(source, path=path)

        return replace(
            experiment, data=replace(experiment.data, sources=tuple(map(moved, sources)))
        )

    def locate(self, path: str, is_it: Callable[[Path], bool]) -> str:
        """The absolute path of a folder that the run depends on.

        A relative path is tried from the current folder, then from each folder above the
        run. Where a run was moved or copied together with what it depends on, the last
        parts of the path are tried there as well, if `is_it` recognises the folder.
        """
        if _is_found(path):
            return path
        here, parts = Path(os.path.abspath(path)), Path(path).parts
        above = self.path.resolve().parents
        as_named = [here, *(folder / path for folder in above)]
        shorter = [folder.joinpath(*parts[-k:]) for k in (3, 2, 1) for folder in above]
        found = filter(is_it, (*as_named, *shorter))
        return str(next(found, next(filter(os.path.isdir, as_named), here)))

    def identity(self) -> dict[str, Any]:
        """What decides the numbers of this run: experiment and data."""
        found = _read_json(self.identity_file, dict[str, Any])
        try:
            names = [found["data"]["tokenizer"]]
            names += [each[name] for each in found["data"]["sources"] for name in _OF_SOURCES]
        except (KeyError, TypeError):
            names = [None]
        if not all(isinstance(name, str) for name in names):
            raise ConfigError(
                f"{self.identity_file} cannot be read: it does not say which data. "
                "Restore it, or start a new run"
            )
        return found

    @property
    def tokenizer_hash(self) -> str:
        """Of the tokenizer that made the run's data."""
        return self.identity()["data"]["tokenizer"]

    def skips(self) -> tuple[Skip, ...]:
        """What is passed over, in order of the data."""
        if not self.skips_file.exists():
            return ()
        return _read_json(self.skips_file, tuple[Skip, ...])

    def metrics(self) -> list[dict[str, Any]]:
        """What was logged: one record per logged step, in their order; NaN is None.

        An evaluation's numbers may be a record of their own. Of a field that several
        records of a step have, the last one counts.
        """
        steps: dict[int, dict[str, Any]] = {}
        for record in filter(is_logged, read_records(self.metrics_file)):
            steps.setdefault(record["step"], {}).update(record)
        return [steps[step] for step in sorted(steps)]


def is_logged(record: dict[str, Any]) -> bool:
    """Whether training could have logged it: a step, and numbers that float32 can hold."""
    numbers = [value for value in record.values() if value is not None]
    are_numbers = all(isinstance(value, int | float) and abs(value) < 1e39 for value in numbers)
    return are_numbers and isinstance(record.get("step"), int)


_OF_SOURCES = ("name", "manifest")


def _is_found(path: str) -> bool:
    """Whether a path names a folder, wherever we are."""
    return os.path.isabs(path) and os.path.isdir(path)


def _data_hash(folder: Path) -> str:
    """The hash in the manifest of a prepared data folder; empty if there is none."""
    try:
        return str(serde.read(folder / "manifest.json")["hash"])
    except (OSError, ValueError, TypeError, KeyError):
        return ""


def _read_json(file: Path, kind: Any) -> Any:
    """A value of a type, as `stored.build` makes it, from a JSON file of a run.

    Raises:
      ConfigError: the file is not there, or does not hold one.
    """
    try:
        return serde.build(kind, serde.read(file))
    except (OSError, ValueError, ConfigError) as error:
        raise ConfigError(
            f"{file} cannot be read: {error}. Restore it, or start a new run"
        ) from error


def read_records(file: Path) -> list[dict[str, Any]]:
    """Objects of a JSON-lines file, in their order; none if there is no file.

    A line that a crash left half-written, or that is damaged, is skipped; NaN
    and infinities are None. Raises as `read_lines`.
    """
    records = map(parse_record, read_lines(file))
    return [record for record in records if record is not None]


def read_lines(file: Path) -> list[str]:
    """Lines of a file; none if it is not there.

    Raises:
      ConfigError: it cannot be read.
    """
    try:
        return serde.read_bytes(file, LONGEST_LOG).decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}. Restore it or delete it") from error


def read_events(ledger: Path) -> list[dict[str, Any]]:
    """What happened in a run, oldest first; each record has its name as `event`."""
    return [event for event in read_records(ledger) if isinstance(event.get("event"), str)]


def parse_record(line: str) -> dict[str, Any] | None:
    """The object in a line of a JSON-lines file; None if there is none."""
    try:
        record = json.loads(line, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def open_run(path: str | Path) -> Run:
    """An existing run.

    Raises:
      ConfigError: there is none.
    """
    run = Run(Path(path))
    if not run.exists():
        raise ConfigError(
            f"{path} is not a run: it has no experiment.json. "
            "Name the folder that `gpt3jax train` printed"
        )
    return run


def check_output_folder(folder: Path, *left_out: str) -> None:
    """Refuse a folder with links, FIFOs or devices in it: what is written there would go elsewhere.

    Args:
      folder: need not be there.
      left_out: names of folders that are not looked at.

    Raises:
      ConfigError: it has one, which is named.
    """
    for here, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in left_out]
        for path in (Path(here, name) for name in folders + files):
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:  # Gone since: a run may be under way.
                continue
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise ConfigError(
                    f"{path} is a link or a device: what is written there goes elsewhere. Put a "
                    "plain file or folder in its place"
                )


def write_atomic(path: Path, text: str) -> None:
    """Write a file so that a crash leaves the old one or the new one."""
    replacement = path.with_name(path.name + ".new")
    with replacement.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(replacement, path)
