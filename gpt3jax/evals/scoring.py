"""Score completions and generate answers, in batches of a few static shapes.

A prompt with several candidates is prefilled once for all of them, and a prefix that all prompts
share is prefilled once; texts that share nothing are packed into rows. All of these give the
logprobs of a text on its own (tests/evals/test_scoring.py).

Legend: B prompts of a batch, T slots of a prompt, Q slots of a prompt after the shared prefix, P
tokens of the shared prefix, R candidates, C tokens of a candidate, V vocabulary.
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
from gpt3jax.decoding.beam_search import Continuations, search
from gpt3jax.decoding.decode import CPU_OPTIONS, decoding_params, prefill, take_cache_rows
from gpt3jax.evals import packing
from gpt3jax.evals.packing import Pair, Tokens
from gpt3jax.model.gpt3 import Cache
from gpt3jax.model.init import Params
from gpt3jax.model.logprobs import TokenLogprobs, suffix_logprobs, token_logprobs
from gpt3jax.model.lora import merged_model
from gpt3jax.sharding import processes
from gpt3jax.sharding.rules import batch_sharding

BATCH_TOKENS = {"cpu": 2048, "gpu": 8192, "tpu": 8192}
"""Tokens per batch of prompts and row of devices, including padding. On CPUs 2,048 take 0.71 of the
time of 8,192 (the demo, 200 questions of 24 or 245 tokens, 2 cores, jax 0.10.2)."""
SHARED_LEAST = 32
"""Minimum length of a shared prefix; shorter ones are not worth a separate program."""
FEWEST = 16
"""Answers and candidates of up to this many tokens share a program, which takes longer to compile
than a few more slots take to read."""

Report = Callable[[float], None]
"""Called with the completed fraction, from 0 to 1."""


@dataclass(frozen=True)
class Scored:
    """Scores of the tokens of a candidate."""

    log_probabilities: tuple[float, ...]
    """Nats, one per token."""
    is_likeliest: tuple[bool, ...]
    """Whether greedy decoding would choose the token, one per token."""


@dataclass(frozen=True)
class Answer:
    """A generated answer."""

    tokens: tuple[int, ...]
    """The tokens, including the end token if there is one."""
    log_probability: float
    """Sum over the tokens, nats."""
    candidates: tuple[Scored, ...] = ()
    """Scores of the candidates after the same prompt."""


class Scorer:
    """A model ready for scoring; parameters are prepared once and each shape is compiled once."""

    def __init__(self, params: Params, model: Model, tokenizer: Tokenizer, mesh: Mesh):
        self.tokenizer, self.mesh = tokenizer, mesh
        self.model = merged_model(model)  # `decoding_params` merges LoRA.
        self._rows = mesh.shape["data"] * mesh.shape["fsdp"]
        self._batch_tokens = BATCH_TOKENS[jax.default_backend()] * self._rows
        self._everywhere = NamedSharding(mesh, PartitionSpec())
        self._lay_out = jax.jit(decoding_params, static_argnames="model")
        self._packed = self._jit(token_logprobs, "model")
        self._scores = self._jit(_scores, "model")
        self._answers = self._jit(_answers, "model", "new_tokens", "width", "alpha")
        self.load(params)

    def load(self, params: Params) -> None:
        """Use these parameters from now on; nothing is recompiled."""
        self.params = self._lay_out(params, self.model)

    def score(self, pairs: Sequence[Pair], report: Report = lambda _: None) -> list[Scored]:
        """Score the completion of each (prompt, completion) pair of non-empty token ids."""
        groups: dict[Tokens, list[int]] = {}
        for number, (prompt, _) in enumerate(pairs):
            groups.setdefault(prompt, []).append(number)
        results: dict[int, Scored] = {}
        is_packed = len(groups) == len(pairs) and not _shared(list(groups))
        batches = self._pack(pairs) if is_packed else self._groups(pairs, groups)
        for scored in batches:
            results.update(scored)
            report(len(results) / len(pairs))
        return [results[number] for number in range(len(pairs))]

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
          new_tokens: maximum number of new tokens.
          stop: an answer ends with a token that contains one of these strings, or at end-of-text.
          width: number of beams.
          alpha: exponent of the length penalty.
          candidates: completions of each prompt to be scored as well, with a single prefill.
          report: called with the completed fraction.
        """
        # Limits are bucketed, so that they share programs.
        options = {"new_tokens": packing.bucket(new_tokens, FEWEST), "width": width, "alpha": alpha}
        is_end, limit, answers = self._ends(stop), np.int32(new_tokens), {}
        for numbers, arrays, suffix in self._batches(prompts, candidates):
            best, scores = self._fetch(
                self._answers(
                    self.params, arrays, suffix, is_end, limit, model=self.model, **options
                )
            )
            for row, number in enumerate(numbers):
                length = int(best.length[row, 0])
                ended = length < new_tokens and is_end[best.tokens[row, 0, length]]
                own = candidates[number] if candidates else ()
                answers[number] = Answer(
                    tuple(best.tokens[row, 0, : length + int(ended)].tolist()),
                    float(best.log_probability[row, 0]),
                    tuple(_scored_copies(scores, row, len(arrays[1]), own)),
                )
            report(len(answers) / len(prompts))
        return [answers[number] for number in range(len(prompts))]

    def _groups(
        self, pairs: Sequence[Pair], groups: dict[Tokens, list[int]]
    ) -> Iterator[dict[int, Scored]]:
        """Score candidates in batches of prompts, each of which is prefilled once."""
        own = list(groups.values())
        candidates = [[pairs[number][1] for number in of_prompt] for of_prompt in own]
        for numbers, arrays, suffix in self._batches(list(groups), candidates):
            scores = self._fetch(self._scores(self.params, arrays, *suffix, model=self.model))
            yield {
                number: scored
                for row, group in enumerate(numbers)
                for number, scored in zip(
                    own[group],
                    _scored_copies(scores, row, len(arrays[1]), candidates[group]),
                    strict=True,
                )
            }

    def _batches(
        self, prompts: Sequence[Tokens], candidates: Sequence[Sequence[Tokens]]
    ) -> Iterator[tuple[list[int], list[jax.Array], list[jax.Array]]]:
        """Indices of the prompts of each batch, and on devices: `pad_prompts`, and `_suffix`."""
        shared, copies = _shared(prompts), max(map(len, candidates), default=0)
        most, multiple = self._most(copies), self._rows
        for numbers in packing.batches(prompts, most, multiple):
            batch = [prompts[number] for number in numbers]
            arrays = packing.pad_prompts(batch, shared, self.model.context, most, multiple)
            own = [candidates[number] for number in numbers] if copies else []
            suffix = _suffix(own, len(arrays[1]), copies)
            yield numbers, self._on_devices(arrays), self._on_devices(suffix)

    def _pack(self, pairs: Sequence[Pair]) -> Iterator[dict[int, Scored]]:
        """Score texts that are packed into rows."""
        texts = [(*prompt, *completion) for prompt, completion in pairs]
        for tokens, positions, where in packing.pack(
            texts, self.model.context, self._most(), self._rows
        ):
            arrays = self._on_devices((tokens, positions[:, :-1]))
            scores = self._fetch(self._packed(self.params, arrays[0], self.model, arrays[1]))
            results = {}
            for number, (row, start) in where.items():
                prompt, completion = pairs[number]
                # The score of token i is at index i - 1.
                first = start + len(prompt) - 1
                results[number] = _scored(scores, row, first, first + len(completion))
            yield results

    def _ends(self, stop: Sequence[str]) -> np.ndarray:
        """Whether each token of the tokenizer ends an answer, boolean [V]."""
        ends = [
            any(each.encode() in self.tokenizer.token_bytes(token) for each in stop)
            for token in range(min(self.model.vocabulary, self.tokenizer.vocabulary))
        ]
        ends[self.tokenizer.end_of_text] = True
        return np.array(ends)

    def _most(self, copies: int = 1) -> int:
        """Maximum slots of a batch of prompts with up to `copies` candidates each."""
        return max(1, self._batch_tokens // max(1, copies))

    def _jit(self, function: Callable[..., Any], *static: str) -> Callable[..., Any]:
        """Jit with outputs that are replicated on all hosts."""
        options = CPU_OPTIONS if jax.default_backend() == "cpu" else None
        return jax.jit(
            function,
            static_argnames=static,
            out_shardings=self._everywhere,
            compiler_options=options,
        )

    def _on_devices(self, arrays: Sequence[np.ndarray]) -> list[jax.Array]:
        """Shard arrays over the mesh by row; replicate those that all rows share."""
        matrix = batch_sharding(self.mesh)
        vector = NamedSharding(self.mesh, PartitionSpec(matrix.spec[0]))

        def sharding(x: np.ndarray) -> NamedSharding:
            if x.ndim == 0 or x.shape[0] % self._rows:
                return self._everywhere
            return matrix if x.ndim == 2 else vector

        return [processes.shard_across_hosts(x, sharding(x)) for x in arrays]

    def _fetch(self, tree: Any) -> Any:
        return jax.tree.map(np.asarray, tree)


def _scored(scores: TokenLogprobs, row: int, first: int, last: int) -> Scored:
    return Scored(
        tuple(scores.log_probability[row, first:last].tolist()),
        tuple(scores.is_likeliest[row, first:last].tolist()),
    )


def _scored_copies(
    scores: TokenLogprobs | None, row: int, rows: int, candidates: Sequence[Tokens]
) -> Iterator[Scored]:
    """The scores of the candidates of a prompt of a batch of `rows` prompts."""
    for copy, candidate in enumerate(candidates):
        assert scores is not None
        first = row * (len(scores.log_probability) // rows)
        yield _scored(scores, first + copy, 0, len(candidate))


def _shared(prompts: Sequence[Tokens]) -> Tokens:
    """The shared prefix of prompts, if it is long enough to be prefilled separately."""
    shared = packing.common_prefix(prompts)
    return shared if len(shared) >= SHARED_LEAST else ()


def _suffix(
    candidates: Sequence[Sequence[Tokens]], rows: int, copies: int
) -> tuple[np.ndarray, ...]:
    """Completions [rows * copies, C] of the prompts of a batch; an empty tuple if none."""
    if not copies:
        return ()
    width = packing.bucket(max(len(each) for of_prompt in candidates for each in of_prompt), FEWEST)
    suffix = np.zeros((rows * copies, width), np.int32)
    for row, of_prompt in enumerate(candidates):
        for copy, each in enumerate(of_prompt):
            suffix[row * copies + copy, : len(each)] = each
    return (suffix,)


def _prefill(params, arrays, model, room) -> tuple[jax.Array, Cache]:
    """Prefill a batch (`pad_prompts`); the cache has `room` free slots."""
    tokens_BT, length_B, *shared = arrays
    slots, prefix = tokens_BT.shape[1] + room, None
    if shared:
        shared_1P, shared_length = shared
        slots += shared_1P.shape[1]
        _, prefix = prefill(params, shared_1P, shared_length, model, shared_1P.shape[1])
    return prefill(params, tokens_BT, length_B, model, slots, prefix)


def _scores(params, arrays, suffix_RC, *, model) -> TokenLogprobs:
    logits_BV, cache = _prefill(params, arrays, model, suffix_RC.shape[1])
    return _score_copies(params, logits_BV, cache, suffix_RC, model)


def _score_copies(params, logits_BV, cache, suffix_RC, model) -> TokenLogprobs:
    if len(suffix_RC) > len(logits_BV):
        rows_R = jnp.repeat(jnp.arange(len(logits_BV)), len(suffix_RC) // len(logits_BV))
        logits_BV, cache = logits_BV[rows_R], take_cache_rows(cache, rows_R)
    return suffix_logprobs(params, logits_BV, cache, suffix_RC, model)


def _answers(
    params, arrays, suffix, is_end_V, limit, *, model, **options
) -> tuple[Continuations, TokenLogprobs | None]:
    logits_BV, cache = _prefill(params, arrays, model, suffix[0].shape[1] if suffix else 0)
    scores = None
    for suffix_RC in suffix:
        scores = _score_copies(params, logits_BV, cache, suffix_RC, model)
    best = search(params, logits_BV, cache, is_end_V, model, limit=limit, **options)
    return best, scores
