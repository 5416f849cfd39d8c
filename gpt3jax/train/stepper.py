"""Runs the train step on successive batches from a position on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

import jax
import numpy as np

from gpt3jax.checkpoint.checkpointer import Position
from gpt3jax.config import Experiment
from gpt3jax.run_dir import Skip
from gpt3jax.runtime.kept_programs import KeptPrograms
from gpt3jax.train.batches import BatchFeed
from gpt3jax.train.schedules import Microbatches, Stretch, learning_rate, stretches
from gpt3jax.train.state import TrainState
from gpt3jax.train.step import Metrics, compile_train_step

PLATFORMS = ("gpu",)
"""Platforms on which XLA chooses kernels by timing them, so that the run keeps its program."""


@dataclass(frozen=True)
class Batch:
    """The input of one step, and the positions before and after it."""

    before: Position
    after: Position
    windows: jax.Array
    count: int
    """Number of microbatches to use; the last of them may be padded (loader.batches)."""
    learning_rate: float
    waited: float
    """Seconds spent waiting for the data."""

    @property
    def sequences(self) -> range:
        """The windows of the batch, counted from the start of the run."""
        return range(self.before.sequences, self.after.sequences)


class Stepper:
    """The steps of a run from a position on; deterministic."""

    def __init__(
        self,
        experiment: Experiment,
        mesh: jax.sharding.Mesh,
        start: Position,
        skips: tuple[Skip, ...],
        recorded: Sequence[Stretch] = (),
        programs: KeptPrograms | None = None,
    ):
        """Prepare; the first step compiles the train step.

        Args:
          experiment: the experiment.
          mesh: the device mesh.
          start: the position to continue from.
          skips: ranges of the data to skip.
          recorded: batch sizes from the run's record; by default from the schedule.
          programs: the run's compiled programs, used on `PLATFORMS` only.
        """

        def sizes() -> Iterator[Stretch]:
            return iter(recorded) if recorded else stretches(experiment, start.sequences)

        self._experiment = experiment
        self.position = start
        self._sizes = chain.from_iterable(repeat(size, count) for size, count in sizes())
        microbatches = Microbatches(sizes(), experiment.microbatch, start.sequences)
        self.feed = BatchFeed(experiment, mesh, microbatches, skips)
        self._step = compile_train_step(experiment, mesh)
        self.is_compiled = False
        self._programs = programs if mesh.devices.flat[0].platform in PLATFORMS else None

    def next_batch(self) -> Batch:
        """The batch at the current position, on the devices; advances the position."""
        experiment, before, size = self._experiment, self.position, next(self._sizes)
        count = -(-size // experiment.microbatch)
        self.position = Position(before.step + 1, before.sequences + size)
        tokens = self.position.sequences * experiment.model.context
        rate = learning_rate(tokens, experiment.schedule)
        windows, waited = self.feed.take(count)
        return Batch(before, self.position, windows, count, rate, waited)

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Dispatch a step asynchronously; donates the state."""
        rate, count = np.float32(batch.learning_rate), np.int32(batch.count)
        with ExitStack() as stack:
            if self._programs and not self.is_compiled:
                stack.enter_context(self._programs.compiling(self._step, "jit_train_step"))
            state, metrics = self._step(state, batch.windows, count, rate)
        self.is_compiled = True
        return state, metrics

    def program(self, state: TrainState, batch: Batch) -> str:
        """The compiled step in HLO text; JAX finds the program that ran, by its arguments."""
        rate, count = np.float32(batch.learning_rate), np.int32(batch.count)
        step: Any = self._step
        return step.lower(state, batch.windows, count, rate).compile().as_text()

    @property
    def has_other_kernels(self) -> bool:
        """Whether the first step was compiled, on a GPU, to a program that the run did not have."""
        return self._programs is not None and self.is_compiled and not self._programs.was_kept
