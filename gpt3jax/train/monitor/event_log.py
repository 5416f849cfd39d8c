"""The event log of a run, RUN/ledger.jsonl: one JSON object per event."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

from gpt3jax import __version__
from gpt3jax.run_dir import read_events


def record(path: Path, event: str, **facts: Any) -> None:
    """Append an event with its time (seconds since 1970). On an OSError it warns and returns."""
    line = json.dumps({"event": event, "time": round(time.time(), 3), **facts}) + "\n"
    try:
        with path.open("ab+") as file:
            # Start a new line after one that a kill left incomplete.
            if file.tell() and not _ends_a_line(file):
                line = "\n" + line
            file.write(line.encode())
    except OSError as error:
        warnings.warn(f"{path} was not written ({event}): {error}", stacklevel=2)


def _ends_a_line(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def read(path: Path) -> list[dict[str, Any]]:
    """All events, oldest first."""
    return read_events(path)


def code_version() -> dict[str, str]:
    """Versions of this package, its git commit, Python, and the main dependencies."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "sentencepiece")
    return {
        "gpt3jax": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def _commit() -> str:
    """`git describe --always --dirty` of this package's checkout, or `unknown`.

    Ignores other repositories, such as that of a project with this package in its environment.
    """
    package = Path(__file__).parents[2]
    try:
        tracked = _git(package, "ls-files", "--full-name", "__init__.py")
        is_own = tracked == f"{package.name}/__init__.py"
        return (is_own and _git(package, "describe", "--always", "--dirty")) or "unknown"
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"


def _git(folder: Path, *words: str) -> str:
    """The output of a git command; empty if it fails."""
    command = ["git", "-C", str(folder), *words]
    result = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    return result.stdout.strip()
