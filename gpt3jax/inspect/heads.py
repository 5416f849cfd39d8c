"""Attention weights and statistics of each head.

Legend: N layers, n shown layers, H heads, T query tokens, S key tokens, k stored weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt3jax.config import Model
from gpt3jax.inspect.capture import attention_of, capture
from gpt3jax.model.init import Params

MOST_WEIGHTS = 100_000
"""Maximum number of weights on the page; beyond it only the largest of each query are stored."""
FEWEST = 4
"""Minimum number of weights stored per query."""
LONGEST_REPEAT = 64
"""Length of the repeated sequence that identifies induction heads, in tokens."""
STATISTICS = ("entropy", "distance", "itself", "previous", "first")


def heads_record(
    params: Params,
    activations: dict[str, jax.Array],
    model: Model,
    layers: Sequence[int],
    on_progress: Callable[[float], None] = lambda share: None,
) -> dict[str, Any]:
    """Attention of one text, of which `queries` and `keys` were captured, in the given layers.

    Returns:
      `kept`, the number k of weights per query; `keys` (uint16) and `weights` (float32)
      [n, H, T, k], largest first; and `facts`: `induction` and STATISTICS, float32 [n, H].
    """
    T = activations["queries"].shape[2]
    count = min(T, max(FEWEST, MOST_WEIGHTS // (len(layers) * model.n_heads * T)))
    keys, weights, stats = [], [], []
    for layer in layers:  # One layer at a time: all weights are N x H x T x T numbers.
        summary = _summarize(attention_of(activations, layer, model), count)
        largest_HTk, keys_HTk, layer_stats = jax.tree.map(np.asarray, summary)
        weights.append(largest_HTk)
        keys.append(keys_HTk.astype(np.uint16))
        stats.append(layer_stats)
        on_progress(len(stats) / len(layers))
    return {
        "kept": count,
        "keys": np.stack(keys),
        "weights": np.stack(weights),
        "facts": {
            **{name: np.stack([each[name] for each in stats]) for name in STATISTICS},
            "induction": induction(params, model)[list(layers)].astype(np.float32),
        },
    }


@partial(jax.jit, static_argnames="count")
def _summarize(weights_1HTT, count):
    largest_HTk, keys_HTk = jax.lax.top_k(weights_1HTT[0], count)
    return largest_HTk, keys_HTk, head_stats(weights_1HTT[0])


@jax.jit
def head_stats(weights_HTT: jax.Array) -> dict[str, jax.Array]:
    """Statistics of the attention weights of one layer and one text, averaged over queries; [H].

    `entropy` of the weights, nats, 0 if all weight is on one token; mean `distance` to the
    attended tokens; weight on the query's own token (`itself`), on the `previous` token, and on
    the `first`, which idle heads attend to. The last two are over all queries but the first, and
    NaN for a single token.
    """
    T = weights_HTT.shape[-1]
    positions = jnp.arange(T)
    distance_TS = positions[:, None] - positions[None, :]
    log_HTS = jnp.log(jnp.where(weights_HTT > 0, weights_HTT, 1))
    return {
        "entropy": -(weights_HTT * log_HTS).sum(-1).mean(-1),
        "distance": (weights_HTT * distance_TS).sum(-1).mean(-1),
        "itself": jnp.diagonal(weights_HTT, axis1=1, axis2=2).mean(-1),
        "previous": jnp.diagonal(weights_HTT, -1, 1, 2).sum(-1) / (T - 1),
        "first": weights_HTT[:, 1:, 0].sum(-1) / (T - 1),
    }


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
