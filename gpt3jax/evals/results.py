"""Evaluation results on disk: one file per setting, and results.json over all of them. No jax.

A folder holds the results of one set of parameters. `settings/` has a file for each task, number
of demonstrations and drawing of them, written as soon as it is computed and named by a hash of
everything that its numbers depend on, so that it can be reused and is never overwritten by
another. results.json is assembled from them.
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
"""Bytes of a results.json."""


def digest(task: Task) -> str:
    """Identifies all of a task that a score depends on; `check` is applied again on reuse."""
    compared = dataclasses.replace(task, check=None, paper=(), source="")
    return short_hash(dataclasses.asdict(compared))


def open_folder(folder: Path, model: dict[str, Any]) -> None:
    """Make a folder and try to write in it, before anything is computed.

    Args:
      folder: of the results.
      model: whose they are; see `gpt3jax.evals.run`.

    Raises:
      ConfigError: it cannot be written, or holds the results of another model.
    """
    try:
        (folder / "settings").mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder / "settings").close()
    except OSError as error:
        raise ConfigError(
            f"--out {folder} cannot be written: {error.strerror or error}. Name another"
        ) from error
    earlier = _results(folder)
    # Results from before states were recorded are known by their step.
    name = "state" if "state" in earlier else "step"
    if earlier and earlier.get(name) != model[name]:
        raise ConfigError(
            f"{folder} holds results of other parameters ({earlier.get('run')}, step "
            f"{earlier.get('step')}): they would be lost. Name another folder with --out"
        )


def file_of(folder: Path, task: str, shots: int, draw: int, asked: dict[str, Any]) -> Path:
    """Where a setting is stored; `asked` is what decides its numbers beside its name."""
    plain = re.sub(r"[^\w.-]", "_", task)[:60]
    name = f"{plain}-{shots}-{draw}-{short_hash([task, shots, draw, asked])}.json"
    return folder / "settings" / name


def read_setting(file: Path) -> dict[str, Any] | None:
    """A stored setting; None if it is not there, or cannot be read."""
    try:
        return serde.parse(serde.read_bytes(file, LARGEST).decode())
    except (OSError, ValueError):
        return None


def write_setting(file: Path, setting: dict[str, Any]) -> None:
    """Store a setting; after a crash all of it is there, or nothing."""
    write_atomic(file, json.dumps(setting, ensure_ascii=False) + "\n")


def collect(folder: Path) -> list[dict[str, Any]]:
    """All settings of a folder, in the order in which they were computed.

    Those of a results.json from before settings had files of their own come first, unless the
    same was asked again since.
    """
    files = (folder / "settings").glob("*.json")
    ordered = sorted(files, key=lambda file: file.stat().st_mtime_ns)
    found = [setting for file in ordered if (setting := read_setting(file)) is not None]
    known = [_place(setting) for setting in found]
    earlier, kept = _results(folder), []
    for setting in earlier.get("settings", []):
        if "asked" not in setting:
            protocol = {k: v for k, v in earlier["protocol"].items() if k not in ("shots", "draws")}
            setting["asked"] = {**protocol, "examples": len(setting["examples"])}
        if "questions" not in setting["asked"] and _place(setting) not in known:
            kept.append(setting)
    return kept + found


def _place(setting: dict[str, Any]) -> dict[str, Any]:
    """What was asked, as far as results of any age say it."""
    asked = {k: v for k, v in setting["asked"].items() if k not in ("questions", "dtype")}
    return {**asked, **{name: setting[name] for name in ("task", "shots", "draw")}}


def _results(folder: Path) -> dict[str, Any]:
    """What results.json holds; nothing if there is none."""
    file = folder / "results.json"
    try:
        found = serde.parse(serde.read_bytes(file, LARGEST).decode())
        if not (isinstance(found, dict) and isinstance(found.get("settings"), list)):
            raise ValueError("it has no list of settings")
        return found
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}. Move it elsewhere") from error
