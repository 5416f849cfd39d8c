"""Matrix products of numbers rounded to eight bits, as Hopper and later GPUs multiply them.

    forward    x e4m3 (3 bits of fraction, up to 448)     w e4m3
    backward   dy e5m2 (2 bits, up to 57,344)             with the rounded x and w

Micikevicius et al. 2022, arXiv 2209.05433. Each array has one scale, of its own largest number
here and now: a power of two, so that scaling rounds nothing and its product is exact in bfloat16,
too. Nothing is kept from step to step. Each device scales its own part, so losses on two meshes
differ by roundings. Where a platform has no such products, as CPUs, XLA computes the same numbers
in a wider format.

Only the layers' matrices: embeddings, head, attention and norms stay as they are.

Legend: M rows, I in, O out.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

FORWARD, BACKWARD = jnp.float8_e4m3fn, jnp.float8_e5m2


@struct.dataclass
class Rounded:
    """An array of eight-bit numbers, and the power of two that they are multiplied by."""

    values: jax.Array
    scale: jax.Array
    """float32 scalar."""

    @property
    def T(self) -> Rounded:  # noqa: N802 (as of arrays)
        return Rounded(self.values.T, self.scale)


@jax.custom_vjp
def matmul(x_MI: jax.Array, w_IO: jax.Array) -> jax.Array:
    """x @ w of both rounded; so are their gradients' products."""
    return _matmul_forward(x_MI, w_IO)[0]


def _matmul_forward(x_MI, w_IO):
    x, w = rounded(x_MI, FORWARD), rounded(w_IO, FORWARD)
    return _product(x, w, x_MI.dtype), (x, w, jnp.zeros((), w_IO.dtype))


def _matmul_backward(residuals, dy_MO):
    x, w, like_w = residuals
    dy = rounded(dy_MO, BACKWARD)
    return _product(dy, w.T, dy_MO.dtype), _product(x.T, dy, like_w.dtype)


matmul.defvjp(_matmul_forward, _matmul_backward)


def rounded(x: jax.Array, dtype: jnp.dtype) -> Rounded:
    """The nearest numbers of the format, the largest at most a factor of two below its end.

    What is not finite stays so, and makes the step's loss not finite.
    """
    largest = jnp.abs(x).max().astype(jnp.float32)
    _, exponent = jnp.frexp(largest / float(jnp.finfo(dtype).max))
    scale = jnp.ldexp(jnp.float32(1), exponent)
    return Rounded((x / scale.astype(x.dtype)).astype(dtype), scale)


def _product(a: Rounded, b: Rounded, dtype: jnp.dtype) -> jax.Array:
    product = jax.lax.dot(a.values, b.values, preferred_element_type=dtype)
    return product * (a.scale * b.scale).astype(dtype)
