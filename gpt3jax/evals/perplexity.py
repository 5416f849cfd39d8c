"""Validation loss and perplexity over held-out windows, for all of gpt3jax.

Training, `gpt3jax perplexity`, sweeps and early stopping call `perplexity`; no other code divides
nats by tokens, bytes or words. Every window counts, on any mesh: the last batch is padded, and
padding is excluded from the sums. The batch size does not depend on the training configuration,
so that the loss depends only on the parameters and windows.

A model that trains in float8 is evaluated in its own dtype, as it is exported and generates.

Legend: B windows, T tokens of a window, M = B * T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import jax
import numpy as np

from gpt3jax.config import Model
from gpt3jax.data.loader import HeldOut
from gpt3jax.data.pairs import tokens_of
from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.model.init import Params
from gpt3jax.model.logprobs import token_logprobs
from gpt3jax.model.lora import merged_model
from gpt3jax.model.param_specs import param_specs
from gpt3jax.sharding import processes
from gpt3jax.sharding.collectives import shard_map
from gpt3jax.sharding.rules import batch_sharding, partition_spec, partition_specs

BATCH_WINDOWS = 8
"""Maximum windows of a batch on each row of devices."""


@dataclass(frozen=True)
class Perplexity:
    """The loss over windows, with its normalizers; each window is a separate context."""

    nats_by_position: tuple[float, ...]
    """Sum over the windows of -log p of token i given the i tokens before it, from i = 1 on."""
    tokens_by_position: tuple[int, ...]
    """Number of windows in which that token is a target; tokens of prompts are not."""
    text_bytes: int
    """UTF-8 bytes of the targets."""
    windows: int
    available: int
    """Total number of held-out windows."""

    @property
    def nats(self) -> float:
        """Sum over all targets."""
        return math.fsum(self.nats_by_position)

    @property
    def tokens(self) -> int:
        """Number of targets."""
        return sum(self.tokens_by_position)

    @property
    def per_token(self) -> float:
        """Loss in nats per token."""
        return self.nats / max(1, self.tokens)

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of text."""
        return self.nats / math.log(2) / max(1, self.text_bytes)

    def per_word(self, words: int) -> float:
        """Perplexity per word, exp(nats / words), as reported for PTB."""
        return math.exp(min(700.0, self.nats / max(1, words)))

    def at_positions(self, first: int, stop: int) -> float | None:
        """Nats per token at positions `first` to `stop` - 1, or None without targets there.

        The target at position i has i + 1 tokens of context.
        """
        tokens = sum(self.tokens_by_position[first:stop])
        return math.fsum(self.nats_by_position[first:stop]) / tokens if tokens else None


def perplexity(
    params: Params,
    model: Model,
    mesh: jax.sharding.Mesh,
    held_out: HeldOut,
    token_bytes_V: np.ndarray,
    on_batch: Callable[[float], bool | None] = lambda _: None,
) -> Perplexity | None:
    """Measure the loss over windows of context+1 tokens on the mesh.

    Args:
      params: the parameters, sharded over the mesh as `param_specs` describes.
      model: their config.
      mesh: the mesh.
      held_out: the windows.
      token_bytes_V: UTF-8 bytes of each token (`token_lengths`).
      on_batch: called after each batch with the completed fraction; true stops the evaluation.

    Returns:
      The same result on every host; None if `on_batch` stopped it.
    """
    windows_BT1 = held_out.windows
    program = _compiled(replace(model, dtype=merged_model(model).dtype), mesh)
    ids_BT1, is_target_BT = tokens_of(windows_BT1), windows_BT1[:, 1:] >= 0
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    size = rows * min(BATCH_WINDOWS, -(-len(ids_BT1) // rows))
    nats_T = np.zeros(is_target_BT.shape[1])
    for first in range(0, len(ids_BT1), size):
        part_BT1 = ids_BT1[first : first + size]
        padded = np.pad(part_BT1, ((0, size - len(part_BT1)), (0, 0)))
        scores_BT = np.asarray(
            program(params, processes.shard_across_hosts(padded, batch_sharding(mesh)))
        )
        is_counted_BT = is_target_BT[first : first + size]
        scores_BT = np.where(is_counted_BT, scores_BT[: len(part_BT1)], 0)
        nats_T -= scores_BT.sum(0, dtype=np.float64)
        if on_batch(min(1.0, (first + size) / len(ids_BT1))):
            return None
    return Perplexity(
        nats_by_position=tuple(nats_T.tolist()),
        tokens_by_position=tuple(is_target_BT.sum(0).tolist()),
        text_bytes=int(token_bytes_V[ids_BT1[:, 1:][is_target_BT]].sum()),
        windows=len(held_out),
        available=held_out.available,
    )


@lru_cache(maxsize=8)
def _compiled(model: Model, mesh: jax.sharding.Mesh) -> Callable[..., jax.Array]:
    """The jitted function from windows [B, T+1] to logprobs [B, T], replicated on all devices."""

    def run(params: Params, windows_BT1: jax.Array) -> jax.Array:
        return token_logprobs(params, windows_BT1, model).log_probability

    specs = (partition_specs(param_specs(model)), partition_spec(("batch", None)))
    # The output is sharded over `tensor` along T, so it must be gathered.
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.jit(
        shard_map(run, specs, partition_spec(("batch", "heads"))), out_shardings=everywhere
    )


def token_lengths(tokenizer: Tokenizer, rows: int) -> np.ndarray:
    """UTF-8 bytes of each token id of a model, int [rows]; 0 for padding of the vocabulary."""
    known = [len(tokenizer.token_bytes(token)) for token in range(min(rows, tokenizer.vocabulary))]
    return np.pad(np.array(known), (0, rows - len(known)))


def count_words(held_out: HeldOut, tokenizer: Tokenizer) -> int:
    """Number of words in the targets; a newline counts as a word, as <eos> in PTB.

    Words are counted by document or completion: a word that spans two windows counts once.
    """
    ids_M = tokens_of(held_out.windows)[:, 1:].reshape(-1)
    is_target_BT = held_out.windows[:, 1:] >= 0
    is_target_M = is_target_BT.reshape(-1)
    is_first_M = np.zeros(is_target_BT.shape, bool)
    is_first_M[:, 0] = ~held_out.follows
    is_first_M = is_first_M.reshape(-1)
    is_first_M[1:] |= (ids_M[:-1] == tokenizer.end_of_text) | (is_target_M[1:] != is_target_M[:-1])
    starts = np.flatnonzero(is_first_M)
    texts = [
        tokenizer.decode(ids_M[start:stop].tolist())
        for start, stop in zip(starts, [*starts[1:], len(ids_M)], strict=True)
        if is_target_M[start]
    ]
    return sum(len(text.split()) + text.count("\n") for text in texts)
