"""The layout of a run directory, and reading its JSON files without importing jax."""

from __future__ import annotations

import json
import os
import secrets
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
"""Maximum size of a JSON-lines file, in bytes."""


@dataclass(frozen=True)
class Skip:
    """A range of the data that the run skips, usually after a loss spike."""

    step: Count
    """Step of the checkpoint from which the data is skipped."""
    sequences: Count
    """Windows consumed at that step."""
    windows: Count
    """Number of windows skipped."""


@dataclass(frozen=True)
class Changes:
    """Changes made to a run before it resumes; each is recorded in its event log."""

    allow_change: tuple[str, ...] = ()
    """Fields that may differ from the run's, by dotted name or group: schedule, data."""
    rewind_to: int | None = None
    """Rewind to the checkpoint of this step."""
    skip: int = 0
    """Number of batches to skip from there."""


@dataclass(frozen=True)
class Run:
    """The paths in a run directory, and the contents that can be read without jax."""

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
    def autotune(self) -> Path:
        """Compiled programs, with the kernels that were chosen for them (GPUs only)."""
        return self.path / "autotune"

    @property
    def profiles(self) -> Path:
        """Traces of steps, each in a folder of its own."""
        return self.path / "profile"

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
        """The file to which the watchdog of a process writes the stacks of its threads."""
        return self.path / f"stuck-{process}.txt"

    def exists(self) -> bool:
        # Unlike Path.exists, os.path.exists does not raise on invalid names.
        return os.path.exists(self.experiment_file)

    def experiment(self) -> Experiment:
        """The experiment as resolved when the run started, with data paths as in `located`."""
        return self.located(_read_json(self.experiment_file, Experiment))

    def located(self, experiment: Experiment) -> Experiment:
        """The experiment with absolute data paths, independent of the working directory."""
        sources = experiment.data.sources
        hashes = {}
        all_exist = all(_is_absolute_dir(source.path) for source in sources)
        if not all_exist and os.path.isfile(self.identity_file):
            hashes = {each["name"]: each["manifest"] for each in self.identity()["data"]["sources"]}

        def locate_source(source: Source) -> Source:
            path = self.locate(source.path, lambda at: _data_hash(at) == hashes.get(source.name))
            return replace(source, path=path)

        return replace(
            experiment, data=replace(experiment.data, sources=tuple(map(locate_source, sources)))
        )

    def locate(self, path: str, is_match: Callable[[Path], bool]) -> str:
        """The absolute path of a folder that the run depends on.

        A relative path is resolved against the current folder, then against each parent of the
        run directory. To support runs that were moved together with their dependencies, the
        last one to three components of the path are also tried there. `is_match` decides
        whether a candidate is the right folder.
        """
        if _is_absolute_dir(path):
            return path
        here, parts = Path(os.path.abspath(path)), Path(path).parts
        parents = self.path.resolve().parents
        as_named = [here, *(folder / path for folder in parents)]
        suffixes = [folder.joinpath(*parts[-k:]) for k in (3, 2, 1) for folder in parents]
        matches = filter(is_match, (*as_named, *suffixes))
        return str(next(matches, next(filter(os.path.isdir, as_named), here)))

    def identity(self) -> dict[str, Any]:
        """The settings and data hashes that determine the numbers of this run."""
        identity = _read_json(self.identity_file, dict[str, Any])
        try:
            names = [identity["data"]["tokenizer"]]
            names += [source[key] for source in identity["data"]["sources"] for key in _SOURCE_KEYS]
        except (KeyError, TypeError):
            names = [None]
        if not all(isinstance(name, str) for name in names):
            raise ConfigError(
                f"{self.identity_file} cannot be read: it does not name the data. "
                "Restore it, or start a new run"
            )
        return identity

    @property
    def tokenizer_hash(self) -> str:
        """The hash of the tokenizer that prepared the run's data."""
        return self.identity()["data"]["tokenizer"]

    def skips(self) -> tuple[Skip, ...]:
        """The skipped ranges, in data order."""
        if not self.skips_file.exists():
            return ()
        return _read_json(self.skips_file, tuple[Skip, ...])

    def metrics(self) -> list[dict[str, Any]]:
        """The logged metrics: one record per logged step, in order of step; NaN is None.

        Several lines may belong to one step, because evaluations are logged separately. They
        are merged; where they share a field, the last line wins.
        """
        steps: dict[int, dict[str, Any]] = {}
        for record in filter(is_logged, read_records(self.metrics_file)):
            steps.setdefault(record["step"], {}).update(record)
        return [steps[step] for step in sorted(steps)]


