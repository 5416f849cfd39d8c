"""The device mesh of a run: axes `data`, `fsdp` and `tensor`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType

from gpt3jax.config import Mesh
from gpt3jax.errors import ConfigError

if TYPE_CHECKING:
    from jaxlib._jax import Device


def make_mesh(config: Mesh, devices: Sequence[Device] | None = None) -> jax.sharding.Mesh:
    """Arrange the devices in a mesh; an axis of -1 takes all remaining devices.

    Neighbours on a TPU's torus become neighbours along an axis, `tensor` first. Slices are
    arranged along `data`, whose traffic tolerates the slower network between them.

    Raises:
      ConfigError: the product of the axes is not the number of devices, or `data` is not a
        multiple of the number of slices.
    """
    devices = list(devices or jax.devices())
    sizes = resolve(config, len(devices))
    # Not jax.make_mesh, which defaults to explicit axes; ours are auto or manual.
    return jax.sharding.Mesh(
        _arranged(devices, (sizes["data"], sizes["fsdp"], sizes["tensor"])),
        tuple(sizes),
        axis_types=(AxisType.Auto,) * len(sizes),
    )


def slices_of(devices: Sequence[Device]) -> int:
    """Number of TPU slices that the devices belong to; 1 on other platforms."""
    return len({getattr(device, "slice_index", 0) for device in devices})


def first_stage_size(mesh: jax.sharding.Mesh) -> int:
    """Number of devices in the first stage of the two-stage all-gather of weights along `fsdp`.

    If `fsdp` spans three axes of a TPU's torus, these are the devices along the last of them, which
    carries the least traffic. Over all three axes libtpu turns all-gather and reduce-scatter into
    all-reduce, with twice the traffic (0.0.42.1, from compiled text). Otherwise 1.
    """
    line = mesh.devices[0, :, 0]
    if line[0].platform != "tpu":
        return 1
    moved = np.array([device.coords for device in line]) != line[0].coords
    if not moved.any(axis=0).all():
        return 1
    # Along the line only the last torus axis changes until its end.
    return int(np.argmax((moved & ~moved[1]).any(axis=1)))


def resolve(config: Mesh, devices: int) -> dict[str, int]:
    """The size of each axis on this many devices."""
    sizes = dataclasses.asdict(config)
    if auto := [axis for axis, size in sizes.items() if size == "auto"]:
        raise ConfigError(
            f"--mesh.{auto[0]} is auto, which only training and plan choose. Give a number, or -1 "
            "for all remaining devices"
        )
    named = math.prod(size for size in sizes.values() if size != -1)
    if -1 in sizes.values() and devices % named == 0:
        sizes = {axis: devices // named if size == -1 else size for axis, size in sizes.items()}
    if math.prod(sizes.values()) != devices:
        raise ConfigError(
            f"mesh {sizes} needs {named} devices, but there are {devices}: the product of the axes "
            f"must be that. Use divisors of {devices}, --mesh.data -1 for the rest, or auto"
        )
    return sizes


def _arranged(devices: list[Device], shape: tuple[int, int, int]) -> np.ndarray:
    slices = slices_of(devices)
    if devices[0].platform != "tpu":
        return np.asarray(devices).reshape(shape)
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    data, fsdp, tensor = shape
    if data % slices:
        raise ConfigError(
            f"--mesh.data is {data}, which is not a multiple of the number of slices. Use a "
            f"multiple of {slices}"
        )
    return mesh_utils.create_hybrid_device_mesh(
        (data // slices, fsdp, tensor), (slices, 1, 1), devices, allow_split_physical_axes=True
    )
