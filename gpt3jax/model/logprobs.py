"""Log-probability of each token of a text, given the tokens before it.

`token_logprobs` scores complete rows on any mesh, as training does; `suffix_logprobs` scores
continuations of prompts that are in a KV cache (decoding/decode.py).

Legend: B rows, T tokens of a row, M = B * T, R rows of logits at a time, C tokens of a
continuation, D model width, V vocabulary (padded; this device's shard if it is sharded).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from gpt3jax.config import Model
from gpt3jax.model.gpt3 import Cache, forward, head, hidden_states
from gpt3jax.model.init import Params
from gpt3jax.model.layers import hide_padding, last_norm
from gpt3jax.model.param_specs import LOGIT_ROWS
from gpt3jax.sharding.collectives import all_gather, axis_index, axis_size, platform, pmax, psum


@struct.dataclass
class TokenLogprobs:
    """Scores of tokens, each given its prefix; both arrays have the same shape."""

    log_probability: jax.Array
    """Nats, float32."""
    is_likeliest: jax.Array
    """Whether the token has the largest logit, so that greedy decoding would choose it."""


def token_logprobs(
    params: Params, rows_BT1: jax.Array, model: Model, positions_BT: jax.Array | None = None
) -> TokenLogprobs:
    """Score every token of each row except the first.

    Under `shard_map`, the tokens of the result are sharded over `tensor`.

    Args:
      params: parameters as described by `param_specs`; this device's shards.
      rows_BT1: int32 token ids.
      model: the model's configuration.
      positions_BT: positions of all but the last token of each row, if rows hold several texts
        (`hidden_states`). The scores of each text's first token are then meaningless.
    """
    x_BTD, _, _ = hidden_states(
        params, rows_BT1[:, :-1], model, positions_BT=positions_BT, remat=False
    )
    top = head(params, model)
    x_BTD = last_norm(top, x_BTD, model)
    B, T, D = x_BTD.shape
    targets_BT = jax.lax.dynamic_slice_in_dim(rows_BT1, 1 + axis_index("tensor") * T, T, 1)

    def score(rows):
        x_RD, targets_R = (all_gather(part, "tensor", 0) for part in rows)
        logits_RV = logits_of(x_RD, top["token_embedding"], model.vocabulary)
        scores, _, _ = scores_of(logits_RV, targets_R)
        R = len(rows[1])
        return jax.tree.map(
            lambda each_R: jax.lax.dynamic_slice_in_dim(each_R, axis_index("tensor") * R, R), scores
        )

    scores = jax.lax.map(score, in_rows(x_BTD.reshape(-1, D), targets_BT.reshape(-1)))
    return jax.tree.map(lambda each: each.reshape(B, T), scores)


def suffix_logprobs(
    params: Params,
    logits_BV: jax.Array,
    cache: Cache,
    suffix_BC: jax.Array,
    model: Model,
) -> TokenLogprobs:
    """Score a continuation of the prompt of each row.

    Args:
      params: parameters from `decoding_params`.
      logits_BV: logits after the last token of each prompt.
      cache: the prompts, with free slots for the continuations.
      suffix_BC: int32 token ids, padded on the right.
      model: the model's configuration.
    """
    first, _, _ = scores_of(logits_BV, suffix_BC[:, 0])
    scores = jax.tree.map(lambda each_B: each_B[:, None], first)
    B, C = suffix_BC.shape
    if C == 1:
        return scores
    # Explicit positions, since padding may extend beyond the last one.
    positions_BC = jnp.broadcast_to(cache.length, B)[:, None] + jnp.arange(C - 1)
    output = forward(params, suffix_BC[:, :-1], model, cache=cache, positions_BT=positions_BC)
    logits_BCV = output.logits[..., : model.vocabulary]
    rest, _, _ = scores_of(logits_BCV, suffix_BC[:, 1:])
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), scores, rest)


def logits_of(
    x_RD: jax.Array, w_VD: jax.Array, vocabulary: int, dtype: jax.typing.DTypeLike = jnp.float32
) -> jax.Array:
    """Float32 logits of normalised rows, rounded to `dtype`; the vocabulary's padding is masked."""
    logits_RV = jnp.matmul(x_RD, w_VD.T, preferred_element_type=dtype).astype(jnp.float32)
    if dtype != jnp.float32:
        # On CPUs XLA would keep the float32 sums, and the loss would not be that of a GPU.
        format = jnp.finfo(dtype)
        logits_RV = jax.lax.reduce_precision(logits_RV, format.nexp, format.nmant)
    return hide_padding(logits_RV, vocabulary)


def scores_of(
    logits_RV: jax.Array, targets_R: jax.Array
) -> tuple[TokenLogprobs, jax.Array, jax.Array]:
    """Scores of the targets; and p(token) and is-target over this device's shard of the vocabulary.

    There may be any leading dimensions. If the vocabulary is sharded over `tensor`, all devices
    along that axis get the scores.
    """
    local_R = targets_R - axis_index("tensor") * logits_RV.shape[-1]
    is_target_RV = local_R[..., None] == jnp.arange(logits_RV.shape[-1])
    target_RV = jnp.where(is_target_RV, logits_RV, 0)
    if platform() == "gpu":
        own_top_R, own_sum_R, target_R = _max_and_sums(logits_RV, target_RV)
        top_R = pmax(own_top_R, "tensor")
        sum_R = psum(own_sum_R * jnp.exp(own_top_R - top_R), "tensor")
        e_RV = jnp.exp(logits_RV - top_R[..., None])
    else:
        top_R, target_R = pmax(logits_RV.max(-1), "tensor"), target_RV.sum(-1)
        e_RV = jnp.exp(logits_RV - top_R[..., None])
        sum_R = psum(e_RV.sum(-1), "tensor")
    target_R = psum(target_R, "tensor")
    scores = TokenLogprobs(target_R - (jnp.log(sum_R) + top_R), target_R >= top_R)
    return scores, e_RV / sum_R[..., None], is_target_RV


def _max_and_sums(
    logits_RV: jax.Array, target_RV: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Maximum, sum of exp(logit - maximum), and sum of the targets, in one pass over the logits."""

    def merge(a, b):
        (top_a, sum_a, target_a), (top_b, sum_b, target_b) = a, b
        top = jnp.maximum(top_a, top_b)
        total = sum_a * jnp.exp(top_a - top) + sum_b * jnp.exp(top_b - top)
        return top, total, target_a + target_b

    lowest, zero = jnp.finfo(jnp.float32).min, jnp.float32(0)
    operands = (logits_RV, jnp.ones_like(logits_RV), target_RV)
    return jax.lax.reduce(operands, (lowest, zero, zero), merge, (logits_RV.ndim - 1,))


def in_rows(x_MD: jax.Array, targets_M: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both arrays as [M / R, R, ...]; R is the largest divisor of M allowed by `LOGIT_ROWS`."""
    count, most = len(targets_M), max(1, LOGIT_ROWS[platform()] // axis_size("tensor"))
    rows = next(n for n in range(min(count, most), 0, -1) if count % n == 0)
    return x_MD.reshape(-1, rows, x_MD.shape[1]), targets_M.reshape(-1, rows)
