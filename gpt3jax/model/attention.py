"""Causal attention, dense or locally banded, over training windows and over a KV cache.

With a band of w, query i attends to the keys i-w+1 .. i, itself included (Child et al. 2019,
mode "local"; GPT-3 alternates it with dense layers, section 2.1).

If a row holds several texts, or begins with padding, `positions_BT` gives the position of each
token in its own text; a token attends to keys of its own text only.

Legend: B batch, T query tokens, S cached keys, H heads, K head width.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gpt3jax.sharding.collectives import is_per_device, platform

MASKED = jnp.finfo(jnp.float32).min
MIN_BLOCK = 128
MAX_BLOCKS = 8

SPLASH_LANES = 128
"""The TPU kernel requires the window length to be a multiple of this."""
CUDNN = "dot_product_attention_fwd_wrapper"
"""JAX's primitive for the cuDNN kernel. It returns the heads and the log-sum-exp of the softmax."""


def causal_attention(
    q_BTHK: jax.Array,
    k_BTHK: jax.Array,
    v_BTHK: jax.Array,
    band: int | None,
    positions_BT: jax.Array | None = None,
) -> jax.Array:
    """Attention within a window, [B, T, H, K]; dense if `band` is None.

    Uses a fused kernel if the mesh's platform has one for these shapes and the arrays are one
    device's shards (XLA cannot partition kernels). Otherwise, and if rows hold several texts,
    uses `blocked_attention`.
    """
    T, dtype = q_BTHK.shape[1], q_BTHK.dtype
    if positions_BT is not None:
        return blocked_attention(q_BTHK, k_BTHK, v_BTHK, band, positions_BT)
    if is_per_device() and platform() == "tpu" and T % SPLASH_LANES == 0:
        return splash(q_BTHK, k_BTHK, v_BTHK, band)
    if is_per_device() and platform() == "gpu" and dtype in (jnp.bfloat16, jnp.float16):
        return cudnn(q_BTHK, k_BTHK, v_BTHK, band)
    return blocked_attention(q_BTHK, k_BTHK, v_BTHK, band)


def splash(
    q_BTHK: jax.Array,
    k_BTHK: jax.Array,
    v_BTHK: jax.Array,
    band: int | None,
    interpret: bool = False,
) -> jax.Array:
    """JAX's Pallas kernel for TPU, which skips blocks that are fully masked."""
    from jax.experimental.pallas.ops.tpu import splash_attention as kernels

    _, T, H, K = q_BTHK.shape
    shape = (T, T)
    mask = kernels.CausalMask(shape) if band is None else kernels.LocalMask(shape, (band - 1, 0), 0)
    block = _splash_block(T)
    kernel: Any = kernels.make_splash_mha(
        kernels.MultiHeadMask([mask] * H),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=kernels.BlockSizes(
            block_q=block,
            block_kv=block,
            block_kv_compute=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_kv_dkv_compute=block,
            use_fused_bwd_kernel=True,
        ),
        residual_checkpoint_name="context",
        interpret=interpret,
    )
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q_BTHK, k_BTHK, v_BTHK))
    out_BHTK: Any = jax.vmap(kernel)(q * K**-0.5, k, v)
    return out_BHTK.transpose(0, 2, 1, 3)


def _splash_block(T: int) -> int:
    """The largest supported block size that divides the window."""
    return next(block for block in (512, 256, SPLASH_LANES) if T % block == 0)


def cudnn(q_BTHK: jax.Array, k_BTHK: jax.Array, v_BTHK: jax.Array, band: int | None) -> jax.Array:
    """cuDNN's flash attention; a band uses its sliding window."""
    # No `checkpoint_name`: the remat policy recognises the primitive by `CUDNN`, which also saves
    # the residuals of its backward pass.
    return jax.nn.dot_product_attention(
        q_BTHK,
        k_BTHK,
        v_BTHK,
        is_causal=True,
        implementation="cudnn",
        local_window_size=None if band is None else (band - 1, 0),
    )


