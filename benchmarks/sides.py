"""Programs that are measured in alternation, each in a process of its own (one_side.py)."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from one_side import Shape

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Side:
    """One program, and the rates that were measured."""

    interpreter: str
    library: str
    """gpt3jax, pytorch or floor."""
    shape: Shape
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables besides those of this process."""
    rates: list[float] = field(default_factory=list)
    """Tokens per second."""
    about: dict[str, Any] = field(default_factory=dict)
    """Parameters and versions."""

    @property
    def rate(self) -> float:
        """The median, tokens per second."""
        return statistics.median(self.rates)

    def start(self, what: str) -> subprocess.Popen:
        """Returns the process, ready to measure.

        The processes must not compile at once: XLA chooses a GPU's kernels by timing them.
        """
        shape = json.dumps(dataclasses.asdict(self.shape))
        command = [self.interpreter, str(HERE / "one_side.py"), what, self.library, shape]
        process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": str(HERE.parent), **self.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.about.update(answer(process))
        return process


def alternate(what: str, sides: Mapping[str, Side], pairs: int) -> None:
    """Starts all programs, and then measures each in turn, `pairs` times."""
    with ExitStack() as stack:
        processes = {}
        for name, side in sides.items():
            print(f"{what} {name}: compiles", file=sys.stderr)
            processes[name] = stack.enter_context(side.start(what))
            stack.callback(processes[name].kill)
        parameters = {side.about["parameters"] for side in sides.values()}
        if len(parameters) != 1:
            sys.exit(f"error: the models differ: they have {sorted(parameters)} parameters")
        for pair in range(1, pairs + 1):
            for name, side in sides.items():
                process = processes[name]
                print(file=process.stdin, flush=True)
                side.rates.append(answer(process)["tokens_per_s"])
                print(f"{what} {name} {pair}: {side.rates[-1]:,.0f} tokens/s", file=sys.stderr)


def ratio(ours: Side, theirs: Side) -> float:
    """The median of the ratios within pairs."""
    return statistics.median(a / b for a, b in zip(ours.rates, theirs.rates, strict=True))


def answer(process: subprocess.Popen) -> dict[str, Any]:
    """The next line of a process, which is JSON; exits if there is none."""
    line = process.stdout.readline() if process.stdout else ""
    if not line:
        process.wait()
        command = " ".join(map(str, process.args))  # pyright: ignore
        sys.exit(f"error: {command} failed with exit code {process.returncode}")
    return json.loads(line)
