"""Weights stored for decoding, which is bound by the bandwidth of reading them.

    full       unchanged; on CPUs and GPUs transposed to one row per output, which XLA reads faster
    bfloat16   rounded
    int8       integers from -127 to 127, with a scale per output

Only storage is smaller: products are computed in the dtype of activations.

Legend: I in, O out (for the embedding: width and tokens), M rows, N layers.
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
"""Matrix size from which, for one row on a CPU, XLA's library call is faster than the loop that it
emits otherwise (a 12M model: 287 tokens/s with this threshold, 253 with loops only, 239 with
library calls only; medians of 3, 2 cores of Zen 4)."""

FEW_ROWS = 128
"""Number of rows up to which XLA's CPU library is faster with the matrix as the left operand (six
of GPT-3 Small's layers: 16 rows 16 ms instead of 29, 128 rows 120 and 128, 1,024 rows 939 and 734;
2 cores of Zen 4)."""


@struct.dataclass
class Quantized:
    """A kernel or the token embedding, stored with one row per output."""

    values: jax.Array
    """[O, I]."""
    scale: jax.Array
    """float32 [O], positive; all ones except for int8. The multiplication makes XLA's CPU backend
    convert narrow values inside the product's loop, without a float32 copy of the matrix."""
    shape: tuple[int, ...] = struct.field(pytree_node=False)
    """Shape of the original array."""

    def dot(self, x_MI: jax.Array) -> jax.Array:
        """x times the matrix, [M, O], in the dtype of x."""
        return (self._dot(x_MI) * self.scale).astype(x_MI.dtype)

    def _dot(self, x_MI: jax.Array) -> jax.Array:
        dtype, is_small = x_MI.dtype, self.values.dtype != x_MI.dtype
        if platform() == "gpu" and is_small and len(x_MI) == 1:
            # A reduction converts as it reads. A product would get a converted copy of the
            # embedding, of twice the bytes, for each token.
            return jnp.sum(self.values.astype(jnp.float32) * x_MI.astype(jnp.float32), -1)[None]
        if platform() != "cpu":
            return x_MI @ self.values.astype(dtype).T
        if len(x_MI) == 1 and (is_small or self.values.size < LARGE):
            return self._materialized(x_MI, dtype) @ self.values.astype(dtype).T
        w_OI = self._materialized(self.values, dtype) if is_small else self.values
        if len(x_MI) > FEW_ROWS:
            return x_MI @ w_OI.T
        # Without the barrier XLA swaps the operands, and its library then reads the matrix at half
        # the rate for 2 to 16 rows (GPT-3 Small, 8 rows, 2 cores of Zen 4: 64 ms instead of 30).
        return jax.lax.optimization_barrier(w_OI @ x_MI.T).T

    def rows(self, index: jax.Array) -> jax.Array:
        """Rows by index, [..., I]."""
        values = jnp.take(self.values, index, axis=0)
        return values * jnp.take(self.scale, index)[..., None]

    def _materialized(self, value: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """`value` in this dtype, computed before the product instead of inside its loop.

        XLA's CPU backend would fuse a preceding norm into the loop and recompute it for each
        output (or, with several rows, convert the matrix for each row), and it drops optimization
        barriers here. It does keep a conditional, although only one branch is ever taken, since no
        scale is 0. This doubles the speed of int8.
        """
        return jax.lax.cond(
            self.scale[0] > 0,
            lambda value: value.astype(dtype),
            lambda value: jnp.zeros(value.shape, dtype),
            value,
        )


def quantize(params: Params, weights: Weights) -> Params:
    """Convert kernels and the token embedding to `Quantized`; the small rest is unchanged.

    Args:
      params: parameters with `layers` as a list.
      weights: storage format; `full` changes the layout only, and not on TPUs.
    """
    if weights == "full" and platform() == "tpu":
        return params
    layers = [_over_kernels(layer, weights, _pack) for layer in params["layers"]]
    embedding = params["token_embedding"]
    rows = _rows_of(embedding, weights, embedding.shape)
    return {**params, "layers": layers, "token_embedding": rows}


def quantize_and_restore(params: Params, weights: Weights) -> Params:
    """Quantize and dequantize, to measure the loss in quality; `layers` stacked."""
    if weights == "full":
        return params

    def round_trip(kernel_N, weights, n_in):
        return jax.vmap(lambda kernel: _unpack(_pack(kernel, weights, n_in)))(kernel_N)

    embedding = params["token_embedding"]
    rows = _rows_of(embedding, weights, embedding.shape)
    return {
        **params,
        "layers": _over_kernels(params["layers"], weights, round_trip),
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
    """Quantize a kernel whose first `n_in` axes are contracted."""
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
