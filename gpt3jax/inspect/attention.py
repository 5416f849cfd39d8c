"""Summary statistics of the attention weights of each head.

Legend: N layers, H heads, T query tokens, S key tokens.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from gpt3jax.config import Model
from gpt3jax.inspect.capture import attention_of, capture
from gpt3jax.model.init import Params

LONGEST_REPEAT = 64
"""Length of the repeated sequence that identifies induction heads, in tokens."""


@struct.dataclass
class HeadStats:
    """Statistics of each head, averaged over queries; [H]."""

    entropy: jax.Array
    """Entropy of the attention weights, nats; 0 if all weight is on one token."""
    distance: jax.Array
    """Mean distance to the attended tokens."""
    itself: jax.Array
    """Weight on the query's own token."""
    previous: jax.Array
    """Weight on the previous token, over all queries but the first; NaN for a single token."""
    first: jax.Array
    """Weight on the first token, which idle heads attend to; over the same queries."""


@jax.jit
def head_stats(weights_HTT: jax.Array) -> HeadStats:
    """Statistics of the attention weights of one layer and one text."""
    T = weights_HTT.shape[-1]
    positions = jnp.arange(T)
    distance_TS = positions[:, None] - positions[None, :]
    log_HTS = jnp.log(jnp.where(weights_HTT > 0, weights_HTT, 1))
    return HeadStats(
        entropy=-(weights_HTT * log_HTS).sum(-1).mean(-1),
        distance=(weights_HTT * distance_TS).sum(-1).mean(-1),
        itself=jnp.diagonal(weights_HTT, axis1=1, axis2=2).mean(-1),
        previous=jnp.diagonal(weights_HTT, -1, 1, 2).sum(-1) / (T - 1),
        first=weights_HTT[:, 1:, 0].sum(-1) / (T - 1),
    )


def induction(params: Params, model: Model, seed: int = 0) -> np.ndarray:
    """The induction score of each head, [N, H] from 0 to 1.

    The model reads a sequence of random tokens twice. In the second half an induction head attends
    to the token that followed the same token in the first half (Olsson et al. 2022, arXiv
    2209.11895). The score is its mean weight on that token. The sequence is short enough for the
    band of banded layers to reach back; the score is NaN if the context cannot fit it twice.
    """
    banded = not all(map(model.is_dense, range(model.n_layers)))
    reach = min(model.band - 1 if banded else model.context, model.context // 2)
    length = max(1, min(LONGEST_REPEAT, reach))
    if 2 * length > model.context:
        return np.full((model.n_layers, model.n_heads), np.nan)
    drawn = np.random.default_rng(seed).integers(0, model.vocabulary, length)
    tokens_1T = jnp.asarray(np.tile(drawn, 2), jnp.int32)[None]
    activations = capture(params, tokens_1T, model, ("queries", "keys")).activations
    scores = []
    for layer in range(model.n_layers):
        weights_1HTT = attention_of(activations, layer, model)
        # Query i, key i - length + 1.
        diagonal = np.diagonal(np.asarray(weights_1HTT)[0], 1 - length, 1, 2)
        scores.append(diagonal[:, 1:].mean(-1))
    return np.stack(scores)
