"""Batches on the devices; each process reads its own rows, prefetched by Grain's threads."""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Sequence
from typing import TYPE_CHECKING, cast

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from gpt3jax.config import Experiment
from gpt3jax.data import loader
from gpt3jax.run_dir import Skip
from gpt3jax.sharding.rules import partition_spec
from gpt3jax.train.schedules import Microbatches

if TYPE_CHECKING:
    from jaxlib._jax import Device


def rows_on(
    devices: Collection[Device], sharding: NamedSharding, shape: tuple[int, int, int]
) -> list[int]:
    """Rows of a microbatch that these devices store, in ascending order."""
    indices = sharding.devices_indices_map(shape)
    spans = {indices[device][1].indices(shape[1])[:2] for device in devices}
    return sorted({row for span in spans for row in range(*span)})


class BatchFeed:
    """The batches of a run from a position on."""

    def __init__(
        self,
        experiment: Experiment,
        mesh: Mesh,
        microbatches: Microbatches,
        skips: Sequence[Skip] = (),
    ):
        """`microbatches` start at the position; `skips` are ranges of data to skip."""
        context = experiment.model.context
        most = experiment.batch_sequences // experiment.microbatch
        self._shape = (most, experiment.microbatch, context + 1)
        self._sharding = NamedSharding(mesh, partition_spec((None, "batch", None)))
        devices = self._sharding.addressable_devices
        self._rows = rows_on(devices, self._sharding, self._shape)
        # For each device, the indices of its rows among those that this process reads.
        position = {row: index for index, row in enumerate(self._rows)}
        self._device_rows = {
            device: [position[row] for row in rows_on([device], self._sharding, self._shape)]
            for device in devices
        }
        skipped = [(skip.sequences, skip.windows) for skip in skips]
        self.order = loader.windows(experiment.data, experiment.seed, context, skipped)
        """The window of each global sequence."""
        batches = loader.batches(self.order, microbatches, self._rows, context + 1)
        self._microbatches = cast(Generator[np.ndarray, None, None], batches)

    def take(self, count: int) -> tuple[jax.Array, float]:
        """The next `count` microbatches, and the seconds spent waiting for them.

        The array is int32 [maximum microbatches, microbatch, context + 1], sharded over the mesh;
        the microbatches past `count` are zero padding.
        """
        began = time.perf_counter()
        most, _, width = self._shape
        local = np.zeros((most, len(self._rows), width), np.int32)
        for index in range(count):
            local[index] = next(self._microbatches)
        waited = time.perf_counter() - began
        parts = [
            jax.device_put(local[:, rows], device) for device, rows in self._device_rows.items()
        ]
        return jax.make_array_from_single_device_arrays(self._shape, self._sharding, parts), waited

    def close(self) -> None:
        self._microbatches.close()
