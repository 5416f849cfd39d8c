"""A thread that ends a process which has stopped getting anywhere.

In a job of many hosts, one that waits for ever (a disk, a lock, a peer that
waits itself) makes all of them wait. Each host watches itself: what phase it
is in, since when. The one whose phase is not `step` is the one to look at.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
from pathlib import Path

from gpt3jax.sharding import hosts

EXIT_CODE = 70
LONGER = {"restore": 6.0, "compile": 6.0, "evaluate": 6.0, "save": 6.0}
"""Phases that may take this many times as long."""


class Watchdog:
    """Ends the process with the stacks of its threads when a phase lasts too long."""

    def __init__(self, seconds: float, report: Path):
        """Watch from now on; 0 seconds watches nothing. `report` is where the stacks go."""
        self._seconds, self._report = seconds, report
        self._phase, self._entered, self._step = "start", 0, 0
        self._closed = threading.Event()
        if seconds > 0:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def enter(self, phase: str, step: int | None = None) -> None:
        """The main thread begins a phase: restore, compile, data, step, evaluate or save."""
        self._phase, self._entered = phase, self._entered + 1
        self._step = self._step if step is None else step

    def close(self) -> None:
        self._closed.set()

    def _watch(self) -> None:
        # Counted in ticks: a process that is suspended and goes on was not stuck.
        tick = min(1.0, self._seconds / 4)
        seen, lasted = self._entered, 0.0
        while not self._closed.wait(tick):
            lasted = lasted + tick if self._entered == seen else 0.0
            seen, phase = self._entered, self._phase
            if lasted > self._seconds * LONGER.get(phase, 1.0):
                self._end(phase, lasted)

    def _end(self, phase: str, lasted: float) -> None:
        print(
            f"error: {hosts.name()} is stuck in phase {phase} for {lasted:.0f} s at step "
            f"{self._step}: all hosts end. Stacks are in {self._report}; relaunch to resume",
            file=sys.stderr,
            flush=True,
        )
        with self._report.open("w") as file:
            print(f"{hosts.name()}, phase {phase}, step {self._step}", file=file, flush=True)
            faulthandler.dump_traceback(file, all_threads=True)
        os._exit(EXIT_CODE)
