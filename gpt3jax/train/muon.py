"""Muon: momentum whose matrices are orthogonalised (Jordan et al. 2024, kellerjordan.github.io).

Newton-Schulz iterations move the singular values of an update to about 1: between 0.7 and 1.2 with
these coefficients. q, k and v of each layer are matrices of their own, of all heads.

Orthogonalisation needs complete matrices. Devices that hold shards of all of them, along `fsdp` and
`tensor`, exchange these shards, so that each device has some matrices instead.

Legend: B matrices, M rows, N columns.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

from gpt3jax.config import Model
from gpt3jax.model.gpt3 import compute_dtype
from gpt3jax.model.param_specs import named_specs, param_specs
from gpt3jax.sharding.collectives import all_to_all, axis_size, shard_map
from gpt3jax.sharding.rules import partition_spec

COEFFICIENTS = (3.4445, -4.775, 2.0315)
"""Of a quintic that moves small singular values towards 1 fastest (Jordan et al. 2024)."""
ITERATIONS = 5
RMS = 0.2
"""Root mean square of an update, about that of AdamW (arXiv 2502.16982)."""
MATRICES = {
    "qkv": ((0, 3), (1,), (2, 4)),
    "out": ((0,), (1, 2), (3,)),
    "up": ((0,), (1,), (2,)),
    "down": ((0,), (1,), (2,)),
}
"""The axes of a layer's kernel (param_specs.py) over matrices, rows and columns."""


class MuonState(NamedTuple):
    """The momentum of each matrix, float32."""

    momentum: Any


def scale_by_muon(momentum: float, model: Model) -> optax.GradientTransformation:
    """Orthogonalised Nesterov momentum, of root mean square `RMS`, for the kernels of layers."""
    by_path = {path: partition_spec(spec.axes) for path, spec in named_specs(param_specs(model))}
    dtype = compute_dtype(model)

    def init(params):
        return MuonState(jax.tree.map(jnp.zeros_like, params))

    def update(updates, state, params=None):
        del params

        def decayed_sum(old, new):
            return jax.tree.map(lambda m, g: momentum * m + g, old, new)

        moments = decayed_sum(state.momentum, updates)
        nesterov = decayed_sum(moments, updates)
        specs = jax.tree_util.tree_map_with_path(lambda at, _: by_path[_path(at)], nesterov)

        def orthogonal(kernels):
            def update_of(at, kernel):
                return _orthogonal(_path(at), kernel, by_path[_path(at)], dtype)

            return jax.tree_util.tree_map_with_path(update_of, kernels)

        return shard_map(orthogonal, (specs,), specs)(nesterov), MuonState(moments)

    return optax.GradientTransformation(init, update)


def _path(at: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(at, simple=True, separator="/")


def _orthogonal(path: str, kernel: jax.Array, spec: PartitionSpec, dtype: jnp.dtype) -> jax.Array:
    """The update of a stacked kernel, given as this device's shard.

    Layers are padded with zeros to a multiple of the devices, which then exchange shards of all
    layers for all of some layers.
    """
    layers, parts = len(kernel), MATRICES[path.split("/")[1]]
    padding = [(0, -layers % axis_size("fsdp", "tensor")), *[(0, 0)] * (kernel.ndim - 1)]
    sharded = [(axis, dim) for dim, axis in enumerate(spec) if axis]
    x = jnp.pad(kernel, padding)
    for axis, dim in sharded:
        x = all_to_all(x, axis, split=0, concat=dim)
    order = tuple(axis for part in parts for axis in part)
    ordered = x.transpose(order)
    m, n = (math.prod(x.shape[axis] for axis in part) for part in parts[1:])
    x_BMN = orthogonalised(ordered.reshape(-1, m, n).astype(dtype)).astype(kernel.dtype)
    x = (x_BMN * (RMS * math.sqrt(max(m, n)))).reshape(ordered.shape).transpose(np.argsort(order))
    for axis, dim in reversed(sharded):
        x = all_to_all(x, axis, split=dim, concat=0)
    return x[:layers]


def orthogonalised(x_BMN: jax.Array) -> jax.Array:
    """Matrices with the same singular vectors, and singular values of about 1; zeros stay zeros."""
    if x_BMN.shape[1] > x_BMN.shape[2]:
        return orthogonalised(x_BMN.swapaxes(1, 2)).swapaxes(1, 2)
    norms = jnp.linalg.norm(x_BMN.astype(jnp.float32), axis=(1, 2), keepdims=True)
    x_BMN = x_BMN / (norms + 1e-7).astype(x_BMN.dtype)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram_BMM = x_BMN @ x_BMN.swapaxes(1, 2)
        x_BMN = a * x_BMN + (b * gram_BMM + c * gram_BMM @ gram_BMM) @ x_BMN
    return x_BMN
