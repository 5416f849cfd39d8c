"""Batched decode: each row is a separate text, with its own length and sampling parameters.

Rows of different requests share one compiled step. The tokens of a row depend only on its own text,
seed and position, not on the other rows: they are the tokens that `decode.py` gives for that row
alone. Logprobs agree up to float32 rounding, since the order of summation depends on the batch
size.

Legend: B rows, T prompt tokens, V vocabulary, N most likely tokens, H heads, S slots of the cache,
K head width.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import struct

from gpt3jax.config import Model
from gpt3jax.decoding import decode
from gpt3jax.model.gpt3 import Cache, compute_dtype, hidden_states
from gpt3jax.model.init import Params
from gpt3jax.model.layers import unembed

BEST = 5
"""Number of most likely tokens that are returned with each token."""
SCORED = 256
"""Rows of logits in memory at a time while a prompt is scored."""


@struct.dataclass
class Drawing:
    """Sampling parameters of each row, arrays [B]."""

    seed: jax.Array
    """uint32."""
    sample: jax.Array
    """int32, index of the row among the samples of its request."""
    position: jax.Array
    """int32, number of tokens of the complete text so far."""
    temperature: jax.Array
    top_p: jax.Array
    is_scored: jax.Array
    """Whether logprobs are requested; if no row requests them, they are zero."""


@struct.dataclass
class Drawn:
    """The next token of each row."""

    token: jax.Array
    """int32 [B]."""
    log_probability: jax.Array
    """Logprob of the token under the unmodified distribution, nats, [B]."""
    best: jax.Array
    """int32 [B, N], the most likely tokens in descending order."""
    best_log_probability: jax.Array
    """[B, N]."""


def draw_each(logits_BV: jax.Array, how: Drawing, vocabulary: int | None = None) -> Drawn:
    """Sample as `decode.draw` does, with the sampling parameters of each row."""
    allowed_BV = decode.tokenizer_logits(logits_BV, vocabulary)
    keys_B = decode.row_keys(how.seed, how.position, how.sample)
    token_B = decode.sample_rows(allowed_BV, keys_B, how.temperature, how.top_p)

    def zeros(logits_BV, token_B):
        return jax.tree.map(jnp.zeros_like, jax.eval_shape(_scored, logits_BV, token_B))

    _, *scores = jax.lax.cond(how.is_scored.any(), _scored, zeros, logits_BV, token_B)
    return Drawn(token_B, *scores)


def _scored(logits_BV: jax.Array, token_B: jax.Array) -> tuple[jax.Array, ...]:
    """The fields of `Drawn`."""
    log_BV = jax.nn.log_softmax(logits_BV, -1)
    own_B = jnp.take_along_axis(log_BV, token_B[:, None], -1)[:, 0]
    best_log_BN, best_BN = jax.lax.top_k(log_BV, BEST)
    return token_B, own_B, best_BN, best_log_BN


def step(
    params: Params,
    cache: Cache,
    token_B: jax.Array,
    how: Drawing,
    model: Model,
    vocabulary: int | None = None,
) -> tuple[Drawn, Cache]:
    """One decode step: read a token per row and sample the next one."""
    logits_BV, cache = decode.decode(params, cache, token_B, model)
    return draw_each(logits_BV, how, vocabulary), cache


def place_row(cache: Cache, one: Cache, row: jax.Array) -> Cache:
    """Replace a row of the cache by the single row of `one`, which may have fewer slots."""

    def place(all_BHSK, one_1HSK):
        return jax.lax.dynamic_update_slice_in_dim(all_BHSK, one_1HSK, row, axis=0)

    keys, values = jax.tree.map(place, (cache.keys, cache.values), (one.keys, one.values))
    return replace(cache, keys=keys, values=values)


def empty(model: Model, rows: int, slots: int) -> Cache:
    """An empty cache."""
    shape = (rows, model.n_heads, slots, model.d_head)
    arrays = tuple(jnp.zeros(shape, compute_dtype(model)) for _ in range(model.n_layers))
    return Cache(arrays, jax.tree.map(jnp.copy, arrays), jnp.zeros(rows, jnp.int32))


def resized(cache: Cache, rows: jax.Array, slots: int) -> Cache:
    """The cache of these rows, in this order, truncated or zero-padded to `slots` slots."""

    def fit(all_BHSK):
        taken_BHSK = jnp.take(all_BHSK, rows, axis=0)[:, :, :slots]
        room = slots - taken_BHSK.shape[2]
        return jnp.pad(taken_BHSK, ((0, 0), (0, 0), (0, room), (0, 0)))

    return Cache(tuple(map(fit, cache.keys)), tuple(map(fit, cache.values)), cache.length[rows])


def score(params: Params, tokens_1T: jax.Array, model: Model) -> Drawn:
    """Score each token of a text except the first, given its prefix: T - 1 rows."""
    x_1TD, _, _ = hidden_states(params, tokens_1T, model)

    def score_token(pair):
        x_D, token = pair
        logits_1V = unembed(params, x_D[None, None], model)[0, :, : model.vocabulary]
        return Drawn(*(each[0] for each in _scored(logits_1V, token[None])))

    return jax.lax.map(score_token, (x_1TD[0, :-1], tokens_1T[0, 1:]), batch_size=SCORED)
