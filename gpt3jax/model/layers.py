"""Layer norm, MLP, embedding and unembedding as functions.

Under `shard_map`, shapes are those of one device's shard. Tokens are sharded over `tensor` between
layers and in the norms (sequence parallelism), and all-gathered in attention and MLP, whose heads
and units are sharded instead.

Legend: B batch, T tokens, D model width, F MLP width, V vocabulary (padded),
M rows of a flattened matrix.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gpt3jax.config import Model
from gpt3jax.model.init import Params
from gpt3jax.model.linear import add_to_each, dot, linear, linear_sum
from gpt3jax.model.lookup import take_rows
from gpt3jax.model.mup import width_ratio
from gpt3jax.model.quantized import Quantized
from gpt3jax.sharding.collectives import axis_index, axis_size, reduce_scatter

NORM_EPSILON = 1e-5

UNKNOWN = jnp.iinfo(jnp.int32).max
"""An out-of-range row, for which `take_rows` returns NaN. A negative id would index from the end,
and an id in the vocabulary's padding would give a row of zeros."""


def layer_norm(params: Params, x_BTD: jax.Array) -> jax.Array:
    """Normalise each token over the width, in float32 (biased variance, epsilon 1e-5)."""
    return _layer_norm(params["gain"], params["bias"], x_BTD)


@jax.custom_vjp
def _layer_norm(gain_D: jax.Array, bias_D: jax.Array, x_BTD: jax.Array) -> jax.Array:
    return _layer_norm_forward(gain_D, bias_D, x_BTD)[0]


def _layer_norm_forward(gain_D, bias_D, x_BTD):
    x = x_BTD.astype(jnp.float32)
    mean = x.mean(-1, keepdims=True)
    variance = jnp.square(x - mean).mean(-1, keepdims=True)
    scale = jax.lax.rsqrt(variance + NORM_EPSILON)
    mean, scale = checkpoint_name(mean, "normed"), checkpoint_name(scale, "normed")
    y = (x - mean) * scale
    return (y * gain_D + bias_D).astype(x_BTD.dtype), (gain_D, bias_D, x_BTD, mean, scale)


def _layer_norm_backward(residuals, dy_BTD):
    """The gradient computes the normalised x anew; JAX's own stores it in float32."""
    gain_D, bias_D, x_BTD, mean, scale = residuals
    dy, y = dy_BTD.astype(jnp.float32), (x_BTD.astype(jnp.float32) - mean) * scale
    dgain_D, dbias_D = (each.sum(range(dy.ndim - 1)) for each in (dy * y, dy))
    dy *= gain_D
    dx = scale * (dy - dy.mean(-1, keepdims=True) - y * (dy * y).mean(-1, keepdims=True))
    return dgain_D.astype(gain_D.dtype), dbias_D.astype(bias_D.dtype), dx.astype(x_BTD.dtype)


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def mlp(params: Params, x_BTD: jax.Array, model: Model) -> jax.Array:
    """Up to 4D, GELU, down to D."""
    h_BTF = checkpoint_name(linear(params["up"], x_BTD, model), "hidden")
    h_BTF = checkpoint_name(jax.nn.gelu(h_BTF, model.activation == "gelu_tanh"), "activated")
    return linear_sum(params["down"], h_BTF, model)


def embed(
    params: Params,
    tokens_BT: jax.Array,
    start: jax.Array | int,
    vocabulary: int,
    positions_BT: jax.Array | None = None,
) -> jax.Array:
    """Token embedding plus learned position embedding [B, T, D]; tokens come out sharded.

    Positions count from `start` unless `positions_BT` gives them. Ids outside the vocabulary
    (negative, or in its padding) give NaN.
    """
    rows_VD = params["token_embedding"]
    is_known_BT = (tokens_BT >= 0) & (tokens_BT < vocabulary)
    tokens_BT = jnp.where(is_known_BT, tokens_BT, UNKNOWN)
    if isinstance(rows_VD, Quantized):
        x_BTD = rows_VD.rows(tokens_BT).astype(params["position_embedding"].dtype)
    elif axis_size("tensor") == 1:
        x_BTD = take_rows(rows_VD, tokens_BT)
    else:
        local_BT = tokens_BT - axis_index("tensor") * len(rows_VD)
        is_local_BT = (local_BT >= 0) & (local_BT < len(rows_VD))
        taken_BTD = take_rows(rows_VD, jnp.where(is_local_BT, local_BT, UNKNOWN))
        missing_BT = jnp.where(is_known_BT, 0, jnp.nan).astype(taken_BTD.dtype)
        part_BTD = jnp.where(is_local_BT[..., None], taken_BTD, missing_BT[..., None])
        x_BTD = reduce_scatter(part_BTD, "tensor", 1)
    positions_PD, length = params["position_embedding"], x_BTD.shape[1]
    first = axis_index("tensor") * length
    if positions_BT is None:
        if (tokens := length * axis_size("tensor")) > len(positions_PD):
            raise ValueError(
                f"a text of {tokens} tokens has more than the model has positions "
                f"({len(positions_PD)}). Shorten it"
            )
        own_TD = jax.lax.dynamic_slice_in_dim(positions_PD, start + first, length)
        return add_to_each(x_BTD, own_TD)
    own_BT = jax.lax.dynamic_slice_in_dim(positions_BT, first, length, axis=1)
    return x_BTD + jnp.take(positions_PD, own_BT, axis=0, mode="clip")


def last_norm(params: Params, x_BTD: jax.Array, model: Model) -> jax.Array:
    """The final layer norm; under muP, divided by the width ratio so that logits are."""
    x_BTD, ratio = layer_norm(params["final_norm"], x_BTD), width_ratio(model)
    return x_BTD if ratio == 1 else x_BTD / ratio


def unembed(params: Params, x_BTD: jax.Array, model: Model) -> jax.Array:
    """Final norm, then float32 logits over the padded vocabulary (head tied to the embedding).

    Padding gets the most negative float32, so that it has no probability and no gradient.
    """
    x_BTD = last_norm(params, x_BTD, model)
    x_MD, rows_VD = x_BTD.reshape(-1, model.d_model), params["token_embedding"]
    logits = dot(x_MD, rows_VD if isinstance(rows_VD, Quantized) else rows_VD.T)
    logits_BTV = logits.reshape(*x_BTD.shape[:-1], -1).astype(jnp.float32)
    return hide_padding(logits_BTV, model.vocabulary)


def hide_padding(logits: jax.Array, vocabulary: int) -> jax.Array:
    """Mask the vocabulary's padding in logits, which may be this device's shard of them."""
    rows = logits.shape[-1]
    if rows * axis_size("tensor") == vocabulary:
        return logits
    is_real = axis_index("tensor") * rows + jnp.arange(rows) < vocabulary
    return jnp.where(is_real, logits, jnp.finfo(jnp.float32).min)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def unstack(tree: Params, n: int) -> list[Params]:
    """Split stacked layers into a list; the gradient stacks them again in a single copy.

    JAX's own gradient would be a sum of n zero-padded arrays.
    """
    return [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(n)]


def _unstack_forward(tree, n):
    return unstack(tree, n), None


def _unstack_backward(n, _, gradients):
    return (jax.tree.map(lambda *leaves: jnp.stack(leaves), *gradients),)


unstack.defvjp(_unstack_forward, _unstack_backward)
