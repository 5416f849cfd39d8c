"""Batches on the devices: this process's rows of each, read ahead by Grain's threads."""

from __future__ import annotations

import time

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from gpt3jax.config import Experiment
from gpt3jax.data import loader
from gpt3jax.sharding.rules import partition


class Feed:
    """The batches of a run, from a position on."""

    def __init__(self, experiment: Experiment, mesh: Mesh, sequences: int):
        """`sequences` is the number of windows consumed before."""
        context = experiment.model.context
        most = experiment.batch_sequences // experiment.microbatch
        self._shape = (most, experiment.microbatch, context + 1)
        self._sharding = NamedSharding(mesh, partition((None, "batch", None)))
        places = self._sharding.addressable_devices_indices_map(self._shape).values()
        bounds = [rows.indices(experiment.microbatch) for _, rows, _ in places]
        rows = range(min(start for start, _, _ in bounds), max(stop for _, stop, _ in bounds))
        self._rows = len(rows)
        order = loader.windows(experiment.data, experiment.seed, context)
        self._microbatches = loader.batches(
            order, start=sequences, microbatch=experiment.microbatch, rows=rows
        )

    def take(self, count: int) -> tuple[jax.Array, float]:
        """The next `count` microbatches and the seconds spent waiting for them.

        Returns int32 [most microbatches, microbatch, context + 1] spread over
        the mesh; what lies past `count` is zero and not to be read.
        """
        began = time.perf_counter()
        most, _, width = self._shape
        local = np.zeros((most, self._rows, width), np.int32)
        for index in range(count):
            local[index] = next(self._microbatches)
        waited = time.perf_counter() - began
        return jax.make_array_from_process_local_data(self._sharding, local, self._shape), waited

    def close(self) -> None:
        self._microbatches.close()
