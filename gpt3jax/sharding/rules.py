"""From the logical axes of an array to its place on the device mesh."""

from __future__ import annotations

from typing import Any

from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gpt3jax.sharding.axes import RULES


def partition_spec(axes: tuple[str | None, ...]) -> PartitionSpec:
    """The mesh axes of an array with these logical axes."""
    return PartitionSpec(*(RULES[axis] for axis in axes))


def partition_specs(table: dict[str, Any]) -> dict[str, Any]:
    """A PartitionSpec for each ParamSpec of a table."""
    return traverse_util.path_aware_map(lambda _, spec: partition_spec(spec.axes), table)


def param_shardings(table: dict[str, Any], mesh: Mesh) -> dict[str, Any]:
    """A NamedSharding for each ParamSpec of a table."""
    return traverse_util.path_aware_map(
        lambda _, spec: NamedSharding(mesh, partition_spec(spec.axes)), table
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of token windows [microbatch, context + 1]: rows over data and fsdp."""
    return NamedSharding(mesh, partition_spec(("batch", None)))
