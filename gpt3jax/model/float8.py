"""Matrix products in float8, for Hopper and later GPUs (Micikevicius et al. 2022, 2209.05433).

    forward    x e4m3 (3 mantissa bits, maximum 448)     w e4m3
    backward   dy e5m2 (2 bits, maximum 57,344)          with the quantized x and w

Scaling is dynamic and per tensor: each array has one scale, computed from its current maximum, and
no history is stored. The scale is a power of two, so that scaling is exact, also in bfloat16. Each
device scales its own shard, so losses on two meshes differ by rounding. On platforms without
float8 products, such as CPUs, XLA computes the same numbers in a wider format.

Only the matrices of the layers use float8; embeddings, head, attention and norms do not.

Legend: M rows, I in, O out.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike

FORWARD, BACKWARD = jnp.float8_e4m3fn, jnp.float8_e5m2


@struct.dataclass
class ScaledArray:
    """A float8 array and its scale; it represents `values * scale`."""

    values: jax.Array
    scale: jax.Array
    """float32 scalar, a power of two."""

    @property
    def T(self) -> ScaledArray:  # noqa: N802 (the name that arrays use)
        return ScaledArray(self.values.T, self.scale)


@jax.custom_vjp
def matmul(x_MI: jax.Array, w_IO: jax.Array) -> jax.Array:
    """x @ w in float8, forward and backward."""
    return _matmul_forward(x_MI, w_IO)[0]


def _matmul_forward(x_MI, w_IO):
    x, w = to_float8(x_MI, FORWARD), to_float8(w_IO, FORWARD)
    return _product(x, w, x_MI.dtype), (x, w, jnp.zeros((), w_IO.dtype))


def _matmul_backward(residuals, dy_MO):
    x, w, like_w = residuals
    dy = to_float8(dy_MO, BACKWARD)
    return _product(dy, w.T, dy_MO.dtype), _product(x.T, dy, like_w.dtype)


matmul.defvjp(_matmul_forward, _matmul_backward)


def to_float8(x: jax.Array, dtype: DTypeLike) -> ScaledArray:
    """Quantize x, scaled so that its maximum is within a factor of two of the format's.

    Infinities and NaN propagate, so that the loss of the step is not finite either.
    """
    largest = jnp.abs(x).max().astype(jnp.float32)
    _, exponent = jnp.frexp(largest / float(jnp.finfo(dtype).max))
    scale = jnp.ldexp(jnp.float32(1), exponent)
    return ScaledArray((x / scale.astype(x.dtype)).astype(dtype), scale)


def _product(a: ScaledArray, b: ScaledArray, dtype: DTypeLike) -> jax.Array:
    product = jax.lax.dot(a.values, b.values, preferred_element_type=dtype)
    return product * (a.scale * b.scale).astype(dtype)
