"""Records of the path of each token through the model, for sections 1 and 2 of the page.

    embedding + position -> each layer: what attention and what the MLP added -> norm
    -> logits -> probabilities -> the sampled token

Records are nested dicts of plain values and numpy arrays (written by page.py); uint32 arrays are
token ids.

Legend: N layers, n shown layers, T tokens, t shown tokens, D model width, d shown components, V
vocabulary, k runners-up.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt3jax.config import Model
from gpt3jax.decoding.decode import Sampling, truncate
from gpt3jax.inspect.capture import of_layer
from gpt3jax.model.gpt3 import Output, head
from gpt3jax.model.init import Params
from gpt3jax.model.layers import NORM_EPSILON
from gpt3jax.model.mup import width_ratio

WANTED = ("embedded", "attention", "mlp", "residual")
"""The activations that the functions require of `capture`."""

RUNNERS_UP = 10
BARS = 128
"""Maximum shown components of a vector; of a wider model, every (D / 128)th is shown."""
MOST_BARS = 200_000
"""Maximum shown components in total; of a longer text, only the last tokens are shown."""


def vectors(
    params: Params, output: Output, tokens: np.ndarray, layers: Sequence[int]
) -> dict[str, Any]:
    """The residual stream of each token as bars: embeddings and updates of the given layers.

    `output` is the result of `capture` for the text, int [T], with `WANTED`.

    Returns:
      float16 `token` and `position` [t, d], and `attention`, `mlp`, `residual` [n, t, d], of the
      last t tokens, from `first` on; and the norms of the vectors of all tokens, float32:
      `size_before` [2, T] and `size` [3, n, T].
    """
    activations, T = output.activations, len(tokens)
    stride = -(-activations["embedded"].shape[-1] // BARS)
    shown = -(-activations["embedded"].shape[-1] // stride)
    first = max(0, T - max(1, MOST_BARS // (shown * (2 + 3 * len(layers)))))

    def bars(x_TD: np.ndarray) -> np.ndarray:
        return x_TD[first:, ::stride].astype(np.float16)

    start = tuple(map(np.asarray, _embedded(params, jnp.asarray(tokens, jnp.int32))))
    added = [
        [np.asarray(of_layer(activations[name], layer)) for layer in layers] for name in WANTED[1:]
    ]
    return {
        "first": first,
        "stride": stride,
        "token": bars(start[0]),
        "position": bars(start[1]),
        **{
            name: np.stack([bars(x) for x in each])
            for name, each in zip(WANTED[1:], added, strict=True)
        },
        "size_before": np.stack([_size(x) for x in start]),
        "size": np.stack([[_size(x) for x in each] for each in added]),
    }


def predictions(
    params: Params, output: Output, targets: np.ndarray, model: Model, sampling: Sampling
) -> dict[str, Any]:
    """The prediction after each token, and the distribution that the next token was sampled from.

    `output` is the result of `capture` for one text, with `WANTED`; `targets` are the tokens that
    follow each token, int [T].

    Returns:
      The most likely `tokens` [T, k] with their `logits`, `p` (softmax) and `drawn` (probability
      under `sampling`); the same of the following token, `target`, as `target_logit`, `target_p`
      and `target_drawn`, and its `target_rank`; `log_sum`, the log-sum-exp of the logits; and
      `push` [1 + 2 N, T], the contributions of the embedding and of each layer's attention and
      MLP to the target's logit, the rest of which is `push_bias`.
    """
    logits_TV = output.logits[0]
    arrays = _predicted(logits_TV, jnp.asarray(targets), sampling)
    record = {name: np.asarray(value) for name, value in arrays.items()}
    push, bias = _push(params, output.activations, jnp.asarray(targets), model)
    return record | {
        "tokens": record["tokens"].astype(np.uint32),
        "target": np.asarray(targets, np.uint32),
        "push": np.asarray(push),
        "push_bias": np.asarray(bias),
    }


@jax.jit
def _embedded(params, tokens_T):
    """Token and position embeddings, [T, D] each."""
    return params["token_embedding"][tokens_T], params["position_embedding"][: len(tokens_T)]


@partial(jax.jit, static_argnames="sampling")
def _predicted(logits_TV, targets_T, sampling):
    log_sum_T = jax.nn.logsumexp(logits_TV, -1)
    if sampling.temperature == 0:
        drawn_TV = jax.nn.one_hot(logits_TV.argmax(-1), logits_TV.shape[-1])
    else:
        drawn_TV = jax.nn.softmax(truncate(logits_TV / sampling.temperature, sampling), -1)
    best_Tk, tokens_Tk = jax.lax.top_k(logits_TV, min(RUNNERS_UP, logits_TV.shape[-1]))

    def at(x_TV, tokens):
        return jnp.take_along_axis(x_TV, tokens, -1)

    target_T1 = targets_T[:, None]
    logit_T1 = at(logits_TV, target_T1)
    return {
        "tokens": tokens_Tk,
        "logits": best_Tk,
        "p": jnp.exp(best_Tk - log_sum_T[:, None]),
        "drawn": at(drawn_TV, tokens_Tk),
        "log_sum": log_sum_T,
        "target_logit": logit_T1[:, 0],
        "target_p": jnp.exp(logit_T1[:, 0] - log_sum_T),
        "target_drawn": at(drawn_TV, target_T1)[:, 0],
        "target_rank": (logits_TV > logit_T1).sum(-1),
    }


@partial(jax.jit, static_argnames="model")
def _push(params, activations, targets_T, model):
    """Contributions to one logit: for a fixed scale of the final norm, the head is linear."""
    top = head(params, model)
    row_TD = top["token_embedding"][targets_T].astype(jnp.float32)
    along_TD = row_TD * top["final_norm"]["gain"]
    along_TD = along_TD - along_TD.mean(-1, keepdims=True)  # The norm subtracts the mean.
    last_TD = activations["residual"][-1, 0].astype(jnp.float32)
    scale_T = jax.lax.rsqrt(last_TD.var(-1) + NORM_EPSILON)
    parts = [activations["embedded"][0]]
    for layer in range(model.n_layers):
        parts += [activations["attention"][layer, 0], activations["mlp"][layer, 0]]
    push = jnp.stack([(x * along_TD).sum(-1) * scale_T for x in parts])
    ratio = width_ratio(model)
    return push / ratio, (row_TD * top["final_norm"]["bias"]).sum(-1) / ratio


def _size(x_TD: np.ndarray) -> np.ndarray:
    return np.linalg.norm(x_TD.astype(np.float32), axis=-1)
