"""Prefill, decode and sampling as pure functions; generator.py handles text.

Legend: B rows (samples or beams), T prompt tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import struct

from gpt3jax.config import Model, Weights
from gpt3jax.errors import ConfigError
from gpt3jax.model.gpt3 import Cache, compute_dtype, forward, hidden_states
from gpt3jax.model.init import Params
from gpt3jax.model.layers import unembed, unstack
from gpt3jax.model.lora import merge_lora
from gpt3jax.model.quantized import quantize

CPU_OPTIONS = {
    # Otherwise the entire cache is copied at every token.
    "xla_cpu_copy_insertion_use_region_analysis": True,
    # Products of one row are XLA's own loops; with full-width AVX-512 they are a fifth faster.
    "xla_cpu_prefer_vector_width": 512,
    # Otherwise quantized weights are converted to float32 once, before the loop over tokens, and
    # the copies are read for each token.
    "xla_disable_hlo_passes": "while-loop-invariant-code-motion",
}
"""Compiler options of decoding on CPUs."""

CHUNK = 64
"""The most tokens that one call of `write` writes per row."""


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters."""

    temperature: float = 1.0
    """0 is greedy decoding."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of tokens whose probabilities sum to at least this; 1 keeps all."""

    def __post_init__(self) -> None:
        if not (self.temperature == 0 or 1e-6 <= self.temperature < float("inf")):
            raise ConfigError(
                f"--temperature is {self.temperature}: it must be 0, or 1e-6 or more. Change it"
            )
        if self.top_k < 0:
            raise ConfigError(f"--top-k is {self.top_k}: it must be 0 or more. Change it")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"--top-p is {self.top_p}: it must be above 0, at most 1. Change it")


def decoding_params(params: Params, model: Model, weights: Weights | None = None) -> Params:
    """Parameters prepared for decoding.

    LoRA is merged, parameters are cast once, and layers are unstacked (no slicing per token).
    Matrices are stored as `weights` says; None leaves them as arrays, which supports meshes and is
    faster for many tokens at a time.
    """
    params, _ = merge_lora(params, model)
    params = jax.tree.map(lambda leaf: leaf.astype(compute_dtype(model)), params)
    layers = unstack(params["layers"], model.n_layers)
    params = {**params, "layers": layers}
    return params if weights is None else quantize(params, weights)


def prefill(
    params: Params,
    tokens_BT: jax.Array,
    length: jax.Array,
    model: Model,
    slots: int | None = None,
    prefix: Cache | None = None,
) -> tuple[jax.Array, Cache]:
    """Read prompts, padded on the right to T tokens.

    Padding has no effect: its keys are beyond the length of the cache and will be overwritten.

    Args:
      params: parameters from `decoding_params`.
      tokens_BT: int32 token ids.
      length: int32, number of tokens of each prompt: [B], or a scalar if they are equal.
      model: the model's configuration.
      slots: capacity of the cache in tokens, all of which each decode step reads;
        `model.context` by default.
      prefix: a cache of one row with a prefix that all prompts share; `tokens_BT` and `length`
        then describe the rest.

    Returns:
      Float32 logits [B, V] after the last token of each prompt, and the cache.
    """
    slots = slots or model.context

    def with_room(keys_BHSK):
        fitting = keys_BHSK[:, :, :slots]
        return jnp.pad(fitting, ((0, 0), (0, 0), (0, slots - fitting.shape[2]), (0, 0)))

    if prefix is None:
        x_BTD, _, activations = hidden_states(params, tokens_BT, model, want=("keys", "values"))
        keys, values = (
            tuple(with_room(new_BTHK.transpose(0, 2, 1, 3)) for new_BTHK in activations[name])
            for name in ("keys", "values")
        )
        cache = Cache(keys, values, length)
    else:
        keys, values = jax.tree.map(
            lambda one_1HSK: jnp.repeat(with_room(one_1HSK), len(tokens_BT), axis=0),
            (prefix.keys, prefix.values),
        )
        # Explicit positions, since padding may extend beyond the last one.
        positions_BT = jnp.broadcast_to(
            prefix.length + jnp.arange(tokens_BT.shape[1]), tokens_BT.shape
        )
        cache = Cache(keys, values, prefix.length)
        x_BTD, extended, _ = hidden_states(
            params, tokens_BT, model, cache=cache, positions_BT=positions_BT
        )
        assert extended is not None
        cache = replace(extended, length=prefix.length + length)
    if length.ndim:
        last_B1D = jnp.take_along_axis(x_BTD, (length - 1)[:, None, None], axis=1)
    else:
        last_B1D = jax.lax.dynamic_slice_in_dim(x_BTD, length - 1, 1, axis=1)
    return unembed(params, last_B1D, model)[:, 0, : model.vocabulary], cache


