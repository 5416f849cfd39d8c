"""Hashes of arrays, computed on the devices; they do not depend on the mesh.

The bits of each element are mixed with its index, and the results are summed modulo 2^32, so the
order of summation, and therefore the sharding, does not matter. The mix is a bijection: a single
changed element always changes the hash; other changes go undetected with probability 2^-64. The
hash is not cryptographic.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

STRIDES = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1, 0xD3A2646D)
"""One odd number per axis, multiplied by an element's index along it."""


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by path, such as `params/layers/qkv/kernel`."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@jax.jit
def array_hashes(tree: Any) -> dict[str, jax.Array]:
    """The hash of each leaf by path, uint32 [2]."""
    return {name: _array_hash(leaf) for name, leaf in named_leaves(tree).items()}


def as_hex(fingerprint: jax.Array) -> str:
    """Sixteen hex digits."""
    return "".join(f"{int(lane):08x}" for lane in np.asarray(fingerprint))


def array_hash_of_parts(parts: Iterable[np.ndarray]) -> jax.Array:
    """The hash of an array given in parts along its first axis."""
    columns, start = jnp.uint32(0), 0
    for part in parts:
        # Blocks, since otherwise parts would be read faster than they are hashed.
        columns = jax.block_until_ready(columns + _columns(part, jnp.uint32(start)))
        start += len(part)
    return _of_columns(columns)


def _array_hash(x: jax.Array) -> jax.Array:
    # The barrier keeps XLA from merging the two reductions into one, for which its CPU backend
    # uses one core. A reduction over the first axis alone is vectorised.
    columns = _columns(x[None] if x.ndim == 0 else x, jnp.uint32(0))
    return _of_columns(jax.lax.optimization_barrier(columns))


@jax.jit
def _columns(x: jax.Array, start: jax.Array) -> jax.Array:
    """Sums over the first axis, whose indices start at `start`."""
    unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
    return _mix(bits, start).sum(axis=0, dtype=jnp.uint32)


@jax.jit
def _of_columns(columns: jax.Array) -> jax.Array:
    mixed = _mix(columns, jnp.uint32(0))
    return jnp.stack([columns.sum(dtype=jnp.uint32), mixed.sum(dtype=jnp.uint32)])


def _mix(bits: jax.Array, start: jax.Array) -> jax.Array:
    """Mix each element's bits with its index, a bijection; the first axis starts at `start`."""
    key = jnp.uint32(0x2545F491) + start * jnp.uint32(STRIDES[0])
    for axis, stride in zip(range(bits.ndim), STRIDES, strict=False):
        key += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(stride)
    mixed = (bits ^ key) * jnp.uint32(0x21F0AAAD)
    mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0x735A2D97)
    return mixed ^ (mixed >> 15)
