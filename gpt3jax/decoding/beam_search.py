"""Batched beam search as one program (section 2.4: width 4, length penalty 0.6).

Width 1 is greedy decoding. All beams of a prompt share one row of the cache, so the prompt is
stored and read once for all of them; each beam attends only to the tokens that it continues.

Legend: B prompts, W beams per prompt, N maximum new tokens, S slots of the cache, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct

from gpt3jax.config import Model
from gpt3jax.decoding.decode import tokenizer_logits
from gpt3jax.model.gpt3 import Cache, forward
from gpt3jax.model.init import Params


@struct.dataclass
class Continuations:
    """The best continuations of each prompt, best first; unused entries have score -inf."""

    tokens: jax.Array
    """int32 [B, W, N]; only the first `length` entries are valid."""
    length: jax.Array
    """int32 [B, W], without the end token."""
    log_probability: jax.Array
    """Sum over the tokens, including the end token; nats, [B, W]."""
    score: jax.Array
    """log_probability over the length penalty, [B, W]."""


@struct.dataclass
class _Search:
    """The state of a search after `step` tokens."""

    step: jax.Array
    tokens: jax.Array
    """[B, W, N], tokens of the active beams."""
    totals: jax.Array
    """[B, W], logprobs of the active beams; -inf for unused beams."""
    writer: jax.Array
    """[B, W, N], index of the beam that wrote each token, at the step that wrote it."""
    best: Continuations
    ended: jax.Array
    """[B], number of finished continuations."""


def length_penalty(length: int | jax.Array, alpha: float) -> jax.Array:
    """((5 + length) / 6) ** alpha (Wu et al. 2016, equation 14); the paper uses alpha 0.6."""
    return ((5.0 + length) / 6.0) ** alpha


def search(
    params: Params,
    logits_BV: jax.Array,
    cache: Cache,
    is_end_V: jax.Array,
    model: Model,
    *,
    new_tokens: int,
    width: int,
    alpha: float,
    limit: jax.Array | None = None,
) -> Continuations:
    """Continue prompts after prefill.

    A beam finishes with an end token, or after `limit` tokens. The search of a prompt is over when
    W of its continuations have finished.

    Args:
      params: parameters from `decoding_params`.
      logits_BV: logits after the last token of each prompt.
      cache: the prompts; the tokens of the beams are appended after all of its slots.
      is_end_V: boolean, whether each token that may be written ends a continuation.
      model: the model's configuration.
      new_tokens: N.
      width: W.
      alpha: exponent of the length penalty.
      limit: maximum new tokens, a traced value up to N (so that one program serves all limits);
        N by default.
    """
    B, W, N = len(logits_BV), width, new_tokens
    most = jnp.int32(N) if limit is None else limit
    none_BW = jnp.full((B, W), -jnp.inf)
    tokens_BWN, zeros_BW = jnp.zeros((B, W, N), jnp.int32), jnp.zeros((B, W), jnp.int32)
    begin = _Search(
        step=jnp.int32(0),
        tokens=tokens_BWN,
        totals=none_BW.at[:, 0].set(0.0),
        writer=tokens_BWN,
        best=Continuations(tokens_BWN, zeros_BW, none_BW, none_BW),
        ended=jnp.zeros(B, jnp.int32),
    )
    choose = partial(_choose, is_end_V=is_end_V, alpha=alpha, limit=most)
    length_B, filled = jnp.broadcast_to(cache.length, B), cache.keys[0].shape[2]
    room = ((0, 0), (0, 0), (0, W * N), (0, 0))
    keys, values = jax.tree.map(lambda x: jnp.pad(x, room), (cache.keys, cache.values))
    cache = Cache(keys, values, jnp.int32(filled))

    def is_active(state: tuple[_Search, Cache]) -> jax.Array:
        now, _ = state
        return (now.step < most) & (now.ended < W).any()

    def advance(state: tuple[_Search, Cache]) -> tuple[_Search, Cache]:
        now, cache = state
        distance_BWS = _distance(now, length_B, filled, cache.keys[0].shape[2])
        positions_BW = jnp.broadcast_to((length_B + now.step - 1)[:, None], (B, W))
        output = forward(
            params,
            now.tokens[:, :, now.step - 1],
            model,
            cache=replace(cache, distance=distance_BWS),
            positions_BT=positions_BW,
        )
        assert output.cache is not None
        return choose(now, output.logits[..., : model.vocabulary]), output.cache

    first_BWV = jnp.broadcast_to(logits_BV[:, None], (B, W, logits_BV.shape[-1]))
    end, _ = jax.lax.while_loop(is_active, advance, (choose(begin, first_BWV), cache))
    return end.best


def _distance(now: _Search, length_B: jax.Array, filled: int, slots: int) -> jax.Array:
    """`Cache.distance` [B, W, S + W] of the newest tokens; a step fills W slots."""
    B, W, N = now.tokens.shape
    past = now.step - 1
    step_S, beam_S = jnp.divmod(jnp.arange(slots) - filled, W)
    is_prompt_B1S = jnp.arange(slots) < length_B[:, None, None]
    to_prompt_B1S = length_B[:, None, None] + past - jnp.arange(slots)
    to_prompt_BWS = jnp.where(is_prompt_B1S, to_prompt_B1S, -1)
    writer_BWS = jnp.take(now.writer, jnp.clip(step_S, 0, N - 1), axis=2)
    to_written_BWS = jnp.where((writer_BWS == beam_S) & (step_S < past), past - step_S, -1)
    old_BWS = jnp.where(step_S < 0, to_prompt_BWS, to_written_BWS)
    own_BWW = jnp.broadcast_to(jnp.eye(W, dtype=old_BWS.dtype) - 1, (B, W, W))
    return jnp.concatenate((old_BWS, own_BWW), axis=2)


def _choose(
    now: _Search, logits_BWV: jax.Array, is_end_V: jax.Array, alpha: float, limit: jax.Array
) -> _Search:
    """Extend each beam by one token and select the finished and the active continuations."""
    B, W, N = now.tokens.shape
    take = partial(jnp.take_along_axis, axis=1)
    # The best 2 W candidates, so that W remain active even if W finish.
    log_BWV = tokenizer_logits(jax.nn.log_softmax(logits_BWV, -1), len(is_end_V))
    totals, origins, tokens = _best(log_BWV, now.totals)
    written = take(now.tokens, origins[..., None]).at[:, :, now.step].set(tokens)
    is_end, is_open = is_end_V[tokens], (now.ended < W)[:, None]
    ends = is_end & (jnp.arange(2 * W) < W) & is_open & (totals > -jnp.inf)
    ended = now.ended + ends.sum(1, dtype=jnp.int32)
    is_active = ~is_end & (jnp.cumsum(~is_end, 1) <= W)
    # At the limit active beams finish, too, unless the search of the prompt is over.
    is_cut = is_active & (now.step == limit - 1) & (ended < W)[:, None]
    more = Continuations(
        tokens=written,
        length=now.step + (~is_end).astype(jnp.int32),
        log_probability=totals,
        score=jnp.where(ends | is_cut, totals / length_penalty(now.step + 1, alpha), -jnp.inf),
    )
    order = jnp.argsort(~is_active, axis=1, stable=True)[:, :W]
    return _Search(
        step=now.step + 1,
        tokens=take(written, order[..., None]),
        totals=jnp.where(take(is_active, order), take(totals, order), -jnp.inf),
        writer=take(now.writer, take(origins, order)[..., None])
        .at[:, :, now.step]
        .set(jnp.arange(W)),
        best=_best_of(now.best, more, W),
        ended=ended,
    )


def _best(log_BWV: jax.Array, totals_BW: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The best 2 W one-token extensions: totals, indices of the beams, tokens; each [B, 2W]."""
    B, W, V = log_BWV.shape
    totals_BWV = totals_BW[..., None] + log_BWV
    best, flat = jax.lax.top_k(totals_BWV.reshape(B, W * V), 2 * W)
    return best, flat // V, flat % V


def _best_of(best: Continuations, more: Continuations, width: int) -> Continuations:
    """The `width` best of both by score."""
    both = jax.tree.map(lambda a, b: jnp.concatenate((a, b), axis=1), best, more)
    _, order = jax.lax.top_k(both.score, width)
    return jax.tree.map(
        lambda each: jnp.take_along_axis(
            each, order.reshape(*order.shape, *(1,) * (each.ndim - 2)), axis=1
        ),
        both,
    )
