"""Attention weights and statistics of each head, for the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from gpt3jax.config import Model
from gpt3jax.inspect.attention import head_stats, induction
from gpt3jax.inspect.capture import attention_of
from gpt3jax.model.init import Params

MOST_WEIGHTS = 100_000
"""Maximum number of weights on the page; beyond it only the largest of each query are stored."""
FEWEST = 4
"""Minimum number of weights stored per query."""


def heads_record(
    params: Params,
    activations: dict[str, jax.Array],
    model: Model,
    layers: Sequence[int],
    on_progress: Callable[[float], None] = lambda share: None,
) -> dict[str, Any]:
    """Attention of one text in the given layers.

    Args:
      params: parameters as in `param_specs`.
      activations: captured `queries` and `keys` of one text.
      model: the model.
      layers: indices of the layers.
      on_progress: called with the fraction done.

    Returns:
      `kept`, the number k of weights per query; `keys` (uint16) and `weights` (float32)
      [layers, H, T, k], largest first; and `facts`: `induction` and the fields of `HeadStats`,
      float32 [layers, H].
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
    names = ("entropy", "distance", "itself", "previous", "first")
    return {
        "kept": count,
        "keys": np.stack(keys),
        "weights": np.stack(weights),
        "facts": {
            **{name: np.stack([getattr(each, name) for each in stats]) for name in names},
            "induction": induction(params, model)[list(layers)].astype(np.float32),
        },
    }


@partial(jax.jit, static_argnames="count")
def _summarize(weights_1HTT, count):
    largest_HTk, keys_HTk = jax.lax.top_k(weights_1HTT[0], count)
    return largest_HTk, keys_HTk, head_stats(weights_1HTT[0])
