"""The gradient noise scale: how large a batch is before a larger one stops paying.

McCandlish et al. 2018 (arXiv 1812.06162), appendix A.1; Brown et al. chose their batch
sizes by it (section 2.3). With the gradient's true value G and, of one token, covariance
Sigma, a gradient over b tokens has the expected square |G|^2 + tr(Sigma) / b. Squares at
two sizes of batch give both, without bias:

    |G|^2     = (B |g_B|^2 - b |g_b|^2) / (B - b)
    tr(Sigma) = (|g_b|^2 - |g_B|^2) / (1/b - 1/B)

and the noise scale is tr(Sigma) / |G|^2, in tokens. Where gradients are accumulated, those
of the microbatches are there already: it costs their squares, and no pass.
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
"""Of the averages from one logged step to the next."""
SIDES = ("grad_square", "grad_variance")
"""Names of the two sides in the metrics."""

Squares = dict[int, jax.Array]
"""Squares of gradients, by how many devices hold an own share of the batch for them."""


def small_squares(gradients: Any, parts: Any) -> Squares:
    """|g_b|^2 of a microbatch before devices add up, this device's part.

    What devices hold whole along `data` or `fsdp` is one gradient for each, of a smaller
    batch: the mean of their squares counts, and its size of batch is its own.

    Args:
      gradients: each device's own.
      parts: the PartitionSpec of each.
    """
    found: Squares = {}
    for gradient, part in _pairs(gradients, parts):
        shares, copies = _shares(part)
        if copies > 1:
            # Devices along `tensor` have parts of the same windows.
            gradient = psum(gradient, "tensor")
        square = jnp.sum(jnp.square(gradient)) * (shares / copies)
        found[shares] = found.get(shares, jnp.zeros(())) + square
    return found


def estimate(
    small: Squares, gradients: Any, parts: Any, tokens: int, microbatches: jax.Array
) -> dict[str, jax.Array]:
    """Both sides of the noise scale, of one step; NaN where there is but one size of batch.

    Args:
      small: added up over the microbatches.
      gradients: of the whole batch, this device's part.
      parts: the PartitionSpec of each.
      tokens: in a microbatch, over all devices.
      microbatches: how many.

    Returns:
      `grad_square`, |G|^2, and `grad_variance`, tr(Sigma) of one token.
    """
    big: Squares = {}
    for gradient, part in _pairs(gradients, parts):
        shares, copies = _shares(part)
        square = jnp.sum(jnp.square(gradient)) / (shares * copies)
        big[shares] = big.get(shares, jnp.zeros(())) + square
    square = variance = jnp.zeros(())
    for shares, of_big in big.items():
        at_small, at_big = tokens / shares, tokens * microbatches
        of_small, of_big = psum(small[shares], *AXES) / microbatches, psum(of_big, *AXES)
        apart = jnp.where(at_big > at_small, at_big - at_small, jnp.nan)
        square += (at_big * of_big - at_small * of_small) / apart
        variance += (of_small - of_big) * at_small * at_big / apart
    return {"grad_square": square, "grad_variance": variance}


def _pairs(gradients: Any, parts: Any) -> Iterable[tuple[jax.Array, PartitionSpec]]:
    return zip(jax.tree.leaves(gradients), jax.tree.leaves(parts), strict=True)


def _shares(part: PartitionSpec) -> tuple[int, int]:
    """Devices with an own share of the batch for a leaf, and with a copy for the same share."""
    whole = [axis for axis in AXES if axis not in part]
    copies = axis_size("tensor") if "tensor" in whole else 1
    return axis_size(*(axis for axis in whole if axis != "tensor")), copies


class NoiseScale:
    """The noise scale over the logged steps: an average of each side, then their ratio.

    Given the records of earlier sessions, it continues as if training had not been interrupted.
    """

    def __init__(self, log_every: int, records: Iterable[dict[str, Any]] = ()):
        self._log_every = log_every
        self._square = self._variance = 0.0
        for record in records:
            self._see(record, record["step"])

    def add(self, record: dict[str, float], step: int, is_complete: bool) -> dict[str, float]:
        """The record of a step with `noise_scale`, tokens, where it can be estimated.

        Both sides are left out of the record where they have no meaning: where there was one
        microbatch, or (`is_complete` False) the last one was padded.
        """
        sides = {name: record[name] for name in SIDES if name in record}
        if not is_complete or not all(map(math.isfinite, sides.values())):
            return {name: value for name, value in record.items() if name not in SIDES}
        scale = self._see(record, step)
        return record if scale is None else record | {"noise_scale": scale}

    def _see(self, record: dict[str, Any], step: int) -> float | None:
        """The noise scale after a record; None if the record has no estimate, or there is none yet.

        A step that was logged only because the run stopped there does not enter the averages.
        """
        square, variance = (record.get(name) for name in SIDES)
        if square is None or variance is None or step % self._log_every:
            return None
        # Both averages start at zero, and the bias cancels in the ratio.
        self._square += (1 - DECAY) * (square - self._square)
        self._variance += (1 - DECAY) * (variance - self._variance)
        # Small differences of noisy numbers: either can be negative at first.
        is_known = self._square > 0 and self._variance > 0
        return self._variance / self._square if is_known else None
