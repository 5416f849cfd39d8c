"""Where each head looked, for the page: the weights themselves, and what heads are sorted by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from gpt3jax.config import Model
from gpt3jax.inspect.attention import head_facts, induction
from gpt3jax.inspect.capture import attention_of
from gpt3jax.model.init import Params

MOST_WEIGHTS = 100_000
"""Kept in all; of more, each query keeps its largest."""
FEWEST = 4
"""But so many it keeps."""


def heads_record(
    params: Params,
    activations: dict[str, jax.Array],
    model: Model,
    layers: Sequence[int],
    tell: Callable[[float], None] = lambda share: None,
) -> dict[str, Any]:
    """Attention of one text in the layers shown.

    Args:
      params: as `table` describes.
      activations: with `queries` and `keys` of one text.
      model: its shape.
      layers: those that are shown.
      tell: called with the share that is done.

    Returns:
      `keys` (uint16) and `weights` (float32) [layers, H, T, kept], each query's largest first;
      float32 [layers, H] of each fact of `HeadFacts`, and `induction`.
    """
    T = activations["queries"].shape[2]
    kept = min(T, max(FEWEST, MOST_WEIGHTS // (len(layers) * model.n_heads * T)))
    places, weights, facts = [], [], []
    for layer in layers:  # One at a time: all weights are N x H x T x T numbers.
        found = _summed_up(attention_of(activations, layer, model), kept)
        best, where, of_heads = jax.tree.map(np.asarray, found)
        weights.append(best)
        places.append(where.astype(np.uint16))
        facts.append(of_heads)
        tell(len(facts) / len(layers))
    names = ("entropy", "distance", "itself", "previous", "first")
    return {
        "kept": kept,
        "keys": np.stack(places),
        "weights": np.stack(weights),
        "facts": {
            **{name: np.stack([getattr(each, name) for each in facts]) for name in names},
            "induction": induction(params, model)[list(layers)].astype(np.float32),
        },
    }


@partial(jax.jit, static_argnames="kept")
def _summed_up(weights_1HTT, kept):
    best_HTk, where_HTk = jax.lax.top_k(weights_1HTT[0], kept)
    return best_HTk, where_HTk, head_facts(weights_1HTT[0])
