"""The parts of a layer as functions: layer norm, linear, MLP, embeddings.

Legend: B batch, T tokens, D model width, F MLP width, V vocabulary (padded),
M rows of a flattened matrix, I in, O out.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp

from gpt3jax.config import Model
from gpt3jax.model.params import Params
from gpt3jax.sharding.rules import constrain

NORM_EPSILON = 1e-5


def layer_norm(params: Params, x_BTD: jax.Array) -> jax.Array:
    """Normalise each token over the width, in float32 (biased variance, epsilon 1e-5)."""
    x = x_BTD.astype(jnp.float32)
    mean = x.mean(-1, keepdims=True)
    variance = jnp.square(x - mean).mean(-1, keepdims=True)
    y = (x - mean) * jax.lax.rsqrt(variance + NORM_EPSILON)
    return (y * params["gain"] + params["bias"]).astype(x_BTD.dtype)


@jax.custom_vjp
def matmul(x_MI: jax.Array, w_IO: jax.Array) -> jax.Array:
    """x @ w, with the weight gradient written as x.T @ dy.

    JAX derives (dy.T @ x).T for it, and XLA's CPU backend then transposes every
    activation: 12 % of a training step (12M shape, 2 cores, jax 0.10.2).
    """
    return x_MI @ w_IO


def _matmul_forward(x_MI, w_IO):
    return x_MI @ w_IO, (x_MI, w_IO)


def _matmul_backward(residuals, dy_MO):
    x_MI, w_IO = residuals
    return dy_MO @ w_IO.T, x_MI.T @ dy_MO


matmul.defvjp(_matmul_forward, _matmul_backward)


def linear(params: Params, x: jax.Array, n_in: int = 1) -> jax.Array:
    """Contract the last `n_in` axes of x with the first `n_in` of the kernel; add the bias."""
    kernel = params["kernel"]
    lead, out_shape = x.shape[: x.ndim - n_in], kernel.shape[n_in:]
    width = math.prod(kernel.shape[:n_in])
    y = matmul(x.reshape(-1, width), kernel.reshape(width, -1))
    return y.reshape(*lead, *out_shape) + params["bias"]


def mlp(params: Params, x_BTD: jax.Array) -> jax.Array:
    """Up to 4D, GELU in its tanh form (GPT-2's), down to D."""
    h_BTF = jax.nn.gelu(linear(params["up"], x_BTD), approximate=True)
    return linear(params["down"], constrain(h_BTF, "batch", None, "mlp"))


def embed(params: Params, tokens_BT: jax.Array, start: jax.Array | int) -> jax.Array:
    """Token embedding plus the learned position, counted from `start`."""
    positions_TD = jax.lax.dynamic_slice_in_dim(
        params["position_embedding"], start, tokens_BT.shape[1]
    )
    # Gathered over fsdp first: a lookup in rows split by width would be replicated.
    rows_VD = constrain(params["token_embedding"], "vocab", None)
    x_BTD = jnp.take(rows_VD, tokens_BT, axis=0) + positions_TD
    return constrain(x_BTD, "batch", None, None)


def unembed(params: Params, x_BTD: jax.Array, model: Model) -> jax.Array:
    """Final norm, then float32 logits over the padded vocabulary (head tied to the embedding).

    Rows past the vocabulary get the most negative float, so that they have no
    probability and no gradient.
    """
    x_BTD = layer_norm(params["final_norm"], x_BTD)
    w_DV = params["token_embedding"].T
    logits = matmul(x_BTD.reshape(-1, model.d_model), w_DV)
    logits_BTV = logits.reshape(*x_BTD.shape[:-1], -1).astype(jnp.float32)
    if len(params["token_embedding"]) > model.vocabulary:
        is_real = jnp.arange(logits_BTV.shape[-1]) < model.vocabulary
        logits_BTV = jnp.where(is_real, logits_BTV, jnp.finfo(jnp.float32).min)
    return constrain(logits_BTV, "batch", None, "vocab")


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def unstack(tree: Params, n: int) -> list[Params]:
    """Split stacked layers into a list; the gradient stacks them back in one copy.

    JAX would derive a sum of n zero-padded arrays for the gradient.
    """
    return [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(n)]


def _unstack_forward(tree, n):
    return unstack(tree, n), None


def _unstack_backward(n, _, gradients):
    return (jax.tree.map(lambda *leaves: jnp.stack(leaves), *gradients),)


unstack.defvjp(_unstack_forward, _unstack_backward)
