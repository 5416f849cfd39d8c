"""How well a model predicts a text: loss per token, byte and word, and by place in the context.

Legend: B windows, T tokens of a window.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np

from gpt3jax.config import Model
from gpt3jax.data.pairs import tokens_of
from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.model.likelihood import token_scores
from gpt3jax.model.params import Params
from gpt3jax.model.table import table
from gpt3jax.sharding import hosts
from gpt3jax.sharding.collectives import each_device
from gpt3jax.sharding.rules import batch_sharding, partition, partitions

BATCH_WINDOWS = 8
"""Per row of devices."""


@dataclass(frozen=True)
class Perplexity:
    """What predicting windows cost, each read from its first token on."""

    nats: float
    """Sum over all tokens that are learned, but each window's first."""
    tokens: int
    """Those; of pairs, a prompt's are only read."""
    text_bytes: int
    words: int
    """Between white space; a line's end counts as one more, as PTB's <eos> does."""
    by_position: tuple[float | None, ...]
    """Mean nats of token i given the i before it, from i = 1 on; None where nothing is learned."""

    @property
    def per_token(self) -> float:
        """Nats per token: the loss."""
        return self.nats / max(1, self.tokens)

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of text."""
        return self.nats / math.log(2) / max(1, self.text_bytes)

    @property
    def per_word(self) -> float:
        """Perplexity of a word: exp(nats / words), as PTB's is reported."""
        return math.exp(min(700.0, self.nats / max(1, self.words)))


def perplexity(
    params: Params,
    model: Model,
    mesh: jax.sharding.Mesh,
    windows_BT1: np.ndarray,
    tokenizer: Tokenizer,
    report: Callable[[float], None] = lambda _: None,
) -> Perplexity:
    """Measure over windows of context+1 tokens; runs on the mesh, as training does."""
    batch = partition(("batch", None))

    def run(params, windows_BT1):
        return token_scores(params, windows_BT1, model).log_probability

    # Where `tensor` is more than one device, tokens come out split over it.
    spread = each_device(run, (partitions(table(model)), batch), partition(("batch", "heads")))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    program = jax.jit(spread, out_shardings=whole)
    rows = BATCH_WINDOWS * mesh.shape["data"] * mesh.shape["fsdp"]
    ids_BT1, is_learned_BT = tokens_of(windows_BT1), windows_BT1[:, 1:] >= 0
    total_T = np.zeros(is_learned_BT.shape[1])
    for first in range(0, len(ids_BT1), rows):
        part = ids_BT1[first : first + rows]
        padded = np.pad(part, ((0, rows - len(part)), (0, 0)))
        scores_BT = np.asarray(program(params, hosts.spread(padded, batch_sharding(mesh))))
        learned = np.where(is_learned_BT[first : first + rows], scores_BT[: len(part)], 0)
        total_T -= learned.sum(0, dtype=np.float64)
        report(min(1.0, (first + rows) / len(ids_BT1)))
    counts_T = is_learned_BT.sum(0)
    learned_ids = [
        row[keep].tolist() for row, keep in zip(ids_BT1[:, 1:], is_learned_BT, strict=True)
    ]
    texts = list(map(tokenizer.decode, learned_ids))
    return Perplexity(
        nats=float(total_T.sum()),
        tokens=int(counts_T.sum()),
        text_bytes=sum(len(tokenizer.token_bytes(id_)) for row in learned_ids for id_ in row),
        words=sum(len(text.split()) + text.count("\n") for text in texts),
        by_position=tuple(
            float(total / count) if count else None
            for total, count in zip(total_T, counts_T, strict=True)
        ),
    )
