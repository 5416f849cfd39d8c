"""The run's diary: one JSON object per event, appended and flushed."""

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
    """Append an event with its time (seconds since 1970). A full disk costs it, not the run."""
    line = json.dumps({"event": event, "time": round(time.time(), 3), **facts}) + "\n"
    try:
        with path.open("ab+") as file:
            # Behind a line that a kill has torn, this one would be lost, too.
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
    """What ran: this package, its commit where there is one, and the libraries under it."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "sentencepiece")
    return {
        "gpt3jax": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def _commit() -> str:
    """Commit of the checkout this package runs from, marked when files differ; or `unknown`.

    Another repository's, as of a project whose environment this is installed in, says nothing.
    """
    package = Path(__file__).parents[2]
    try:
        tracked = _git(package, "ls-files", "--full-name", "__init__.py")
        is_own = tracked == f"{package.name}/__init__.py"
        return (is_own and _git(package, "describe", "--always", "--dirty")) or "unknown"
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"


def _git(folder: Path, *words: str) -> str:
    """What git says; nothing where it fails."""
    command = ["git", "-C", str(folder), *words]
    found = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    return found.stdout.strip()
