"""Several prompts at once, of different lengths, into one cache.

Rows are aligned at their ends, so that all go on at the same slot: row b is
padding up to slot `start_B[b]`, and its prompt after it. A token's place is its
slot less that, which is its position and as far back as it sees (`hidden_states`).

What all prompts begin with, as demonstrations that they share, is read once and
moved to each row's place.

Legend: B rows, T slots of the prompts, Q slots of what differs between them, P
tokens of the shared beginning, H heads, S slots of the cache, K head width, V
vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp

from gpt3jax.config import Model
from gpt3jax.decoding.decode import prefill
from gpt3jax.model.gpt3 import Cache, hidden_states
from gpt3jax.model.init import Params
from gpt3jax.model.layers import unembed


def read(
    params: Params, tokens_BT: jax.Array, start_B: jax.Array, model: Model, slots: int
) -> tuple[jax.Array, Cache]:
    """Read prompts that end at slot T.

    Args:
      params: as `decoding_params` gives them.
      tokens_BT: int32, padded on the left.
      start_B: slot of each row's first token.
      model: its shape.
      slots: room in the cache, at least T.

    Returns:
      Float32 logits [B, V] after the last token, and the cache.
    """
    B, T = tokens_BT.shape
    positions_BT = jnp.arange(T) - start_B[:, None]
    x_BTD, _, found = hidden_states(
        params, tokens_BT, model, positions_BT=positions_BT, want=("keys", "values")
    )

    def placed(new_BTHK):
        room = ((0, 0), (0, 0), (0, slots - T), (0, 0))
        return jnp.pad(new_BTHK.transpose(0, 2, 1, 3), room)

    cache = Cache(
        tuple(map(placed, found["keys"])), tuple(map(placed, found["values"])), jnp.int32(T)
    )
    return _last_logits(params, x_BTD, model), cache


def read_after(
    params: Params,
    shared_1P: jax.Array,
    shared_length: jax.Array,
    tokens_BQ: jax.Array,
    length: jax.Array,
    start_B: jax.Array,
    model: Model,
    slots: int,
) -> tuple[jax.Array, Cache]:
    """Read prompts that begin alike: the beginning once, and the end of each.

    Args:
      params: as `decoding_params` gives them.
      shared_1P: what they begin with, padded on the right.
      shared_length: its tokens, int32.
      tokens_BQ: the last Q tokens of each prompt, at least what is not shared; padded on
        the left where a prompt has fewer.
      length: slot at which all prompts end, int32; at least Q.
      start_B: slot of each row's first token; the longest prompt's is 0.
      model: its shape.
      slots: room in the cache, at least `length` and P.

    Returns:
      As `read`.
    """
    B, Q = tokens_BQ.shape
    roomy = replace(model, context=slots)  # Of the cache: positions are as before.
    _, once = prefill(params, shared_1P, shared_length, roomy)
    # Beyond what is shared lies what Q overwrites, or padding that no place reaches.
    to_places = jax.vmap(lambda one_HSK, start: jnp.roll(one_HSK, start, axis=1), (None, 0))
    moved = jax.tree.map(lambda one_1HSK: to_places(one_1HSK[0], start_B), (once.keys, once.values))
    cache = Cache(*moved, length=length - Q)
    positions_BQ = length - Q + jnp.arange(Q) - start_B[:, None]
    x_BQD, cache, _ = hidden_states(
        params, tokens_BQ, model, cache=cache, positions_BT=positions_BQ
    )
    return _last_logits(params, x_BQD, model), cache


def _last_logits(params: Params, x_BTD: jax.Array, model: Model) -> jax.Array:
    return unembed(params, x_BTD[:, -1:], model)[:, 0, : model.vocabulary]