def is_logged(record: dict[str, Any]) -> bool:
    """Whether a record is valid: an integer step, and numbers within the range of float32."""
    numbers = [value for value in record.values() if value is not None]
    are_numbers = all(isinstance(value, int | float) and abs(value) < 1e39 for value in numbers)
    return are_numbers and isinstance(record.get("step"), int)


_SOURCE_KEYS = ("name", "manifest")


def _is_absolute_dir(path: str) -> bool:
    """Whether a path is absolute and names an existing folder."""
    return os.path.isabs(path) and os.path.isdir(path)


def _data_hash(folder: Path) -> str:
    """The hash in the manifest of a prepared data folder, or "" without a manifest."""
    try:
        return str(serde.read(folder / "manifest.json")["hash"])
    except (OSError, ValueError, TypeError, KeyError):
        return ""


def _read_json(file: Path, kind: Any) -> Any:
    """Read a JSON file of a run and build a value of type `kind` with `serde.build`.

    Raises:
      ConfigError: the file is missing or invalid.
    """
    try:
        return serde.build(kind, serde.read(file))
    except (OSError, ValueError, ConfigError) as error:
        raise ConfigError(
            f"{file} cannot be read: {error}. Restore it, or start a new run"
        ) from error


def read_records(file: Path) -> list[dict[str, Any]]:
    """The objects in a JSON-lines file, in order; empty if the file does not exist.

    Damaged and incomplete lines, which a crash may leave, are skipped. NaN and infinities are
    None. Raises the same errors as `read_lines`.
    """
    records = map(parse_record, read_lines(file))
    return [record for record in records if record is not None]


def read_lines(file: Path) -> list[str]:
    """The lines of a file; empty if it does not exist.

    Raises:
      ConfigError: the file cannot be read.
    """
    try:
        return serde.read_bytes(file, LONGEST_LOG).decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}. Restore it or delete it") from error


def read_events(ledger: Path) -> list[dict[str, Any]]:
    """The records of an event log, oldest first; `event` is the name of each."""
    return [event for event in read_records(ledger) if isinstance(event.get("event"), str)]


def parse_record(line: str) -> dict[str, Any] | None:
    """Parse a line of a JSON-lines file; None unless it is a JSON object."""
    try:
        record = json.loads(line, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def open_run(path: str | Path) -> Run:
    """Open an existing run.

    Raises:
      ConfigError: the folder is not a run directory.
    """
    run = Run(Path(path))
    if not run.exists():
        raise ConfigError(
            f"{path} is not a run: it has no experiment.json. "
            "Name the folder that `gpt3jax train` printed"
        )
    return run


def check_output_folder(folder: Path, *excluded: str) -> None:
    """Check that a folder has no links, FIFOs or devices: writes to them would land elsewhere.

    Args:
      folder: the folder; it need not exist.
      excluded: names of subfolders that are not checked.

    Raises:
      ConfigError: the folder contains one; the message names it.
    """
    for here, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in excluded]
        for path in (Path(here, name) for name in folders + files):
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:  # A run that is in progress may have deleted it.
                continue
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise ConfigError(
                    f"{path} is a link or a device: writes to it would land elsewhere. Replace it "
                    "with a regular file or folder"
                )


def write_atomic(path: Path, text: str) -> None:
    """Write a file atomically: after a crash it has either the old or the new contents.

    Several processes may write it at once, as the workers of a sweep do; the last one counts.
    """
    replacement = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    try:
        with replacement.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(replacement, path)
    except BaseException:
        replacement.unlink(missing_ok=True)
        raise
