"""The device mesh of a run: axes `data`, `fsdp` and `tensor`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType

from gpt3jax.config import Mesh
from gpt3jax.errors import ConfigError


def make_mesh(config: Mesh, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """Arrange the devices; an axis of -1 takes all that the others leave.

    Neighbours on a TPU's torus become neighbours along an axis, `tensor` first;
    slices lie along `data`, whose traffic can cross the slower network.

    Raises:
      ConfigError: the axes do not multiply to the number of devices, or `data`
        is not a multiple of the slices.
    """
    devices = list(devices or jax.devices())
    sizes = resolve(config, len(devices))
    # jax.make_mesh would default to explicit axes; ours are auto or manual.
    return jax.sharding.Mesh(
        _arranged(devices, tuple(sizes.values())),
        tuple(sizes),
        axis_types=(AxisType.Auto,) * len(sizes),
    )


def slices_of(devices: Sequence[jax.Device]) -> int:
    """Slices that the devices lie in; 1 where there is no such thing."""
    return len({getattr(device, "slice_index", 0) for device in devices})


def first_stage_size(mesh: jax.sharding.Mesh) -> int:
    """Devices of the first of two stages in which weights are gathered along `fsdp`.

    Where `fsdp` spans three axes of a TPU's torus: those along the last of them, whose
    traffic is the least. libtpu would make all-reduces of gathers and summed scatters over
    all three, which send twice as much (0.0.42.1, from compiled text). 1 everywhere else.
    """
    line = mesh.devices[0, :, 0]
    if line[0].platform != "tpu":
        return 1
    moved = np.array([device.coords for device in line]) != line[0].coords
    if not moved.any(axis=0).all():
        return 1
    # The last axis alone moves until its end.
    return int(np.argmax((moved & ~moved[1]).any(axis=1)))


def resolve(config: Mesh, devices: int) -> dict[str, int]:
    """Sizes of the axes on this many devices."""
    sizes = dataclasses.asdict(config)
    named = math.prod(size for size in sizes.values() if size != -1)
    if -1 in sizes.values() and devices % named == 0:
        sizes = {axis: devices // named if size == -1 else size for axis, size in sizes.items()}
    if math.prod(sizes.values()) != devices:
        raise ConfigError(
            f"mesh {sizes} has {named} named devices, but there are {devices}: the axes must "
            f"multiply to that. Use a divisor of {devices}, --mesh.data -1 for the rest, or auto"
        )
    return sizes


def _arranged(devices: list[jax.Device], shape: tuple[int, int, int]) -> np.ndarray:
    slices = slices_of(devices)
    if devices[0].platform != "tpu":
        return np.asarray(devices).reshape(shape)
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    data, fsdp, tensor = shape
    if data % slices:
        raise ConfigError(
            f"--mesh.data is {data}, but there are {slices} slices: each holds a whole number of "
            f"copies. Use a multiple of {slices}"
        )
    return mesh_utils.create_hybrid_device_mesh(
        (data // slices, fsdp, tensor), (slices, 1, 1), devices, allow_split_physical_axes=True
    )
