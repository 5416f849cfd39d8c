"""Collective matrix products: tokens are passed around the `tensor` axis during the product.

    gather_matmul    sharded tokens -> all tokens, this device's columns     (into attention, MLP)
    matmul_scatter   all tokens, this device's rows of w -> sum, sharded tokens         (back out)

Each device multiplies its current chunk of tokens while it sends it on, half of the chunk in each
direction, so that links are used both ways and no array of all tokens at full width is needed. The
two functions are each other's transpose. (Wang et al. 2023, "Overlap Communication with Dependent
Computation via Decomposition".)

Legend: B windows, t tokens of one device, T of all devices, I in, O out.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from gpt3jax.sharding.collectives import all_gather, axis_index, axis_size

AXIS = "tensor"


@jax.custom_vjp
def gather_matmul(x_BtI: jax.Array, w_IO: jax.Array) -> jax.Array:
    """x @ w for all tokens, [B, T, O], with this device's columns of w."""
    return _gather_matmul(x_BtI, w_IO)[0]


def _gather_forward(x_BtI, w_IO):
    return gather_matmul(x_BtI, w_IO), (x_BtI, w_IO)


def _gather_backward(residuals, dy_BTO):
    x_BtI, w_IO = residuals
    dx_BtI = _matmul_scatter(dy_BTO, w_IO.T)
    return _together(dx_BtI, _weight_gradient(all_gather(x_BtI, AXIS, 1), dy_BTO))


gather_matmul.defvjp(_gather_forward, _gather_backward)


@jax.custom_vjp
def matmul_scatter(x_BTI: jax.Array, w_IO: jax.Array) -> jax.Array:
    """x @ w summed over the devices, this device's tokens of it, [B, t, O]."""
    return _matmul_scatter(x_BTI, w_IO)


def _scatter_forward(x_BTI, w_IO):
    return matmul_scatter(x_BTI, w_IO), (x_BTI, w_IO)


def _scatter_backward(residuals, dy_BtO):
    x_BTI, w_IO = residuals
    dx_BTI, dy_BTO = _gather_matmul(dy_BtO, w_IO.T)
    return _together(dx_BTI, _weight_gradient(x_BTI, dy_BTO))


matmul_scatter.defvjp(_scatter_forward, _scatter_backward)


def _together(dx, dw):
    """A barrier over both: otherwise XLA delays every dw to the end of the layer.

    For 175B on 1,024 v5p chips that costs 1.3 GiB more per chip (jax 0.10.2, compiled).
    """
    return jax.lax.optimization_barrier((dx, dw))


def _weight_gradient(x_BTI, dy_BTO):
    return x_BTI.reshape(-1, x_BTI.shape[-1]).T @ dy_BTO.reshape(-1, dy_BTO.shape[-1])


def _gather_matmul(x_BtI, w_IO):
    """The product for all tokens, and the gathered tokens."""
    B, t, I = x_BtI.shape  # noqa: E741
    y_BTO = jnp.zeros((B, axis_size(AXIS) * t, w_IO.shape[1]), x_BtI.dtype)
    x_BTI = jnp.zeros((B, axis_size(AXIS) * t, I), x_BtI.dtype)
    for start, stop, direction in _halves(t):
        for source, part in _passing(x_BtI[:, start:stop], direction):
            place = source * t + start
            y_BTO = jax.lax.dynamic_update_slice_in_dim(y_BTO, part @ w_IO, place, 1)
            x_BTI = jax.lax.dynamic_update_slice_in_dim(x_BTI, part, place, 1)
    return y_BTO, x_BTI


def _matmul_scatter(x_BTI, w_IO):
    """Partial sums, passed around and accumulated until they reach their device."""
    n, me = axis_size(AXIS), axis_index(AXIS)
    t = x_BTI.shape[1] // n

    def product(owner, start, stop):
        return jax.lax.dynamic_slice_in_dim(x_BTI, owner * t + start, stop - start, 1) @ w_IO

    sums = []
    for start, stop, direction in _halves(t):
        owners = [(me + direction * (n - 1 - hop)) % n for hop in range(n)]
        partial_sum = product(owners[0], start, stop)
        for owner in owners[1:]:
            partial_sum = _pass_on(partial_sum, direction) + product(owner, start, stop)
        sums.append(partial_sum)
    return jnp.concatenate(sums, axis=1)


def _halves(t: int) -> list[tuple[int, int, int]]:
    """(start, stop, direction) of the two parts of t tokens, which travel in opposite ways."""
    return [(0, t // 2, 1), (t // 2, t, -1)] if t > 1 else [(0, t, 1)]


def _passing(x: jax.Array, direction: int) -> Iterator[tuple[jax.Array | int, jax.Array]]:
    """(device index, its x) for every device along the ring, starting with this one."""
    n, me = axis_size(AXIS), axis_index(AXIS)
    for hop in range(n):
        yield (me - direction * hop) % n, x
        if hop < n - 1:
            x = _pass_on(x, direction)


def _pass_on(x: jax.Array, direction: int) -> jax.Array:
    n = axis_size(AXIS)
    return jax.lax.ppermute(x, AXIS, [(i, (i + direction) % n) for i in range(n)])