def blocked_attention(
    q_BTHK: jax.Array,
    k_BTHK: jax.Array,
    v_BTHK: jax.Array,
    band: int | None,
    positions_BT: jax.Array | None = None,
) -> jax.Array:
    """Matrix products and softmax, for any platform.

    Each block of queries is multiplied only by the keys that at least one of its queries attends
    to, so most masked scores are not computed.
    """
    T = q_BTHK.shape[1]
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q_BTHK, k_BTHK, v_BTHK))
    block = max(MIN_BLOCK, math.ceil(T / MAX_BLOCKS))
    outputs = []
    for start in range(0, T, block):
        stop = min(start + block, T)
        first = 0 if band is None else max(0, start - band + 1)
        positions = None if positions_BT is None else positions_BT[:, start:stop]
        mask = causal_mask(jnp.arange(start, stop), jnp.arange(first, stop), band, positions)
        outputs.append(_attend(q[:, :, start:stop], k[:, :, first:stop], v[:, :, first:stop], mask))
    out_BTHK = jnp.concatenate(outputs, axis=2).transpose(0, 2, 1, 3)
    return checkpoint_name(out_BTHK, "context")


def cached_attention(
    q_BTHK: jax.Array,
    k_BTHK: jax.Array,
    v_BTHK: jax.Array,
    band: int | None,
    layer_cache: tuple[jax.Array, jax.Array, jax.Array, jax.Array | None],
) -> jax.Array:
    """Attention of new tokens to the cached tokens and to each other, [B, T, H, K].

    `layer_cache` is (keys [B, H, S, K], values [B, H, S, K], `Cache.length`, `Cache.distance`).
    This function only reads the cache. The caller writes the new keys and values of all layers at
    the end of the step, so that XLA can update the buffers in place.
    """
    cache_k_BHSK, cache_v_BHSK, length, distance_BTS = layer_cache
    T, S = q_BTHK.shape[1], cache_k_BHSK.shape[2]
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q_BTHK, k_BTHK, v_BTHK))
    if distance_BTS is None:
        if length.ndim:
            length = length[:, None, None, None]  # One length per row: [B, 1, 1, 1].
        slots = jnp.arange(S)
        to_slots = length + jnp.arange(T)[:, None] - slots
        old = _within(to_slots, band) & (slots < length)
        new = causal_mask(jnp.arange(T), jnp.arange(T), band)
    else:
        visible = _within(distance_BTS, band)[:, None]
        old, new = visible[..., :S], visible[..., S:]
    scores = jnp.concatenate([_scores(q, cache_k_BHSK, old), _scores(q, k, new)], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = weights[..., :S] @ cache_v_BHSK + weights[..., S:] @ v
    return out.transpose(0, 2, 1, 3)


def attention_weights(q_BTHK: jax.Array, k_BTHK: jax.Array, band: int | None) -> jax.Array:
    """The softmax weights of a window, float32 [B, H, T, T]; each row sums to 1.

    For inspection only: the fused kernels compute the same weights but do not return them.
    """
    slots = jnp.arange(q_BTHK.shape[1])
    q, k = (x.transpose(0, 2, 1, 3) for x in (q_BTHK, k_BTHK))
    return jax.nn.softmax(_scores(q, k, causal_mask(slots, slots, band)), axis=-1)


def causal_mask(
    queries: jax.Array, keys: jax.Array, band: int | None, positions_BT: jax.Array | None = None
) -> jax.Array:
    """Boolean mask [queries, keys]: causal, and within the band if it is not None.

    With `positions_BT`, [B, 1, queries, keys]: also within the query's own text.
    """
    distance = queries[:, None] - keys[None, :]
    mask = _within(distance, band)
    return mask if positions_BT is None else mask & (distance <= positions_BT[:, None, :, None])


def _within(distance: jax.Array, band: int | None) -> jax.Array:
    return (distance >= 0) if band is None else (distance >= 0) & (distance < band)


def _attend(q_BHTK, k_BHSK, v_BHSK, mask):
    weights = jax.nn.softmax(_scores(q_BHTK, k_BHSK, mask), axis=-1)
    return weights.astype(v_BHSK.dtype) @ v_BHSK


def _scores(q_BHTK, k_BHSK, mask):
    """Scaled dot products in float32, `MASKED` where the mask is False."""
    scale = q_BHTK.shape[-1] ** -0.5
    scores = jnp.einsum(
        "bhtk,bhsk->bhts", q_BHTK * scale, k_BHSK, preferred_element_type=jnp.float32
    )
    return jnp.where(mask, scores, MASKED)
