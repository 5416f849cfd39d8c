"""Batches on the devices: this process's rows of each, read ahead by Grain's threads."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from gpt3jax.config import Experiment
from gpt3jax.data import loader
from gpt3jax.run import Skip
from gpt3jax.sharding.rules import partition


def rows_on(
    devices: Collection[jax.Device], sharding: NamedSharding, shape: tuple[int, int, int]
) -> list[int]:
    """Rows of a microbatch that these devices hold, wherever in it they lie."""
    places = sharding.devices_indices_map(shape)
    spans = {places[device][1].indices(shape[1])[:2] for device in devices}
    return sorted({row for span in spans for row in range(*span)})


class Feed:
    """The batches of a run, from a position on."""

    def __init__(
        self, experiment: Experiment, mesh: Mesh, sequences: int, skips: Sequence[Skip] = ()
    ):
        """`sequences` is the number of windows consumed before; `skips`, what is passed over."""
        context = experiment.model.context
        most = experiment.batch_sequences // experiment.microbatch
        self._shape = (most, experiment.microbatch, context + 1)
        self._sharding = NamedSharding(mesh, partition((None, "batch", None)))
        self._rows = rows_on(self._sharding.addressable_devices, self._sharding, self._shape)
        passed_over = [(skip.sequences, skip.windows) for skip in skips]
        self.order = loader.windows(experiment.data, experiment.seed, context, passed_over)
        """The window of each global sequence."""
        self._microbatches = loader.batches(
            self.order, start=sequences, microbatch=experiment.microbatch, rows=self._rows
        )

    def take(self, count: int) -> tuple[jax.Array, float]:
        """The next `count` microbatches and the seconds spent waiting for them.

        Returns int32 [most microbatches, microbatch, context + 1] spread over
        the mesh; what lies past `count` is zero and not to be read.
        """
        began = time.perf_counter()
        most, _, width = self._shape
        local = np.zeros((most, len(self._rows), width), np.int32)
        for index in range(count):
            local[index] = next(self._microbatches)
        waited = time.perf_counter() - began

        def part(place: tuple[slice, ...]) -> np.ndarray:
            rows = range(*place[1].indices(self._shape[1]))
            return local[:, [self._rows.index(row) for row in rows]]

        return jax.make_array_from_callback(self._shape, self._sharding, part), waited

    def close(self) -> None:
        self._microbatches.close()
