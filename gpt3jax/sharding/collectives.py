"""What devices send each other, written out: every collective of a step is a call in here.

Training and evaluation run under `jax.shard_map` (`shard_map`): a function
sees one device's part of each array, and nothing moves unless it says so. The
bytes on the wire are therefore known before anything is compiled
(plan/estimate.py counts them). Outside of `shard_map`, as in generation, and
along an axis of one device, each function returns its argument.

Differentiate the sum over all devices of what each computes: then a gather
and a summed scatter are each other's transpose, and the gradient of a
parameter that several devices hold is the total of theirs.
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
"""Devices of the first of two stages in which weights are gathered; 1 for a single stage."""


def shard_map(
    function: Callable[..., Any], in_specs: Any, out_specs: Any, first_stage: int = 1
) -> Callable[..., Any]:
    """`function` over each device's part of its arguments; without a mesh in use, itself.

    Weights are gathered from `first_stage` neighbours along `fsdp` first, then from the
    others (mesh.py, `first_stage_size`); their gradients go back likewise.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return function

    def staged(*arguments: Any) -> Any:
        outer = _first_stage.set(first_stage)
        try:
            return function(*arguments)
        finally:
            _first_stage.reset(outer)

    # Pallas kernels do not say along which axes their results vary, so JAX cannot check it;
    # tests compare every kind of mesh with one device instead.
    return jax.shard_map(staged, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def platform() -> str:
    """`cpu`, `gpu` or `tpu`: of the mesh in use, which may be described rather than present."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return device.platform if device else jax.default_backend()


def is_per_device() -> bool:
    """Whether arrays are one device's own parts here."""
    return bool(jax.sharding.get_abstract_mesh().manual_axes)


def axis_size(*axes: str) -> int:
    """Devices along these mesh axes, together."""
    mesh = jax.sharding.get_abstract_mesh()
    count = 1
    for axis in axes:
        count *= mesh.shape[axis] if axis in mesh.manual_axes else 1
    return count


def axis_index(axis: str) -> jax.Array | int:
    """This device's place along a mesh axis."""
    return jax.lax.axis_index(axis) if axis_size(axis) > 1 else 0


def all_gather(x: jax.Array, axis: str, dim: int) -> jax.Array:
    """Join the parts that the devices along `axis` hold of dimension `dim`."""
    if axis_size(axis) == 1:
        return x
    return jax.lax.all_gather(x, axis, axis=dim, tiled=True)


def reduce_scatter(x: jax.Array, axis: str, dim: int) -> jax.Array:
    """Sum over the devices along `axis`; each keeps its part of dimension `dim`."""
    if axis_size(axis) == 1:
        return x
    return jax.lax.psum_scatter(x, axis, scatter_dimension=dim, tiled=True)


def psum(x: jax.Array, *axes: str) -> jax.Array:
    """Sum over the devices along the axes; all of them get it."""
    spread = tuple(axis for axis in axes if axis_size(axis) > 1)
    return jax.lax.psum(x, spread) if spread else x


def pmax(x: jax.Array, axis: str) -> jax.Array:
    """Elementwise maximum over the devices along an axis."""
    return jax.lax.pmax(x, axis) if axis_size(axis) > 1 else x


def all_gather_params(params: Any, specs: Any) -> Any:
    """Parameters as a layer uses them: whole along `fsdp`, this device's part along `tensor`.

    Args:
      params: arrays, or a slice of stacked ones.
      specs: their entries in the table of parameters.
    """

    if axis_size("fsdp") == 1:
        return params

    def whole(path: tuple[str, ...], leaf: jax.Array) -> jax.Array:
        parts = partition_spec(by_path[path].axes[-leaf.ndim :])
        if "fsdp" not in parts:
            return leaf
        dim = tuple(parts).index("fsdp")
        front = jnp.moveaxis(leaf, dim, 0)
        rows = _gather_rows(front.reshape(len(front), -1))
        return jnp.moveaxis(rows.reshape(-1, *front.shape[1:]), 0, dim)

    by_path = traverse_util.flatten_dict(specs)
    return traverse_util.path_aware_map(whole, params)


def _gather_rows(x: jax.Array) -> jax.Array:
    """Join the rows that the devices along `fsdp` hold; the gradient is summed and scattered."""
    for groups in _stages():
        x = _gather_stage(x, groups)
    return x


def _stages() -> list[tuple[tuple[int, ...], ...] | None]:
    """Who gathers with whom along `fsdp`, stage by stage: neighbours, then one of each such group.

    None stands for everybody together.
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
    # The barrier keeps the rows outermost in memory: where XLA moves a transpose past it, its
    # TPU compiler makes an all-reduce of the scatter, which sends twice as much.
    dx = jax.lax.optimization_barrier(dx)
    own = jax.lax.psum_scatter(
        dx, "fsdp", scatter_dimension=0, tiled=True, axis_index_groups=groups
    )
    return (own,)


_gather_stage.defvjp(lambda x, groups: (_gather_stage(x, groups), None), _scatter_stage)


def psum_replicated(gradients: Any, parts: Any) -> Any:
    """Add up the gradients of parameters over the devices that hold the same part of them.

    Args:
      gradients: each device's own.
      parts: the PartitionSpec of each.
    """

    def summed(gradient: jax.Array, part: PartitionSpec) -> jax.Array:
        return psum(gradient, *(axis for axis in AXES if axis not in part))

    return jax.tree.map(summed, gradients, parts)
