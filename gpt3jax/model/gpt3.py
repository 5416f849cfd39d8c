"""GPT-3 as a function of its parameters (section 2.1): the same one trains, evaluates and decodes.

    tokens -> embedding + position -> N x [ + attention(norm), + mlp(norm) ] -> norm -> logits

Legend: B batch, T tokens, D model width, H heads, K head width, V vocabulary
(padded), S slots of the cache.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from gpt3jax.config import Model
from gpt3jax.model import attention
from gpt3jax.model.layers import embed, layer_norm, linear, mlp, unembed, unstack
from gpt3jax.model.params import Params
from gpt3jax.sharding.rules import constrain

REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


@struct.dataclass
class Cache:
    """Keys and values of the tokens so far, one [B, H, S, K] array per layer."""

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    length: jax.Array
    """Slots filled, the same for each row."""


@struct.dataclass
class Output:
    """What a forward pass gives back."""

    logits: jax.Array
    """[B, T, V], float32."""
    cache: Cache | None
    activations: dict[str, Any]
    """By name, as asked in `want`; each is indexed by layer first."""


def forward(
    params: Params,
    tokens_BT: jax.Array,
    model: Model,
    *,
    cache: Cache | None = None,
    want: Collection[str] = (),
) -> Output:
    """Predict the next token at each position.

    Args:
      params: as `params.table` describes; `layers` stacked, or a list (see `unstack`).
      tokens_BT: int32 token ids, at most `model.context` with those in the cache.
      cache: earlier tokens; the result then holds the cache with the new ones.
      want: names of activations to return: `residual` (the stream after each
        layer, [B, T, D]), `keys`, `values` ([B, T, H, K]). Others cost nothing.
    """
    x_BTD, cache, activations = trunk(params, tokens_BT, model, cache=cache, want=want)
    with jax.named_scope("unembed"):
        logits_BTV = unembed(_cast_head(params, x_BTD.dtype), x_BTD, model)
    return Output(logits_BTV, cache, activations)


def trunk(
    params: Params,
    tokens_BT: jax.Array,
    model: Model,
    *,
    cache: Cache | None = None,
    want: Collection[str] = (),
) -> tuple[jax.Array, Cache | None, dict[str, Any]]:
    """All of `forward` but the head: the residual stream [B, T, D] after the last layer."""
    params = jax.tree.map(lambda leaf: leaf.astype(compute_dtype(model)), params)
    with jax.named_scope("embed"):
        x_BTD = embed(params, tokens_BT, 0 if cache is None else cache.length)
    layers = params["layers"]
    if cache is None and isinstance(layers, dict) and _period(model) < model.n_layers:
        x_BTD, activations = _scan(layers, x_BTD, model, want)
        return x_BTD, None, activations

    per_layer = unstack(layers, model.n_layers) if isinstance(layers, dict) else layers
    names = {*want, "keys", "values"} if cache is not None else want
    found = []
    for index, layer in enumerate(per_layer):
        past = cache and (cache.keys[index], cache.values[index], cache.length)
        x_BTD, recorded = _block_of(model, index, names)(layer, x_BTD, past)
        found.append(recorded)
    activations = {name: [recorded[name] for recorded in found] for name in names}
    cache = cache and _append(cache, activations["keys"], activations["values"])
    return x_BTD, cache, {name: activations[name] for name in want}


def block(
    params: Params, x_BTD: jax.Array, past: tuple | None, band: int | None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """One layer: attention and MLP, each on a norm of the stream and added to it."""
    with jax.named_scope("attention"):
        qkv_BTHZK = linear(params["qkv"], layer_norm(params["norm_1"], x_BTD))
        qkv_BTHZK = constrain(qkv_BTHZK, "batch", None, "heads", None, None)
        q, k, v = (qkv_BTHZK[..., z, :] for z in range(3))
        if past is None:
            a_BTHK = attention.causal(q, k, v, band)
        else:
            a_BTHK = attention.cached(q, k, v, *past, band)
        x_BTD = constrain(x_BTD + linear(params["out"], a_BTHK, n_in=2), "batch", None, None)
    with jax.named_scope("mlp"):
        x_BTD = x_BTD + mlp(params, layer_norm(params["norm_2"], x_BTD))
        x_BTD = constrain(x_BTD, "batch", None, None)
    return x_BTD, {"residual": x_BTD, "keys": k, "values": v}


def compute_dtype(model: Model) -> jnp.dtype:
    """The dtype of activations: as named, or by platform."""
    if model.dtype == "auto":
        return jnp.dtype("float32" if jax.default_backend() == "cpu" else "bfloat16")
    return jnp.dtype(model.dtype)


def _block_of(model: Model, index: int, want: Collection[str]):
    """Layer `index` as a function (params, x, past) -> (x, wanted), rematerialised as asked."""
    band = None if model.is_dense(index) else model.band

    def run(params, x_BTD, past):
        with jax.named_scope("dense_layer" if band is None else "banded_layer"):
            x_BTD, recorded = block(params, x_BTD, past, band)
        return x_BTD, {name: recorded[name] for name in want}

    if model.remat == "none":
        return run
    # Outside a loop, XLA would merge what is recomputed with what was computed before.
    is_unrolled = _period(model) == model.n_layers
    return jax.checkpoint(run, policy=REMAT_POLICIES[model.remat], prevent_cse=is_unrolled)


def _period(model: Model) -> int:
    """Layers compiled together: one cycle of dense and banded, or all when unrolled."""
    cycle = 1 if model.band >= model.context else model.dense_every
    return cycle if model.scan_layers and model.n_layers % cycle == 0 else model.n_layers


def _scan(layers: Params, x_BTD: jax.Array, model: Model, want: Collection[str]):
    """Loop over cycles of layers; each cycle is unrolled, so that its kinds are static."""
    period = _period(model)
    blocks = [_block_of(model, index, want) for index in range(period)]

    def cycle(x_BTD, params):
        found = []
        for index in range(period):
            layer = jax.tree.map(lambda leaf, i=index: leaf[i], params)
            x_BTD, recorded = blocks[index](layer, x_BTD, None)
            found.append(recorded)
        return x_BTD, jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)

    grouped = jax.tree.map(lambda leaf: leaf.reshape(-1, period, *leaf.shape[1:]), layers)
    x_BTD, activations = jax.lax.scan(cycle, x_BTD, grouped)
    return x_BTD, {name: value.reshape(-1, *value.shape[2:]) for name, value in activations.items()}


def _append(cache: Cache, keys: list[jax.Array], values: list[jax.Array]) -> Cache:
    """Write the new [B, T, H, K] keys and values behind those in the cache."""

    def write(slots_BHSK, new_BTHK):
        new_BHTK = new_BTHK.transpose(0, 2, 1, 3).astype(slots_BHSK.dtype)
        return jax.lax.dynamic_update_slice_in_dim(slots_BHSK, new_BHTK, cache.length, axis=2)

    return Cache(
        keys=tuple(map(write, cache.keys, keys)),
        values=tuple(map(write, cache.values, values)),
        length=cache.length + keys[0].shape[1],
    )


def _cast_head(params: Params, dtype: jnp.dtype) -> Params:
    names = ("token_embedding", "final_norm")
    return jax.tree.map(lambda leaf: leaf.astype(dtype), {name: params[name] for name in names})
