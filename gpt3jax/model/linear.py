"""Matrix products of a layer, for every kind of weight and mesh: `linear` and `linear_sum`.

    dot          a single product: of arrays, in float8 (float8.py), or with quantized weights
                 (quantized.py)
    linear       column parallel: tokens sharded over `tensor` in; all tokens, and this device's
                 heads or units, out
    linear_sum   row parallel: the inverse, summed over devices

LoRA needs no product here: its update is added to the kernel first (lora.py).

Legend: B batch, T tokens, M rows of a flattened matrix, I in, O out.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp

from gpt3jax.config import Model
from gpt3jax.model import float8
from gpt3jax.model.init import Params
from gpt3jax.model.quantized import Quantized
from gpt3jax.sharding.collectives import axis_size
from gpt3jax.sharding.ring import gather_matmul, matmul_scatter


def dot(x_MI: jax.Array, w: jax.Array | Quantized, in_float8: bool = False) -> jax.Array:
    """x @ w, [M, O]; `in_float8` applies to arrays [I, O], not to quantized weights."""
    if isinstance(w, Quantized):
        return w.dot(x_MI)
    return float8.matmul(x_MI, w) if in_float8 else matmul(x_MI, w)


@jax.custom_vjp
def matmul(x_MI: jax.Array, w_IO: jax.Array) -> jax.Array:
    """x @ w, with the weight gradient written as x.T @ dy.

    JAX derives (dy.T @ x).T, for which earlier XLA CPU backends transposed every activation.
    With jax 0.10.2 both compile to the same program (CONTRIBUTING.md, "Next").
    """
    return x_MI @ w_IO


def _matmul_forward(x_MI, w_IO):
    return x_MI @ w_IO, (x_MI, w_IO)


def _matmul_backward(residuals, dy_MO):
    x_MI, w_IO = residuals
    return dy_MO @ w_IO.T, x_MI.T @ dy_MO


matmul.defvjp(_matmul_forward, _matmul_backward)


def linear(params: Params, x_BTI: jax.Array, model: Model) -> jax.Array:
    """Contract the last axis of x with the first axis of the kernel; add the bias."""
    kernel = params["kernel"]
    y_BTO = _product(model, gather_matmul)(x_BTI, _as_matrix(kernel, 1))
    y_BTO = add_to_each(y_BTO, params["bias"].reshape(-1))
    return y_BTO.reshape(*y_BTO.shape[:2], *kernel.shape[1:])


def linear_sum(params: Params, x: jax.Array, model: Model, n_in: int = 1) -> jax.Array:
    """Contract the last `n_in` axes of x [B, T, ...] with the first of the kernel; add the bias."""
    w_IO = _as_matrix(params["kernel"], n_in)
    y_BTO = _product(model, matmul_scatter)(x.reshape(*x.shape[:2], -1), w_IO)
    return add_to_each(y_BTO, params["bias"])


def add_to_each(x: jax.Array, addend: jax.Array) -> jax.Array:
    """x + addend, broadcast over the leading axes of x; the addend's gradient is summed in float32.

    JAX's own gradient would be summed in the dtype of the activations, and in bfloat16 a sum over
    thousands of tokens loses most of its digits.
    """
    wide = jnp.broadcast_to(addend.astype(jnp.float32), x.shape)
    return x + wide.astype(x.dtype)


def _product(model: Model, over_tensor):
    """The product of tokens [B, T, I] with a matrix; `over_tensor` if that axis is sharded."""
    if axis_size("tensor") > 1:
        return over_tensor
    return partial(_dot_tokens, in_float8=model.dtype == "float8")


def _dot_tokens(x_BTI, w_IO, in_float8):
    y_MO = dot(x_BTI.reshape(-1, x_BTI.shape[-1]), w_IO, in_float8)
    return y_MO.reshape(*x_BTI.shape[:2], -1)


def _as_matrix(kernel: jax.Array | Quantized, n_in: int) -> jax.Array | Quantized:
    """The kernel as a matrix [I, O], I being its first `n_in` axes; quantized ones already are."""
    if isinstance(kernel, Quantized):
        return kernel
    return kernel.reshape(math.prod(kernel.shape[:n_in]), -1)
