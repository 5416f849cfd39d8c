"""Shardings on the device mesh from the logical axes of arrays."""

from __future__ import annotations

from typing import Any

from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gpt3jax.sharding.axes import RULES


def partition_spec(axes: tuple[str | None, ...]) -> PartitionSpec:
    """The PartitionSpec of an array with these logical axes."""
    return PartitionSpec(*(RULES[axis] for axis in axes))


def partition_specs(specs: dict[str, Any]) -> dict[str, Any]:
    """A PartitionSpec for each ParamSpec of a tree."""
    return traverse_util.path_aware_map(  # pyright: ignore[reportReturnType]
        lambda _, spec: partition_spec(spec.axes), specs
    )


def param_shardings(specs: dict[str, Any], mesh: Mesh) -> dict[str, Any]:
    """A NamedSharding for each ParamSpec of a tree."""
    return traverse_util.path_aware_map(  # pyright: ignore[reportReturnType]
        lambda _, spec: NamedSharding(mesh, partition_spec(spec.axes)), specs
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of token windows [microbatch, context + 1]: rows over `data` and `fsdp`."""
    return NamedSharding(mesh, partition_spec(("batch", None)))