def decode(
    params: Params, cache: Cache, token_B: jax.Array, model: Model
) -> tuple[jax.Array, Cache]:
    """Read one token per row; returns the next logits [B, V] and the extended cache."""
    output = forward(params, token_B[:, None], model, cache=cache)
    assert output.cache is not None
    return output.logits[:, 0, : model.vocabulary], output.cache


def sample(logits_BV: jax.Array, keys_B: jax.Array, sampling: Sampling) -> jax.Array:
    """Sample a token per row, int32 [B]; each row has its own key."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, -1).astype(jnp.int32)
    return _categorical(keys_B, truncate(logits_BV / sampling.temperature, sampling))


def _categorical(keys_B: jax.Array, logits_BV: jax.Array) -> jax.Array:
    """`jax.random.categorical` with a key per row."""
    V = logits_BV.shape[-1]
    noise_BV = jax.vmap(lambda key: jax.random.gumbel(key, (V,), logits_BV.dtype))(keys_B)
    # With `argmax` XLA's CPU backend would fuse the noise into the reduction, element by element,
    # and take four times as long (8 rows of 2,048, 2 cores, jax 0.10.2).
    return jax.lax.top_k(logits_BV + noise_BV, 1)[1][:, 0]


def truncate(logits_BV: jax.Array, sampling: Sampling) -> jax.Array:
    """Set the logits outside the top k, then outside the top p of the rest, to -inf."""
    if 0 < sampling.top_k < logits_BV.shape[-1]:
        smallest_B1 = jax.lax.top_k(logits_BV, sampling.top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV < smallest_B1, -jnp.inf, logits_BV)
    return logits_BV if sampling.top_p == 1 else _nucleus(logits_BV, sampling.top_p)


def _nucleus(logits_BV: jax.Array, top_p: jax.Array | float) -> jax.Array:
    """Top-p filtering; `top_p` is a scalar or [B, 1]."""
    sorted_BV = jnp.sort(logits_BV, -1, descending=True)
    probability_BV = jax.nn.softmax(sorted_BV, -1)
    before_BV = jnp.cumsum(probability_BV, -1) - probability_BV
    count_B = jnp.sum(before_BV < top_p, -1)
    smallest_B1 = jnp.take_along_axis(sorted_BV, count_B[:, None] - 1, -1)
    return jnp.where(logits_BV < smallest_B1, -jnp.inf, logits_BV)


def row_keys(seed: jax.Array, position: jax.Array, row: jax.Array) -> jax.Array:
    """A key per row, derived from seed, position and row; each is [B] or a scalar."""

    def key(seed, position, row):
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), position), row)

    return jax.vmap(key)(*jnp.broadcast_arrays(seed, position, row))


def sample_rows(
    logits_BV: jax.Array, keys_B: jax.Array, temperature_B: jax.Array, top_p_B: jax.Array
) -> jax.Array:
    """`sample` with a temperature and top-p per row; skips what no row needs."""

    def nucleus(scaled_BV):
        return jnp.where(top_p_B[:, None] < 1, _nucleus(scaled_BV, top_p_B[:, None]), scaled_BV)

    def drawn():
        scaled_BV = logits_BV / jnp.where(temperature_B > 0, temperature_B, 1)[:, None]
        scaled_BV = jax.lax.cond((top_p_B < 1).any(), nucleus, lambda same: same, scaled_BV)
        return _categorical(keys_B, scaled_BV)

    def greedy():
        return jnp.argmax(logits_BV, -1).astype(jnp.int32)

    is_drawn_B = temperature_B > 0
    tokens_B = jax.lax.cond(is_drawn_B.any(), drawn, greedy)
    return jax.lax.cond(
        is_drawn_B.all(), lambda: tokens_B, lambda: jnp.where(is_drawn_B, tokens_B, greedy())
    )


def tokenizer_logits(values_BV: jax.Array, vocabulary: int | None) -> jax.Array:
    """Logits or logprobs of the tokens that the tokenizer has; all if `vocabulary` is None.

    A model may have more embedding rows than its tokenizer has tokens. Probabilities in this
    package are over all rows of the model's vocabulary, as in transformers: in perplexity,
    evaluation, the harness, beam search and logprobs of the server. Rows without a token are
    excluded only when a token is chosen, by this function.
    """
    return values_BV[..., :vocabulary]


def draw(
    logits_BV: jax.Array,
    seed: jax.Array,
    position: jax.Array,
    sampling: Sampling,
    vocabulary: int | None = None,
) -> jax.Array:
    """Sample with keys that depend on seed, position and row, but not on the number of rows."""
    keys_B = row_keys(seed, position, jnp.arange(len(logits_BV)))
    return sample(tokenizer_logits(logits_BV, vocabulary), keys_B, sampling)


@struct.dataclass
class Writing:
    """What decoding carries from one token to the next."""

    cache: Cache
    token: jax.Array
    """int32 [B], the newest token of each row, which is not in the cache yet."""
    ended: jax.Array
    """boolean [B], whether the row has written the end token before."""


def write(
    params: Params,
    writing: Writing,
    seed: jax.Array,
    position: jax.Array,
    count: jax.Array,
    end: jax.Array,
    model: Model,
    sampling: Sampling,
    vocabulary: int | None = None,
) -> tuple[jax.Array, Writing]:
    """Write up to `count` tokens per row in one program, without the host.

    Args:
      params: parameters from `decoding_params`.
      writing: the rows so far; the cache has room for `count` tokens.
      seed: uint32, of the keys of `draw`.
      position: int32, position of the first new token.
      count: int32, from 0 to `CHUNK`. The loop ends sooner if all rows have ended.
      end: int32, the token that ends a row; -1 for none.
      model: the model's configuration.
      sampling: how tokens are chosen.
      vocabulary: see `tokenizer_logits`.

    Returns:
      int32 [CHUNK, B], of which the first `count` are written, and the rows after them. The
      tokens after the end token of a row have no meaning.
    """

    def ended(writing):
        return writing.ended | (writing.token == end)

    def is_writing(carry):
        step, writing, _ = carry
        return (step < count) & ~ended(writing).all()

    def write_one(carry):
        step, writing, tokens_NB = carry
        logits_BV, cache = decode(params, writing.cache, writing.token, model)
        token_B = draw(logits_BV, seed, position + step, sampling, vocabulary)
        tokens_NB = jax.lax.dynamic_update_index_in_dim(tokens_NB, token_B, step, axis=0)
        return step + 1, Writing(cache, token_B, ended(writing)), tokens_NB

    tokens_NB = jnp.zeros((CHUNK, len(writing.token)), jnp.int32)
    _, writing, tokens_NB = jax.lax.while_loop(
        is_writing, write_one, (jnp.int32(0), writing, tokens_NB)
    )
    return tokens_NB, writing


def take_cache_rows(cache: Cache, rows: jax.Array) -> Cache:
    """The cache of these rows, in this order; rows may repeat."""
    return jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=0) if leaf.ndim else leaf, cache)
