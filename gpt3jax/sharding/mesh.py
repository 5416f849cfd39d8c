"""The device mesh of a run: axes `data`, `fsdp` and `tensor`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType

from gpt3jax.config import ConfigError, Experiment, Mesh


def make_mesh(config: Mesh, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """Arrange the devices; an axis of -1 takes all that the others leave.

    Raises:
      ConfigError: the axes do not multiply to the number of devices.
    """
    devices = list(devices or jax.devices())
    sizes = resolve(config, len(devices))
    # jax.make_mesh would default to explicit axes; we let the partitioner infer.
    return jax.sharding.Mesh(
        np.asarray(devices).reshape(tuple(sizes.values())),
        tuple(sizes),
        axis_types=(AxisType.Auto,) * len(sizes),
    )


def resolve(config: Mesh, devices: int) -> dict[str, int]:
    """Sizes of the axes on this many devices."""
    sizes = dataclasses.asdict(config)
    named = math.prod(size for size in sizes.values() if size != -1)
    if -1 in sizes.values() and devices % named == 0:
        sizes = {axis: devices // named if size == -1 else size for axis, size in sizes.items()}
    if math.prod(sizes.values()) != devices:
        raise ConfigError(
            f"mesh {sizes} has {named} named devices, but there are {devices}: the axes must "
            f"multiply to that. Use a divisor of {devices}, or --mesh.data -1 for the rest"
        )
    return sizes


def check_fits(experiment: Experiment, mesh: jax.sharding.Mesh) -> None:
    """Refuse a mesh that cannot split this model or batch evenly, naming what would work."""
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    tensor, fsdp = mesh.shape["tensor"], mesh.shape["fsdp"]
    model = experiment.model
    _divides("--train.microbatch", experiment.microbatch, rows, "data x fsdp")
    _divides("--model.n-heads", model.n_heads, tensor, "--mesh.tensor")
    _divides("--model.d-model", model.d_model, fsdp, "--mesh.fsdp")
    _divides("the padded vocabulary", model.padded_vocabulary, tensor, "--mesh.tensor")


def _divides(what: str, size: int, parts: int, axis: str) -> None:
    if size % parts:
        legal = [n for n in range(1, size + 1) if size % n == 0]
        near = sorted(legal, key=lambda n: abs(n - parts))[:2]
        raise ConfigError(
            f"{what} is {size}, which {axis} = {parts} does not divide: each part must be equal. "
            f"Nearest {axis} that work: {' or '.join(map(str, near))}"
        )
