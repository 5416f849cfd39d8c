"""Evaluation results on disk: one file per setting, and a results.json of all. No jax.

A folder has the results of one set of parameters. `settings/` has a file for each setting (task,
number of demonstrations and sample of them), written as soon as it is computed. Its name contains
a hash of all inputs of its numbers, so that it can be reused and is never overwritten by another
setting. results.json is assembled from these files.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from pathlib import Path
from typing import Any

from gpt3jax import serde
from gpt3jax.errors import ConfigError
from gpt3jax.evals.task import Task
from gpt3jax.run_dir import write_atomic
from gpt3jax.serde import short_hash

LARGEST = 1 << 30
"""Maximum bytes of a results.json."""


def digest(task: Task) -> str:
    """A hash of everything in a task that affects scores, except `check`, which is run again."""
    compared = dataclasses.replace(task, check=None, paper=(), source="")
    return short_hash(dataclasses.asdict(compared))


def open_folder(folder: Path, model: dict[str, Any]) -> None:
    """Create a results folder and check that it is writable, before anything is computed.

    Args:
      folder: the folder.
      model: the record of the evaluated model; see `gpt3jax.evals.run`.

    Raises:
      ConfigError: it is not writable, or has the results of another model.
    """
    try:
        (folder / "settings").mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder / "settings").close()
    except OSError as error:
        raise ConfigError(
            f"--out {folder} cannot be written: {error.strerror or error}. Name another"
        ) from error
    earlier = _results(folder)
    # Old results do not record the hash of the state; compare their step.
    name = "state" if "state" in earlier else "step"
    if earlier and earlier.get(name) != model[name]:
        raise ConfigError(
            f"{folder} has results of other parameters ({earlier.get('run')}, step "
            f"{earlier.get('step')}): they would be lost. Name another folder with --out"
        )


def file_of(folder: Path, task: str, shots: int, draw: int, asked: dict[str, Any]) -> Path:
    """The file of a setting; `asked` has all other inputs of its numbers."""
    plain = re.sub(r"[^\w.-]", "_", task)[:60]
    name = f"{plain}-{shots}-{draw}-{short_hash([task, shots, draw, asked])}.json"
    return folder / "settings" / name


def read_setting(file: Path) -> dict[str, Any] | None:
    """A stored setting; None if the file does not exist or cannot be read."""
    try:
        return serde.read(file, LARGEST)
    except (OSError, ValueError):
        return None


def write_setting(file: Path, setting: dict[str, Any]) -> None:
    """Store a setting atomically."""
    write_atomic(file, json.dumps(setting, ensure_ascii=False) + "\n")


def collect(folder: Path) -> list[dict[str, Any]]:
    """All settings of a folder, in the order in which they were computed.

    Settings of an old results.json, without files of their own, come first, unless they were
    computed again since.
    """
    files = (folder / "settings").glob("*.json")
    ordered = sorted(files, key=lambda file: file.stat().st_mtime_ns)
    stored = [setting for file in ordered if (setting := read_setting(file)) is not None]
    known = [_key(setting) for setting in stored]
    earlier, old = _results(folder), []
    for setting in earlier.get("settings", []):
        if "asked" not in setting:
            protocol = {k: v for k, v in earlier["protocol"].items() if k not in ("shots", "draws")}
            setting["asked"] = {**protocol, "examples": len(setting["examples"])}
        if "questions" not in setting["asked"] and _key(setting) not in known:
            old.append(setting)
    return old + stored


def _key(setting: dict[str, Any]) -> dict[str, Any]:
    """The inputs of a setting, without those that old results lack."""
    asked = {k: v for k, v in setting["asked"].items() if k not in ("questions", "dtype")}
    return {**asked, **{name: setting[name] for name in ("task", "shots", "draw")}}


def _results(folder: Path) -> dict[str, Any]:
    """The content of results.json; {} if it does not exist."""
    file = folder / "results.json"
    try:
        record = serde.read(file, LARGEST)
        if not (isinstance(record, dict) and isinstance(record.get("settings"), list)):
            raise ValueError("it has no list of settings")
        return record
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}. Move it elsewhere") from error
