"""From the logical axes of an array to the axes of the device mesh.

One table for parameters and activations. Parameters split over `fsdp` by
width and over `tensor` by head, MLP unit or vocabulary row; activations split
by batch over `data` and `fsdp`.
"""

from __future__ import annotations

from typing import Any

import jax
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec

RULES: dict[str | None, str | tuple[str, ...] | None] = {
    None: None,
    "batch": ("data", "fsdp"),
    "layers": None,
    "embed": "fsdp",
    "heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
}


def partition(axes: tuple[str | None, ...]) -> PartitionSpec:
    """The mesh axes of an array with these logical axes."""
    return PartitionSpec(*(RULES[axis] for axis in axes))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pin an activation to the mesh in use; outside a mesh, do nothing."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition(axes))


def param_shardings(table: dict[str, Any], mesh: Mesh) -> dict[str, Any]:
    """A NamedSharding for each ParamSpec of a table."""
    return traverse_util.path_aware_map(
        lambda _, spec: NamedSharding(mesh, partition(spec.axes)), table
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of token windows [microbatch, context + 1]: rows over data and fsdp."""
    return NamedSharding(mesh, partition(("batch", None)))
