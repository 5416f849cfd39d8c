"""Matrices laid out for writing: one token at a time is bound by reading them.

    full       as they are; on CPUs with a row for each output, whose products are read faster
    bfloat16   rounded
    int8       whole numbers from -127 to 127, times a factor for each output

Only what is read is smaller: products are computed in the dtype of activations.

Legend: I in, O out (of the embedding: width and tokens), M rows, N layers.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from gpt3jax.config import Weights
from gpt3jax.model.init import Params
from gpt3jax.sharding.collectives import platform

LARGEST = 127
LARGE = 1 << 20
"""Numbers of a matrix from which on, for one row, XLA's library is faster than the loop that XLA
makes of a smaller one, on CPUs (a model of 12M: 287 tokens/s so, 253 by loops alone, 239 by the
library alone; medians of 3, 2 cores of Zen 4)."""

FEW_ROWS = 128
"""Up to which XLA's library for CPUs is faster with the matrix first (six of GPT-3 Small's layers:
16 rows 16 ms rather than 29, 128 rows 120 and 128, 1,024 rows 939 and 734; 2 cores of Zen 4)."""


@struct.dataclass
class Quantized:
    """A kernel, or the token embedding, with a row for each output."""

    values: jax.Array
    """[O, I]."""
    scale: jax.Array
    """float32 [O], above 0; all ones but of int8: with a factor behind it, XLA's CPU backend reads
    small values in the product's own loop, and writes no float32 copy of the matrix first."""
    shape: tuple[int, ...] = struct.field(pytree_node=False)
    """Of the array that it stands for."""

    def dot(self, x_MI: jax.Array) -> jax.Array:
        """x times the matrix, [M, O] in the dtype of x."""
        return (self._dot(x_MI) * self.scale).astype(x_MI.dtype)

    def _dot(self, x_MI: jax.Array) -> jax.Array:
        dtype, is_small = x_MI.dtype, self.values.dtype != x_MI.dtype
        if platform() != "cpu":
            return x_MI @ self.values.astype(dtype).T
        if len(x_MI) == 1 and (is_small or self.values.size < LARGE):
            return self._apart(x_MI, dtype) @ self.values.astype(dtype).T
        w_OI = self._apart(self.values, dtype) if is_small else self.values
        if len(x_MI) > FEW_ROWS:
            return x_MI @ w_OI.T
        # The barrier, or XLA turns it round, and its library reads the matrix at half the rate for
        # 2 to 16 rows (GPT-3 Small's, 8 rows, 2 cores of Zen 4: 64 ms rather than 30).
        return jax.lax.optimization_barrier(w_OI @ x_MI.T).T

    def rows(self, index: jax.Array) -> jax.Array:
        """Rows by number, [..., I]."""
        values = jnp.take(self.values, index, axis=0)
        return values * jnp.take(self.scale, index)[..., None]

    def _apart(self, value: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """A value in this dtype, computed before the product rather than in its loop.

        XLA's CPU backend would draw a norm into the loop and compute it for each output anew (of
        several rows, the float32 of a matrix for each row), and drops barriers against that. It
        keeps a choice, though there is only one: no scale is 0. Twice the rate of int8.
        """
        return jax.lax.cond(
            self.scale[0] > 0,
            lambda value: value.astype(dtype),
            lambda value: jnp.zeros(value.shape, dtype),
            value,
        )


def quantize(params: Params, weights: Weights) -> Params:
    """Kernels and the token embedding as `Quantized`; the rest, which is small, as it is.

    Args:
      params: with `layers` as a list.
      weights: `full` leaves all as it is, but for CPUs.
    """
    if weights == "full" and platform() != "cpu":
        return params
    layers = [_over_kernels(layer, weights, _pack) for layer in params["layers"]]
    embedding = params["token_embedding"]
    return {
        **params, "layers": layers,
        "token_embedding": _rows_of(embedding, weights, embedding.shape),
    }  # fmt: skip


def quantize_and_restore(params: Params, weights: Weights) -> Params:
    """The same values in arrays as they were: to measure what is lost; `layers` stacked."""
    if weights == "full":
        return params

    def there_and_back(kernel_N, weights, n_in):
        return jax.vmap(lambda kernel: _unpack(_pack(kernel, weights, n_in)))(kernel_N)

    embedding = params["token_embedding"]
    rows = _rows_of(embedding, weights, embedding.shape)
    return {
        **params,
        "layers": _over_kernels(params["layers"], weights, there_and_back),
        "token_embedding": rows.values * rows.scale[:, None],
    }


def _over_kernels(layer: Params, weights: Weights, change: Any) -> Params:
    return {
        name: {**part, "kernel": change(part["kernel"], weights, 2 if name == "out" else 1)}
        if "kernel" in part
        else part
        for name, part in layer.items()
    }


def _pack(kernel: jax.Array, weights: Weights, n_in: int) -> Quantized:
    """Of a kernel whose first `n_in` axes are contracted."""
    width = math.prod(kernel.shape[:n_in])
    return _rows_of(kernel.reshape(width, -1).T, weights, kernel.shape)


def _unpack(matrix: Quantized) -> jax.Array:
    return (matrix.values * matrix.scale[:, None]).T.reshape(matrix.shape)


def _rows_of(rows_OI: jax.Array, weights: Weights, shape: tuple[int, ...]) -> Quantized:
    if weights != "int8":
        values_OI = rows_OI.astype(jnp.bfloat16) if weights == "bfloat16" else rows_OI
        return Quantized(values_OI, jnp.ones(len(rows_OI)), shape)
    rows_OI = rows_OI.astype(jnp.float32)
    largest_O = jnp.abs(rows_OI).max(-1)
    scale_O = jnp.where(largest_O > 0, largest_O, 1) / LARGEST
    return Quantized(jnp.round(rows_OI / scale_O[:, None]).astype(jnp.int8), scale_O, shape)
