"""A trace of some training steps by jax.profiler, which XProf and Perfetto open.

The device is idle when a trace starts and when it ends, so the trace contains exactly these steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import jax

from gpt3jax.errors import ConfigError


@dataclass(frozen=True)
class Trace:
    """A finished trace, and the program whose steps it contains."""

    folder: Path
    program: str
    """The compiled step in HLO text."""
    microbatches: int = 1
    """Trip count of the loop over microbatches, which is not in the program."""
    step: str = "train"
    """Name of the annotations of the steps."""


class StepTrace:
    """Traces the steps `first` to `last` of a run, both included."""

    def __init__(self, first: int, last: int, report: Callable[[Trace], str]):
        """Nothing is traced yet; `report` returns the text to show about the finished trace."""
        self.first, self.last, self.report = first, last, report
        self.folder = Path()
        self._is_running = self._has_ended = False

    def check(self, step: int) -> None:
        """Raise ConfigError if a run at `step` has already done some of the steps."""
        if step >= self.first:
            raise ConfigError(
                f"--profile {self.first}:{self.last}: the run is at step {step} already. "
                f"Name steps from {step + 1} on, or leave --profile out"
            )

    def begin(self, step: int, before: Any, profiles: Path) -> None:
        """Start the trace in a new folder of `profiles`, if `step` is the first.

        `before` is the state before the step, which is awaited.
        """
        if step == self.first:
            jax.block_until_ready(before)
            self.folder = new_folder(profiles / f"{self.first}-{self.last}")
            start(self.folder)
            self._is_running = True

    def ends_at(self, step: int) -> bool:
        """Whether the trace is to end after this step."""
        return self._is_running and step == self.last

    def end(self, after: Any) -> None:
        """End the trace; `after` is the state after the last step, which is awaited."""
        jax.block_until_ready(after)
        self._is_running, self._has_ended = False, True
        jax.profiler.stop_trace()

    def close(self, step: int) -> str:
        """End the trace if the session has ended early, after `step`; returns a message or ""."""
        if self._has_ended:
            return ""
        traced = f"{self.folder} has the steps up to there" if self._is_running else "no trace"
        if self._is_running:
            self.end(())
        return f"--profile {self.first}:{self.last}: the session ended after step {step}: {traced}"


def start(folder: Path) -> None:
    """Start a trace, without calls of Python functions, which slow the host down.

    `jax.profiler.stop_trace` ends it and writes the files.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    jax.profiler.start_trace(folder, profiler_options=options)


def new_folder(path: Path) -> Path:
    """Creates `path`, or if it exists, the first of `path`.2, `path`.3, ... that does not."""
    for number in count(1):
        folder = path if number == 1 else path.with_name(f"{path.name}.{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise AssertionError  # `count` does not end.
