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
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gpt3jax.config import Model
from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.decoding.beam_search import Found, search
from gpt3jax.decoding.decode import CPU_OPTIONS, decoding_params, prefill, take_cache_rows
from gpt3jax.evals import packing
from gpt3jax.evals.packing import Pair, Tokens
from gpt3jax.model.gpt3 import Cache
from gpt3jax.model.init import Params
from gpt3jax.model.logprobs import TokenLogprobs, suffix_logprobs, token_logprobs
from gpt3jax.model.lora import merged_model
from gpt3jax.sharding import processes
from gpt3jax.sharding.rules import batch_sharding

BATCH_TOKENS = 8192
"""Of prompts read together, padding included."""
SHARED_LEAST = 32
"""A shorter common beginning is not worth a program of its own."""
FEWEST = 8
"""Answers and candidates of up to so many tokens share a program."""

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
    candidates: tuple[Scored, ...] = ()
    """What was to be scored after the same prompt."""


class Scorer:
    """A model made ready: parameters laid out once, each shape compiled once."""

    def __init__(self, params: Params, model: Model, tokenizer: Tokenizer, mesh: Mesh):
        self.tokenizer, self.mesh = tokenizer, mesh
        self.model = merged_model(model)  # Once laid out, kernels hold what LoRA has changed.
        self._rows = mesh.shape["data"] * mesh.shape["fsdp"]
        self._everywhere = NamedSharding(mesh, PartitionSpec())
        self._lay_out = jax.jit(decoding_params, static_argnames="model")
        self._packed = self._jit(token_logprobs, "model")
        self._scores = self._jit(_scores, "model", "copies")
        self._answers = self._jit(_answers, "model", "copies", "new_tokens", "width", "alpha")
        self.load(params)

    def load(self, params: Params) -> None:
        """Judge with these parameters from now on; nothing is compiled again."""
        self.params = self._lay_out(params, self.model)

    def score(self, pairs: Sequence[Pair], report: Report = lambda _: None) -> list[Scored]:
        """Score each completion after its prompt, both as token ids; neither may be empty."""
        groups: dict[Tokens, list[int]] = {}
        for number, (prompt, _) in enumerate(pairs):
            groups.setdefault(prompt, []).append(number)
        shared = _shared(list(groups))
        found: dict[int, Scored] = {}
        is_packed = len(groups) == len(pairs) and not shared
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
        candidates: Sequence[Sequence[Tokens]] = (),
        report: Report = lambda _: None,
    ) -> list[Answer]:
        """The best answer to each prompt by beam search (section 2.4); width 1 is greedy.

        Args:
          prompts: token ids.
          new_tokens: at most this many.
          stop: an answer ends with a token that holds one of these, or with a document.
          width: beams.
          alpha: of the length penalty.
          candidates: completions to be scored, too, of each prompt: it is read only once.
          report: gets the share done.
        """
        # One program writes answers of many lengths.
        looking = {"new_tokens": packing.bucket(new_tokens, FEWEST), "width": width, "alpha": alpha}
        is_end, limit = self._ends(stop), np.int32(new_tokens)
        shared, found = _shared(prompts), {}
        copies = max(map(len, candidates), default=0)
        for numbers in packing.batches(prompts, self._most(copies), self._rows):
            batch = self._padded([prompts[n] for n in numbers], shared, copies)
            suffix = _suffix([candidates[n] for n in numbers] if copies else [], batch.rows, copies)
            best, scores = self._fetch(
                self._answers(
                    self.params, self._on_devices(batch.arrays()), self._on_devices(suffix), is_end,
                    limit, model=self.model, copies=copies, **looking,
                )
            )  # fmt: skip
            for row, number in enumerate(numbers):
                length = int(best.length[row, 0])
                ended = length < new_tokens and is_end[best.tokens[row, 0, length]]
                found[number] = Answer(
                    tuple(best.tokens[row, 0, : length + int(ended)].tolist()),
                    float(best.log_probability[row, 0]),
                    tuple(
                        _scored(scores, row * copies + copy, 0, len(candidate))
                        for copy, candidate in enumerate(candidates[number] if copies else ())
                    ),
                )
            report(len(found) / len(prompts))
        return [found[number] for number in range(len(prompts))]

    def _groups(
        self, pairs: Sequence[Pair], groups: dict[Tokens, list[int]], shared: Tokens
    ) -> Iterator[dict[int, Scored]]:
        """Each prompt once, then its candidates."""
        prompts = list(groups)
        copies = max(map(len, groups.values()))
        for numbers in packing.batches(prompts, self._most(copies), self._rows):
            chosen = [prompts[n] for n in numbers]
            batch = self._padded(chosen, shared, copies)
            candidates = [[pairs[number][1] for number in groups[prompt]] for prompt in chosen]
            arrays = self._on_devices(batch.arrays())
            (suffix,) = self._on_devices(_suffix(candidates, batch.rows, copies))
            scores = self._fetch(
                self._scores(self.params, arrays, suffix, model=self.model, copies=copies)
            )
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
        """Of each token of the tokenizer, whether it ends an answer."""
        ends = [
            any(each.encode() in self.tokenizer.token_bytes(token) for each in stop)
            for token in range(min(self.model.vocabulary, self.tokenizer.vocabulary))
        ]
        ends[self.tokenizer.end_of_text] = True
        return np.array(ends)

    def _padded(self, prompts: Sequence[Tokens], shared: Tokens, copies: int) -> packing.Prompts:
        return packing.pad_prompts(
            prompts, shared, self.model.context, self._most(copies), self._rows
        )

    def _most(self, copies: int = 1) -> int:
        """Slots of a batch whose prompts have so many candidates."""
        return max(1, BATCH_TOKENS * self._rows // max(1, copies))

    def _jit(self, function: Callable[..., Any], *static: str) -> Callable[..., Any]:
        """Compiled; what comes out is whole on every host."""
        options = CPU_OPTIONS if jax.default_backend() == "cpu" else None
        return jax.jit(
            function, static_argnames=static, out_shardings=self._everywhere,
            compiler_options=options,
        )  # fmt: skip

    def _on_devices(self, arrays: Sequence[np.ndarray]) -> list[jax.Array]:
        """Rows spread over the mesh; what all rows share everywhere."""
        by_row, whole = batch_sharding(self.mesh), self._everywhere
        one = NamedSharding(self.mesh, PartitionSpec(by_row.spec[0]))

        def place(x: np.ndarray) -> NamedSharding:
            if x.ndim == 0 or x.shape[0] % self._rows:
                return whole
            return by_row if x.ndim == 2 else one

        return [processes.shard_across_hosts(x, place(x)) for x in arrays]

    def _fetch(self, tree: Any) -> Any:
        return jax.tree.map(np.asarray, tree)


def _scored(scores: TokenLogprobs, row: int, first: int, last: int) -> Scored:
    return Scored(
        tuple(scores.log_probability[row, first:last].tolist()),
        tuple(scores.is_likeliest[row, first:last].tolist()),
    )


def _shared(prompts: Sequence[Tokens]) -> Tokens:
    """What prompts begin with, where it is long enough to be read apart."""
    shared = packing.common_beginning(prompts)
    return shared if len(shared) >= SHARED_LEAST else ()


def _suffix(
    candidates: Sequence[Sequence[Tokens]], rows: int, copies: int
) -> tuple[np.ndarray, ...]:
    """Completions [rows * copies, C] of the prompts of a batch; nothing if there are none."""
    if not copies:
        return ()
    width = packing.bucket(max(len(each) for of_prompt in candidates for each in of_prompt), FEWEST)
    suffix = np.zeros((rows * copies, width), np.int32)
    for row, of_prompt in enumerate(candidates):
        for copy, each in enumerate(of_prompt):
            suffix[row * copies + copy, : len(each)] = each
    return (suffix,)


def _prefill(params, arrays, model, room) -> tuple[jax.Array, Cache]:
    """Next logits and cache of a batch's prompts (`Prompts.arrays`), with room for more tokens."""
    tokens_BT, length_B, *shared = arrays
    slots, prefix = tokens_BT.shape[1] + room, None
    if shared:
        shared_1P, shared_length = shared
        slots += shared_1P.shape[1]
        _, prefix = prefill(params, shared_1P, shared_length, model, shared_1P.shape[1])
    return prefill(params, tokens_BT, length_B, model, slots, prefix)


def _scores(params, arrays, suffix_RC, *, model, copies) -> TokenLogprobs:
    logits_BV, cache = _prefill(params, arrays, model, suffix_RC.shape[1])
    return _score_copies(params, logits_BV, cache, suffix_RC, model, copies)


def _score_copies(params, logits_BV, cache, suffix_RC, model, copies) -> TokenLogprobs:
    if copies > 1:
        rows_R = jnp.repeat(jnp.arange(len(logits_BV)), copies)
        logits_BV, cache = logits_BV[rows_R], take_cache_rows(cache, rows_R)
    return suffix_logprobs(params, logits_BV, cache, suffix_RC, model)


def _answers(
    params, arrays, suffix, is_end_V, limit, *, model, copies, new_tokens, width, alpha
) -> tuple[Found, TokenLogprobs | None]:
    logits_BV, cache = _prefill(params, arrays, model, suffix[0].shape[1] if suffix else 0)
    scores = None
    for suffix_RC in suffix:
        scores = _score_copies(params, logits_BV, cache, suffix_RC, model, copies)
    found = search(
        params, logits_BV, cache, is_end_V, model,
        new_tokens=new_tokens, width=width, alpha=alpha, limit=limit,
    )  # fmt: skip
    return found, scores
