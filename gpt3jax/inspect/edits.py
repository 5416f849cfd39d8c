"""Changes to a forward pass while it runs: what `forward` and `capture` take as `edit`.

Each function here makes one, for any number of layers in a loop or unrolled, and on
a mesh unless it says otherwise. Layer, head and positions may be traced, so that one
compiled `forward` tries them all (experiments/ablate_heads.py). A new kind is a
function (name, layer, value) -> value; names and their meaning are those of `forward`.

Legend: B rows, T tokens, D model width, H heads, K head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gpt3jax.errors import ConfigError
from gpt3jax.model.gpt3 import Edit
from gpt3jax.sharding.collectives import axis_index, axis_size


def ablate_head(layer: int | jax.Array, head: int | jax.Array) -> Edit:
    """Nothing comes out of one attention head."""

    def edit(name: str, at: int | jax.Array, value: jax.Array) -> jax.Array:
        if name != "heads":
            return value
        here = value.shape[2]  # A device may have a part of the heads.
        heads_H = axis_index("tensor") * here + jnp.arange(here)
        is_out_H1 = ((heads_H == head) & (at == layer))[:, None]
        return jnp.where(is_out_H1, 0, value)

    return edit


def patch(
    name: str,
    layer: int | jax.Array,
    activation: jax.Array,
    positions: Sequence[int] | jax.Array | None = None,
) -> Edit:
    """Put an activation of another text in the place of this one's.

    Args:
      name: which, as in `EDIT_POINTS`.
      layer: where; -1 of `embedded`.
      activation: as `capture` gave it of that layer, of a text of as many tokens, [B, T, ...].
      positions: of these tokens only; None: of all.

    Raises:
      ConfigError: when it runs, if tokens and heads are split over devices.
    """
    other = _constant(activation)
    places = jnp.arange(other.shape[1])
    chosen_T = jnp.isin(places, places if positions is None else jnp.asarray(positions))
    chosen_T = _constant(chosen_T)

    def edit(of: str, at: int | jax.Array, value: jax.Array) -> jax.Array:
        if of != name:
            return value
        if axis_size("tensor") > 1:
            raise ConfigError(
                "patch is for whole texts: --mesh.tensor splits them. Use --mesh.fsdp instead"
            )
        is_new_T = chosen_T.reshape(-1, *(1 for _ in other.shape[2:]))
        return jnp.where(is_new_T & (at == layer), other.astype(value.dtype), value)

    return edit


def steer(layer: int | jax.Array, vector_D: jax.Array) -> Edit:
    """Add a vector to the stream after one layer, at every token."""
    vector_D = _constant(vector_D)

    def edit(name: str, at: int | jax.Array, value: jax.Array) -> jax.Array:
        if name != "residual":
            return value
        return jnp.where(at == layer, value + vector_D.astype(value.dtype), value)

    return edit


def in_turn(*edits: Edit) -> Edit:
    """Several edits as one, each of what the one before gives."""

    def edit(name: str, layer: int | jax.Array, value: jax.Array) -> jax.Array:
        for each in edits:
            value = each(name, layer, value)
        return value

    return edit


def _constant(x: jax.Array) -> np.ndarray | jax.Array:
    """On the host, where any mesh can take it from; what is traced stays so."""
    return x if isinstance(x, jax.core.Tracer) else np.asarray(x)
