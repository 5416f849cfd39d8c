"""Edits of activations during a forward pass: the argument `edit` of `forward` and `capture`.

Each function here returns an edit, which works with scanned and unrolled layers, and on a mesh
unless stated otherwise. Layer, head and positions may be traced, so that one compiled `forward`
serves all of them (experiments/ablate_heads.py). An edit is a function (name, layer, value) ->
value; `forward` documents the names.

Legend: B rows, T tokens, D model width, H heads, K head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from gpt3jax.errors import ConfigError
from gpt3jax.model.gpt3 import Edit
from gpt3jax.sharding.collectives import axis_index, axis_size


def ablate_head(layer: int | jax.Array, head: int | jax.Array) -> Edit:
    """Set the output of one attention head to zero."""

    def edit(name: str, at: int | jax.Array, value: jax.Array) -> jax.Array:
        if name != "heads":
            return value
        local = value.shape[2]  # Heads may be sharded.
        heads_H = axis_index("tensor") * local + jnp.arange(local)
        is_out_H1 = ((heads_H == head) & (at == layer))[:, None]
        return jnp.where(is_out_H1, 0, value)

    return edit


def patch(
    name: str,
    layer: int | jax.Array,
    activation: jax.Array,
    positions: Sequence[int] | jax.Array | None = None,
) -> Edit:
    """Replace an activation by that of another text (activation patching).

    Args:
      name: name of the activation in `EDIT_POINTS`.
      layer: index of the layer; -1 for `embedded`.
      activation: captured activation of that layer, [B, T, ...], of a text of the same length.
      positions: positions to replace; None: all.

    Raises:
      ConfigError: if it runs on a mesh that shards tokens and heads.
    """
    other = _constant(activation)
    indices = jnp.arange(other.shape[1])
    chosen_T = _constant(
        jnp.isin(indices, indices if positions is None else jnp.asarray(positions))
    )

    def edit(of: str, at: int | jax.Array, value: jax.Array) -> jax.Array:
        if of != name:
            return value
        if axis_size("tensor") > 1:
            raise ConfigError(
                "patch does not support --mesh.tensor, which shards tokens. Use --mesh.fsdp instead"
            )
        is_new_T = chosen_T.reshape(-1, *(1 for _ in other.shape[2:]))
        return jnp.where(is_new_T & (at == layer), other.astype(value.dtype), value)

    return edit


def steer(layer: int | jax.Array, vector_D: jax.Array) -> Edit:
    """Add a vector to the residual stream after one layer, at all positions."""
    constant_D = _constant(vector_D)

    def edit(name: str, at: int | jax.Array, value: jax.Array) -> jax.Array:
        if name != "residual":
            return value
        return jnp.where(at == layer, value + constant_D.astype(value.dtype), value)

    return edit


def in_turn(*edits: Edit) -> Edit:
    """Compose edits, which are applied in order."""

    def edit(name: str, layer: int | jax.Array, value: jax.Array) -> jax.Array:
        for each in edits:
            value = each(name, layer, value)
        return value

    return edit


def _constant(x: jax.Array) -> np.ndarray | jax.Array:
    """Copy a concrete array to the host, so that it can be used on any mesh."""
    return x if isinstance(x, Tracer) else np.asarray(x)
