"""The gradient noise scale, an estimate of the critical batch size.

McCandlish et al. 2018 (arXiv 1812.06162), appendix A.1; Brown et al. used it to choose batch sizes
(section 2.3). With the true gradient G and the covariance Sigma of one token's gradient, a gradient
over b tokens has the expected square |G|^2 + tr(Sigma) / b. Squares at two batch sizes give
unbiased estimates of both:

    |G|^2     = (B |g_B|^2 - b |g_b|^2) / (B - b)
    tr(Sigma) = (|g_b|^2 - |g_B|^2) / (1/b - 1/B)

and the noise scale is tr(Sigma) / |G|^2, in tokens. Gradient accumulation already computes the
gradients of microbatches, so the additional cost is only that of their squares.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from gpt3jax.sharding.axes import AXES
from gpt3jax.sharding.collectives import axis_size, psum

DECAY = 0.95
"""Decay of the moving averages per logged step."""
SIDES = ("grad_square", "grad_variance")
"""Names of the two estimates in the metrics."""

Squares = dict[int, jax.Array]
"""Squared norms of gradients, by the number of devices that have a separate share of the batch."""


def small_squares(gradients: Any, parts: Any) -> Squares:
    """|g_b|^2 of a microbatch before the gradients are summed over devices; this device's part.

    Parameters that are replicated along `data` or `fsdp` have one gradient per device, each of a
    smaller batch. The mean of their squares is used, with that batch size.

    Args:
      gradients: this device's gradients.
      parts: the PartitionSpec of each.
    """
    squares: Squares = {}
    for gradient, part in _pairs(gradients, parts):
        shares, copies = _shares(part)
        if copies > 1:
            # Devices along `tensor` share the same windows.
            gradient = psum(gradient, "tensor")
        square = jnp.sum(jnp.square(gradient)) * (shares / copies)
        squares[shares] = squares.get(shares, jnp.zeros(())) + square
    return squares


def estimate(
    small: Squares, gradients: Any, parts: Any, tokens: int, microbatches: jax.Array
) -> dict[str, jax.Array]:
    """Both estimates for one step; NaN if there is only one batch size.

    Args:
      small: `small_squares`, summed over the microbatches.
      gradients: gradients of the complete batch, this device's shards.
      parts: the PartitionSpec of each.
      tokens: tokens in a microbatch, over all devices.
      microbatches: number of microbatches.

    Returns:
      `grad_square`, |G|^2, and `grad_variance`, tr(Sigma) of one token.
    """
    big: Squares = {}
    for gradient, part in _pairs(gradients, parts):
        shares, copies = _shares(part)
        square = jnp.sum(jnp.square(gradient)) / (shares * copies)
        big[shares] = big.get(shares, jnp.zeros(())) + square
    square = variance = jnp.zeros(())
    for shares, big_square in big.items():
        small_tokens, big_tokens = tokens / shares, tokens * microbatches
        of_small, of_big = psum(small[shares], *AXES) / microbatches, psum(big_square, *AXES)
        difference = jnp.where(big_tokens > small_tokens, big_tokens - small_tokens, jnp.nan)
        square += (big_tokens * of_big - small_tokens * of_small) / difference
        variance += (of_small - of_big) * small_tokens * big_tokens / difference
    return {"grad_square": square, "grad_variance": variance}


def _pairs(gradients: Any, parts: Any) -> Iterable[tuple[jax.Array, PartitionSpec]]:
    return zip(jax.tree.leaves(gradients), jax.tree.leaves(parts), strict=True)


def _shares(part: PartitionSpec) -> tuple[int, int]:
    """Number of devices with separate shares of the batch for a leaf, and of copies per share."""
    replicated = [axis for axis in AXES if axis not in part]
    copies = axis_size("tensor") if "tensor" in replicated else 1
    return axis_size(*(axis for axis in replicated if axis != "tensor")), copies


class NoiseScale:
    """The noise scale over the logged steps: the ratio of moving averages of both estimates.

    With the records of earlier sessions, it continues as if training had not been interrupted.
    """

    def __init__(self, log_every: int, records: Iterable[dict[str, Any]] = ()):
        self._log_every = log_every
        self._square = self._variance = 0.0
        for record in records:
            self._see(record, record["step"])

    def add(self, record: dict[str, float], step: int, is_complete: bool) -> dict[str, float]:
        """The record of a step with `noise_scale` in tokens, if it can be estimated.

        Removes both estimates from the record if they are invalid: with a single microbatch, or if
        the last one was padded (`is_complete` False).
        """
        sides = {name: record[name] for name in SIDES if name in record}
        if not is_complete or not all(map(math.isfinite, sides.values())):
            return {name: value for name, value in record.items() if name not in SIDES}
        scale = self._see(record, step)
        return record if scale is None else record | {"noise_scale": scale}

    def _see(self, record: dict[str, Any], step: int) -> float | None:
        """The noise scale after a record; None if the record has no estimate or it is too early.

        A step that was logged only because the run stopped there is ignored.
        """
        square, variance = (record.get(name) for name in SIDES)
        if square is None or variance is None or step % self._log_every:
            return None
        # Both averages start at zero; the bias cancels in the ratio.
        self._square += (1 - DECAY) * (square - self._square)
        self._variance += (1 - DECAY) * (variance - self._variance)
        # As differences of noisy numbers, both can be negative at first.
        is_known = self._square > 0 and self._variance > 0
        return self._variance / self._square if is_known else None
