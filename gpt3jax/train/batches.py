"""Batches on the devices: this process's rows of each, read ahead by Grain's threads."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from gpt3jax.config import Experiment
from gpt3jax.data import loader
from gpt3jax.run_dir import Skip
from gpt3jax.sharding.rules import partition_spec
from gpt3jax.train.schedules import Microbatches


def rows_on(
    devices: Collection[jax.Device], sharding: NamedSharding, shape: tuple[int, int, int]
) -> list[int]:
    """Rows of a microbatch that these devices hold, wherever in it they lie."""
    places = sharding.devices_indices_map(shape)
    spans = {places[device][1].indices(shape[1])[:2] for device in devices}
    return sorted({row for span in spans for row in range(*span)})


class BatchFeed:
    """The batches of a run, from a position on."""

    def __init__(
        self,
        experiment: Experiment,
        mesh: Mesh,
        microbatches: Microbatches,
        skips: Sequence[Skip] = (),
    ):
        """`microbatches` are those that come next; `skips`, what is passed over."""
        context = experiment.model.context
        most = experiment.batch_sequences // experiment.microbatch
        self._shape = (most, experiment.microbatch, context + 1)
        self._sharding = NamedSharding(mesh, partition_spec((None, "batch", None)))
        devices = self._sharding.addressable_devices
        self._rows = rows_on(devices, self._sharding, self._shape)
        # By device: where the rows that it holds are among those that this process reads.
        place = {row: at for at, row in enumerate(self._rows)}
        self._held = {
            device: [place[row] for row in rows_on([device], self._sharding, self._shape)]
            for device in devices
        }
        passed_over = [(skip.sequences, skip.windows) for skip in skips]
        self.order = loader.windows(experiment.data, experiment.seed, context, passed_over)
        """The window of each global sequence."""
        self._microbatches = loader.batches(self.order, microbatches, self._rows, context + 1)

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
        parts = [jax.device_put(local[:, rows], device) for device, rows in self._held.items()]
        return jax.make_array_from_single_device_arrays(self._shape, self._sharding, parts), waited

    def close(self) -> None:
        self._microbatches.close()
