"""How a model judges texts and what it answers, in batches of a few static shapes.

A prompt that has several candidates is read once for all of them, and what all
prompts begin with is read once; texts that share nothing are packed into rows.
Each way gives the numbers of a text alone (tests/evals/test_scoring.py).

Legend: B prompts of a batch, T slots of a prompt, Q slots of what differs
between them, P tokens of what they share, R candidates, C tokens of one, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gpt3jax.config import Model
from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.evals import packing
from gpt3jax.evals.packing import Pair, Tokens
from gpt3jax.model.decode import for_decoding, take_rows
from gpt3jax.model.likelihood import TokenScores, suffix_scores, token_scores
from gpt3jax.model.lora import learned
from gpt3jax.model.params import Params
from gpt3jax.model.reading import read, read_after
from gpt3jax.model.search import Found, search
from gpt3jax.sharding import hosts
from gpt3jax.sharding.rules import batch_sharding

BATCH_TOKENS = 8192
"""Of prompts read together, padding included."""
SHARED_LEAST = 32
"""A shorter common beginning is not worth a program of its own."""

Report = Callable[[float], None]
"""Gets the share done, from 0 to 1."""


@dataclass(frozen=True)
class Scored:
    """A candidate's tokens as the model sees them coming."""

    log_probabilities: tuple[float, ...]
    """Nats, one per token."""
    is_likeliest: tuple[bool, ...]
    """Whether greedy decoding would have written it."""


@dataclass(frozen=True)
class Answer:
    """What a model wrote."""

    tokens: tuple[int, ...]
    """The one that ended it included, if one did."""
    log_probability: float
    """Sum over them, nats."""


