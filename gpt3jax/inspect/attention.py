"""What attention looks at, head by head, in a few numbers by which heads can be told apart.

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
"""Tokens of the stretch that is repeated to find induction heads."""


@struct.dataclass
class HeadFacts:
    """One number for each head, means over queries; [H]."""

    entropy: jax.Array
    """Of where it looks, nats: 0 for one token only."""
    distance: jax.Array
    """How many tokens back it looks, on average."""
    itself: jax.Array
    """Weight on the token itself."""
    previous: jax.Array
    """Weight on the token before, of all queries but the first; NaN where there is no other."""
    first: jax.Array
    """Weight on the first token, where heads with nothing to do look; of the same queries."""


@jax.jit
def head_facts(weights_HTT: jax.Array) -> HeadFacts:
    """Sum up the attention weights of a layer, of one text."""
    T = weights_HTT.shape[-1]
    places = jnp.arange(T)
    back_TS = places[:, None] - places[None, :]
    log_HTS = jnp.log(jnp.where(weights_HTT > 0, weights_HTT, 1))
    return HeadFacts(
        entropy=-(weights_HTT * log_HTS).sum(-1).mean(-1),
        distance=(weights_HTT * back_TS).sum(-1).mean(-1),
        itself=jnp.diagonal(weights_HTT, axis1=1, axis2=2).mean(-1),
        previous=jnp.diagonal(weights_HTT, -1, 1, 2).sum(-1) / (T - 1),
        first=weights_HTT[:, 1:, 0].sum(-1) / (T - 1),
    )


def induction(params: Params, model: Model, seed: int = 0) -> np.ndarray:
    """How far each head looks for what followed last time, [N, H] from 0 to 1.

    A stretch of random tokens is read twice. In the second half an induction head
    looks at the token that came after the same token in the first (Olsson et al.
    2022, arXiv 2209.11895); the score is its mean weight there. The stretch is short
    enough for a band to reach back, where there is one; NaN if no context holds it twice.
    """
    banded = not all(map(model.is_dense, range(model.n_layers)))
    reach = min(model.band - 1 if banded else model.context, model.context // 2)
    length = max(1, min(LONGEST_REPEAT, reach))
    if 2 * length > model.context:
        return np.full((model.n_layers, model.n_heads), np.nan)
    drawn = np.random.default_rng(seed).integers(0, model.vocabulary, length)
    tokens_1T = jnp.asarray(np.tile(drawn, 2), jnp.int32)[None]
    found = capture(params, tokens_1T, model, ("queries", "keys")).activations
    scores = []
    for layer in range(model.n_layers):
        weights_1HTT = attention_of(found, layer, model)
        # Query i, key i - length + 1.
        after = np.diagonal(np.asarray(weights_1HTT)[0], 1 - length, 1, 2)
        scores.append(after[:, 1:].mean(-1))
    return np.stack(scores)
