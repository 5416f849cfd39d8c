"""Causal attention, dense or locally banded, over whole windows and over a cache.

Legend: B batch, T query tokens, S cached keys, H heads, K head width. A band
of w lets query i see the keys i-w+1 .. i, itself included (Child et al. 2019,
mode "local"; the paper alternates it with dense layers, section 2.1).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

HIDDEN = jnp.finfo(jnp.float32).min
MIN_BLOCK = 128
MAX_BLOCKS = 8


def causal(q_BTHK: jax.Array, k_BTHK: jax.Array, v_BTHK: jax.Array, band: int | None) -> jax.Array:
    """Attention within a window; `band` None is dense. Returns [B, T, H, K].

    Queries go in blocks, each against only the keys that some query of the
    block sees: what the mask hides is mostly not computed. Plain matrix
    products and softmax, for any platform.
    """
    T = q_BTHK.shape[1]
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q_BTHK, k_BTHK, v_BTHK))
    block = max(MIN_BLOCK, math.ceil(T / MAX_BLOCKS))
    outputs = []
    for start in range(0, T, block):
        stop = min(start + block, T)
        first = 0 if band is None else max(0, start - band + 1)
        mask = visible(jnp.arange(start, stop), jnp.arange(first, stop), band)
        outputs.append(_attend(q[:, :, start:stop], k[:, :, first:stop], v[:, :, first:stop], mask))
    return jnp.concatenate(outputs, axis=2).transpose(0, 2, 1, 3)


def cached(
    q_BTHK: jax.Array,
    k_BTHK: jax.Array,
    v_BTHK: jax.Array,
    cache_k_BHSK: jax.Array,
    cache_v_BHSK: jax.Array,
    length: jax.Array,
    band: int | None,
) -> jax.Array:
    """Attention of new tokens to `length` cached ones and to themselves.

    The cache is only read: the caller writes all layers' new keys and values
    at the end of the step, which XLA can then do in place.
    """
    T, S = q_BTHK.shape[1], cache_k_BHSK.shape[2]
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q_BTHK, k_BTHK, v_BTHK))
    queries, slots = length + jnp.arange(T), jnp.arange(S)
    old = visible(queries, slots, band) & (slots < length)
    new = visible(queries, queries, band)
    scores = jnp.concatenate(
        [_scores(q, cache_k_BHSK, old), _scores(q, k, new)], axis=-1
    )  # fmt: skip
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = weights[..., :S] @ cache_v_BHSK + weights[..., S:] @ v
    return out.transpose(0, 2, 1, 3)


def visible(queries: jax.Array, keys: jax.Array, band: int | None) -> jax.Array:
    """Boolean mask [queries, keys] of positions: causal, and within the band if there is one."""
    distance = queries[:, None] - keys[None, :]
    return (distance >= 0) if band is None else (distance >= 0) & (distance < band)


def _attend(q_BHTK, k_BHSK, v_BHSK, mask_TS):
    weights = jax.nn.softmax(_scores(q_BHTK, k_BHSK, mask_TS), axis=-1)
    return weights.astype(v_BHSK.dtype) @ v_BHSK


def _scores(q_BHTK, k_BHSK, mask_TS):
    """Scaled dot products in float32, hidden where the mask is False."""
    scale = q_BHTK.shape[-1] ** -0.5
    scores = jnp.einsum(
        "bhtk,bhsk->bhts", q_BHTK * scale, k_BHSK, preferred_element_type=jnp.float32
    )
    return jnp.where(mask_TS, scores, HIDDEN)