class Scorer:
    """A model made ready: parameters laid out once, each shape compiled once."""

    def __init__(self, params: Params, model: Model, tokenizer: Tokenizer, mesh: Mesh):
        self.tokenizer, self.mesh = tokenizer, mesh
        # Rows past the tokenizer's vocabulary stand for no text: they are never written. Once
        # laid out, kernels hold what LoRA has changed.
        vocabulary = min(model.vocabulary, tokenizer.vocabulary)
        self.model = replace(learned(model), vocabulary=vocabulary)
        self._rows = mesh.shape["data"] * mesh.shape["fsdp"]
        self._everywhere = NamedSharding(mesh, PartitionSpec())
        self._lay_out = jax.jit(for_decoding, static_argnames="model")
        self._packed = self._jit(token_scores, "model")
        self._scores = self._jit(_scores, "model", "copies")
        self._scores_after = self._jit(_scores_after, "model", "copies")
        looking = ("model", "new_tokens", "width", "alpha")
        self._answers = self._jit(_answers, *looking)
        self._answers_after = self._jit(_answers_after, *looking)
        self.load(params)

    def load(self, params: Params) -> None:
        """Judge with these parameters from now on; nothing is compiled again."""
        self.params = self._lay_out(params, self.model)

    def score(self, pairs: Sequence[Pair], report: Report = lambda _: None) -> list[Scored]:
        """Score each completion after its prompt, both as token ids; neither may be empty."""
        groups: dict[Tokens, list[int]] = {}
        for number, (prompt, _) in enumerate(pairs):
            groups.setdefault(prompt, []).append(number)
        shared = packing.common_beginning(list(groups))
        found: dict[int, Scored] = {}
        is_packed = len(groups) == len(pairs) and len(shared) < SHARED_LEAST
        batches = self._pack(pairs) if is_packed else self._groups(pairs, groups, shared)
        for scored in batches:
            found.update(scored)
            report(len(found) / len(pairs))
        return [found[number] for number in range(len(pairs))]

    def answer(
        self,
        prompts: Sequence[Tokens],
        *,
        new_tokens: int,
        stop: Sequence[str],
        width: int = 4,
        alpha: float = 0.6,
        report: Report = lambda _: None,
    ) -> list[Answer]:
        """The best answer to each prompt by beam search (section 2.4); width 1 is greedy.

        Args:
          prompts: token ids.
          new_tokens: at most this many.
          stop: an answer ends with a token that holds one of these, or with a document.
          width: beams.
          alpha: of the length penalty.
          report: gets the share done.
        """
        looking = {"new_tokens": new_tokens, "width": width, "alpha": alpha}
        is_end = self._ends(stop)
        shared, found = packing.common_beginning(prompts), {}
        for numbers in packing.batches(prompts, self._most(), self._rows):
            batch = packing.align([prompts[n] for n in numbers], shared, self._most(), self._rows)
            program = self._answers_after if batch.shared is not None else self._answers
            arguments = self._on_devices(batch.arrays())
            best = self._fetch(
                program(self.params, *arguments, is_end, model=self.model, **looking)
            )
            for row, number in enumerate(numbers):
                length = int(best.length[row, 0])
                ended = length < new_tokens and is_end[best.tokens[row, 0, length]]
                tokens = best.tokens[row, 0, : length + int(ended)]
                found[number] = Answer(tuple(tokens.tolist()), float(best.log_probability[row, 0]))
            report(len(found) / len(prompts))
        return [found[number] for number in range(len(prompts))]

    def _groups(
        self, pairs: Sequence[Pair], groups: dict[Tokens, list[int]], shared: Tokens
    ) -> Iterator[dict[int, Scored]]:
        """Each prompt once, then its candidates."""
        prompts = list(groups)
        copies = max(map(len, groups.values()))
        width = packing.bucket(max(len(completion) for _, completion in pairs))
        for numbers in packing.batches(prompts, max(1, self._most() // copies), self._rows):
            chosen = [prompts[n] for n in numbers]
            batch = packing.align(chosen, shared, self._most(), self._rows)
            suffix = np.zeros((batch.rows, copies, width), np.int32)
            for row, prompt in enumerate(chosen):
                for copy, number in enumerate(groups[prompt]):
                    suffix[row, copy, : len(pairs[number][1])] = pairs[number][1]
            program = self._scores_after if batch.shared is not None else self._scores
            arguments = self._on_devices(
                (*batch.arrays(), suffix.reshape(batch.rows * copies, width))
            )
            scores = self._fetch(program(self.params, *arguments, model=self.model, copies=copies))
            yield {
                number: _scored(scores, row * copies + copy, 0, len(pairs[number][1]))
                for row, prompt in enumerate(chosen)
                for copy, number in enumerate(groups[prompt])
            }

    def _pack(self, pairs: Sequence[Pair]) -> Iterator[dict[int, Scored]]:
        """Several texts to a row."""
        texts = [(*prompt, *completion) for prompt, completion in pairs]
        for batch in packing.pack(texts, self.model.context, self._most(), self._rows):
            rows, places = self._on_devices((batch.rows, batch.places[:, :-1]))
            scores = self._fetch(self._packed(self.params, rows, self.model, places))
            found = {}
            for number, (row, start) in batch.where.items():
                prompt, completion = pairs[number]
                # The score of token i stands at i - 1.
                first = start + len(prompt) - 1
                found[number] = _scored(scores, row, first, first + len(completion))
            yield found

    def _ends(self, stop: Sequence[str]) -> np.ndarray:
        """Boolean [V]: which tokens end an answer."""
        ends = [
            any(each.encode() in self.tokenizer.token_bytes(token) for each in stop)
            for token in range(self.model.vocabulary)
        ]
        ends[self.tokenizer.end_of_text] = True
        return np.array(ends)

    def _most(self) -> int:
        return BATCH_TOKENS * self._rows

    def _jit(self, function: Callable[..., Any], *static: str) -> Callable[..., Any]:
        """Compiled; what comes out is whole on every host."""
        return jax.jit(function, static_argnames=static, out_shardings=self._everywhere)

    def _on_devices(self, arrays: Sequence[np.ndarray]) -> list[jax.Array]:
        """Rows spread over the mesh; what all rows share everywhere."""
        by_row, whole = batch_sharding(self.mesh), self._everywhere
        one = NamedSharding(self.mesh, PartitionSpec(by_row.spec[0]))

        def place(x: np.ndarray) -> NamedSharding:
            if x.ndim == 0 or x.shape[0] % self._rows:
                return whole
            return by_row if x.ndim == 2 else one

        return [hosts.spread(x, place(x)) for x in arrays]

    def _fetch(self, tree: Any) -> Any:
        return jax.tree.map(np.asarray, tree)


def _scored(scores: TokenScores, row: int, first: int, last: int) -> Scored:
    return Scored(
        tuple(scores.log_probability[row, first:last].tolist()),
        tuple(scores.is_likeliest[row, first:last].tolist()),
    )


def _scores(params, tokens_BT, start_B, suffix_RC, *, model, copies) -> TokenScores:
    slots = tokens_BT.shape[1] + suffix_RC.shape[1]
    logits_BV, cache = read(params, tokens_BT, start_B, model, slots)
    return _score_copies(params, logits_BV, cache, start_B, suffix_RC, model, copies)


def _scores_after(
    params, shared_1P, shared_length, tokens_BQ, length, start_B, suffix_RC, *, model, copies
) -> TokenScores:
    slots = _slots(model, shared_1P, tokens_BQ) + suffix_RC.shape[1]
    logits_BV, cache = read_after(
        params, shared_1P, shared_length, tokens_BQ, length, start_B, model, slots
    )
    return _score_copies(params, logits_BV, cache, start_B, suffix_RC, model, copies)


def _score_copies(params, logits_BV, cache, start_B, suffix_RC, model, copies) -> TokenScores:
    rows_R = jnp.repeat(jnp.arange(len(start_B)), copies)
    place_R = (cache.length - start_B)[rows_R]
    if copies > 1:
        logits_BV, cache = logits_BV[rows_R], take_rows(cache, rows_R)
    return suffix_scores(params, logits_BV, cache, place_R, suffix_RC, model)


def _answers(params, tokens_BT, start_B, is_end_V, *, model, new_tokens, width, alpha) -> Found:
    slots = tokens_BT.shape[1] + new_tokens
    logits_BV, cache = read(params, tokens_BT, start_B, model, slots)
    return search(
        params, logits_BV, cache, cache.length - start_B, is_end_V, model,
        new_tokens=new_tokens, width=width, alpha=alpha,
    )  # fmt: skip


def _answers_after(
    params, shared_1P, shared_length, tokens_BQ, length, start_B, is_end_V,
    *, model, new_tokens, width, alpha,
) -> Found:  # fmt: skip
    slots = _slots(model, shared_1P, tokens_BQ) + new_tokens
    logits_BV, cache = read_after(
        params, shared_1P, shared_length, tokens_BQ, length, start_B, model, slots
    )
    return search(
        params, logits_BV, cache, length - start_B, is_end_V, model,
        new_tokens=new_tokens, width=width, alpha=alpha,
    )  # fmt: skip


def _slots(model: Model, shared_1P: jax.Array, tokens_BQ: jax.Array) -> int:
    """Room for prompts that begin alike, of any length that such a batch has."""
    return shared_1P.shape[1] + tokens_BQ.shape[1]
