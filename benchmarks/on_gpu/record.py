"""Results, one line of JSON each, and the programs that give them."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
GPT3JAX = [sys.executable, "-m", "gpt3jax"]
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class Results:
    """The results file; `add` appends to it."""

    def __init__(self, options: argparse.Namespace, piece: str = ""):
        self._file, self._piece, self._commit = options.out, piece, options.commit

    def add(self, name: str, **figures: Any) -> None:
        """Append the figures of one measurement, and print them to standard error."""
        line = {
            "piece": self._piece, "name": name, **figures, "card": card(),
            "versions": versions(), "commit": self._commit or commit(),
            "command": " ".join(sys.argv),
            "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }  # fmt: skip
        with self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(self._piece, name, json.dumps(figures)[:600], file=sys.stderr, flush=True)

    def read(self) -> list[dict[str, Any]]:
        """All results of the file."""
        return [json.loads(line) for line in self._file.read_text().splitlines()]


@cache
def card() -> str:
    """The GPU and its driver; the processor if there is no GPU."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}


def commit() -> str:
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


def run(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run a command to its end in a folder; its output is text."""
    return subprocess.run(
        command, cwd=folder, env=variables(environment), capture_output=True, text=True
    )


def start(command: list[str], folder: Path, **environment: str) -> subprocess.Popen:
    """Start a command in a folder; its output is dropped."""
    return subprocess.Popen(
        command, cwd=folder, env=variables(environment),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def variables(environment: dict[str, str]) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, **environment}


def logged(run: Path) -> Iterator[dict[str, Any]]:
    """The metrics of a run directory, as far as they are written."""
    file = run / "metrics.jsonl"
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            yield json.loads(line)
        except ValueError:  # Half a line of a run that is writing.
            return
