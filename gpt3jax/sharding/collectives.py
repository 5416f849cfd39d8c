"""Explicit collectives: every collective of a step is a call of a function in this file.

Training and evaluation run under `jax.shard_map`, in which a function sees one device's shard of
each array and all communication is explicit. The traffic is therefore known without compiling
(plan/estimate.py counts it). Outside of `shard_map`, as in generation, and along a mesh axis of
size 1, each function returns its argument.

The quantity to differentiate is the sum over all devices of what each computes. All-gather and
reduce-scatter are then each other's transpose, and the gradient of a replicated parameter is the
sum of the devices' gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import PartitionSpec

from gpt3jax.sharding.axes import AXES
from gpt3jax.sharding.rules import partition_spec

_first_stage: ContextVar[int] = ContextVar("first_stage", default=1)
"""Number of devices in the first stage of a two-stage all-gather of weights; 1: single stage."""


def shard_map(
    function: Callable[..., Any], in_specs: Any, out_specs: Any, first_stage: int = 1
) -> Callable[..., Any]:
    """`jax.shard_map` on the current mesh; `function` itself if no mesh is set.

    Weights are all-gathered first among `first_stage` neighbours along `fsdp`, then among such
    groups (`first_stage_size` in mesh.py); gradients are reduce-scattered in the reverse order.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return function

    def staged(*arguments: Any) -> Any:
        outer = _first_stage.set(first_stage)
        try:
            return function(*arguments)
        finally:
            _first_stage.reset(outer)

    # No VMA check, since Pallas kernels do not declare the mesh axes along which their results
    # vary; tests compare every kind of mesh with a single device instead.
    return jax.shard_map(staged, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def platform() -> str:
    """`cpu`, `gpu` or `tpu`: the platform of the current mesh, which may be a topology for AOT
    compilation without devices."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return device.platform if device else jax.default_backend()


def is_per_device() -> bool:
    """Whether this is traced under `shard_map`, where arrays are one device's shards."""
    return bool(jax.sharding.get_abstract_mesh().manual_axes)


def axis_size(*axes: str) -> int:
    """Number of devices along these mesh axes under `shard_map`; otherwise 1."""
    mesh = jax.sharding.get_abstract_mesh()
    count = 1
    for axis in axes:
        count *= mesh.shape[axis] if axis in mesh.manual_axes else 1
    return count


def axis_index(axis: str) -> jax.Array | int:
    """This device's index along a mesh axis."""
    return jax.lax.axis_index(axis) if axis_size(axis) > 1 else 0


def all_gather(x: jax.Array, axis: str, dim: int) -> jax.Array:
    """Concatenate the shards of the devices along `axis` in dimension `dim`."""
    if axis_size(axis) == 1:
        return x
    return jax.lax.all_gather(x, axis, axis=dim, tiled=True)


def reduce_scatter(x: jax.Array, axis: str, dim: int) -> jax.Array:
    """Sum over the devices along `axis`; each gets its shard of dimension `dim`."""
    if axis_size(axis) == 1:
        return x
    return jax.lax.psum_scatter(x, axis, scatter_dimension=dim, tiled=True)


def all_to_all(x: jax.Array, axis: str, split: int, concat: int) -> jax.Array:
    """Send each device along `axis` its part of dimension `split`; join what comes in `concat`."""
    if axis_size(axis) == 1:
        return x
    return jax.lax.all_to_all(x, axis, split, concat, tiled=True)


def psum(x: jax.Array, *axes: str) -> jax.Array:
    """Sum over the devices along the axes (all-reduce)."""
    larger = tuple(axis for axis in axes if axis_size(axis) > 1)
    return jax.lax.psum(x, larger) if larger else x


def pmax(x: jax.Array, axis: str) -> jax.Array:
    """Elementwise maximum over the devices along an axis."""
    return jax.lax.pmax(x, axis) if axis_size(axis) > 1 else x


def all_gather_params(params: Any, specs: Any) -> Any:
    """All-gather parameters along `fsdp`; they stay sharded along `tensor`.

    Args:
      params: arrays, or one layer's slices of stacked arrays.
      specs: their entries in `param_specs`.
    """

    def gathered(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        if axis_size("fsdp") == 1:  # Quantized weights, which have no ndim, end here.
            return leaf
        parts = partition_spec(by_path[path].axes[-leaf.ndim :])
        if "fsdp" not in parts:
            return leaf
        dim = tuple(parts).index("fsdp")
        front = jnp.moveaxis(leaf, dim, 0)
        rows = _gather_rows(front.reshape(len(front), -1))
        return jnp.moveaxis(rows.reshape(-1, *front.shape[1:]), 0, dim)

    by_path: dict[Any, Any] = traverse_util.flatten_dict(specs)
    return traverse_util.path_aware_map(gathered, params)


def _gather_rows(x: jax.Array) -> jax.Array:
    """All-gather rows along `fsdp`; the gradient is reduce-scattered."""
    for groups in _stages():
        x = _gather_stage(x, groups)
    return x


def _stages() -> list[tuple[tuple[int, ...], ...] | None]:
    """Device groups along `fsdp` for each stage: neighbours, then one device of each such group.

    None means all devices.
    """
    n, first_stage = axis_size("fsdp"), _first_stage.get()
    if first_stage == 1:
        return [None]
    neighbours = tuple(
        tuple(range(first, first + first_stage)) for first in range(0, n, first_stage)
    )
    return [neighbours, tuple(zip(*neighbours, strict=True))]


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gather_stage(x: jax.Array, groups: tuple[tuple[int, ...], ...] | None) -> jax.Array:
    return jax.lax.all_gather(x, "fsdp", axis=0, tiled=True, axis_index_groups=groups)


def _scatter_stage(groups, _, dx: jax.Array) -> tuple[jax.Array]:
    # The barrier keeps the rows as the major dimension. Otherwise XLA may move a transpose past
    # this, and its TPU compiler turns the reduce-scatter into an all-reduce with twice the traffic.
    dx = jax.lax.optimization_barrier(dx)
    own = jax.lax.psum_scatter(
        dx, "fsdp", scatter_dimension=0, tiled=True, axis_index_groups=groups
    )
    return (own,)


_gather_stage.defvjp(lambda x, groups: (_gather_stage(x, groups), None), _scatter_stage)


def psum_replicated(gradients: Any, parts: Any) -> Any:
    """Sum the gradients of parameters over the mesh axes along which they are replicated.

    Args:
      gradients: this device's gradients.
      parts: the PartitionSpec of each.
    """

    def summed(gradient: jax.Array, part: PartitionSpec) -> jax.Array:
        return psum(gradient, *(axis for axis in AXES if axis not in part))

    return jax.tree.map(summed, gradients, parts)
