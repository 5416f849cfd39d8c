"""Text generation on one device: sampling, streaming and beam search.

Only the last `context` tokens of a prompt are read. When the context is full during decoding, its
older half is dropped: the newer half is prefilled again from position 0.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gpt3jax.checkpoint.load import load_model
from gpt3jax.config import Mesh, Model, Weights
from gpt3jax.data.tokenizer import StreamDecoder, Tokenizer
from gpt3jax.decoding import beam_search, decode
from gpt3jax.decoding.decode import Sampling
from gpt3jax.errors import ConfigError
from gpt3jax.model.gpt3 import Cache
from gpt3jax.model.init import Params
from gpt3jax.model.lora import merged_model
from gpt3jax.sharding.mesh import make_mesh

SMALLEST_PREFILL = 16
CHUNK_SECONDS = 0.1
"""The time that a reader of a stream waits for the tokens of one dispatch, about."""
NO_TOKEN = -1


@dataclass(frozen=True)
class Continuation:
    """A result of beam search."""

    tokens: list[int]
    log_probability: float
    """Sum over the tokens, nats."""
    score: float
    """log_probability over the length penalty."""


class Generator:
    """A model ready for decoding; parameters are prepared once and each program compiled once."""

    def __init__(
        self, params: Params, model: Model, tokenizer: Tokenizer, weights: Weights = "full"
    ):
        self.tokenizer = tokenizer
        self.weights = weights
        self.model = merged_model(model)  # `decoding_params` merges LoRA.
        self.vocabulary = min(model.vocabulary, tokenizer.vocabulary)
        """Only ids below it are generated (`decode.tokenizer_logits`)."""
        self._lay_out = jax.jit(decode.decoding_params, static_argnames=("model", "weights"))
        self.load(params)
        options = decode.CPU_OPTIONS if jax.default_backend() == "cpu" else None
        self._prefill = jax.jit(decode.prefill, static_argnames=("model", "slots"))
        self._write = jax.jit(
            decode.write,
            static_argnames=("model", "sampling", "vocabulary"),
            donate_argnames="writing",
            compiler_options=options,
        )
        self._draw = jax.jit(decode.draw, static_argnames=("sampling", "vocabulary"))
        self._take_rows = jax.jit(decode.take_cache_rows)
        self._search = jax.jit(
            beam_search.search, static_argnames=("model", "new_tokens", "width", "alpha")
        )

    def load(self, params: Params) -> None:
        """Use these parameters from now on; nothing is recompiled."""
        self.params = self._lay_out(params, self.model, self.weights)

    def tokens(
        self,
        prompt: Sequence[int],
        *,
        new_tokens: int,
        rows: int = 1,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        seed: int = 0,
        end: int = NO_TOKEN,
    ) -> Iterator[np.ndarray]:
        """Yield up to `new_tokens` arrays [rows] of token ids; each row is an independent sample.

        The same seed (below 2^32) gives the same tokens. An empty prompt starts a new document.
        Decoding stops when each row has the token `end`; what follows it in a row has no meaning.
        """
        history = [np.full(rows, token, np.int32) for token in self._or_start(prompt)]
        slots = padded_size(len(history) + new_tokens, self.model)
        ended, most = np.zeros(rows, bool), self.model.context
        seed32 = np.uint32(seed)  # JAX would convert a Python integer to int32.
        while new_tokens:
            logits, cache, filled = self._read(history, most, rows, slots)
            token = self._draw(logits, seed32, len(history), sampling, self.vocabulary)
            writing = decode.Writing(cache, token, jnp.asarray(ended))
            count = min(new_tokens, 1 + slots - filled)
            for token_B in self._stream(writing, count, seed32, len(history), end, sampling):
                history.append(token_B)
                new_tokens -= 1
                ended = ended | (token_B == end)
                yield token_B
                if ended.all():
                    return
            most = (self.model.context + 1) // 2

    def _stream(
        self,
        writing: decode.Writing,
        count: int,
        seed: np.uint32,
        position: int,
        end: int,
        sampling: Sampling,
    ) -> Iterator[np.ndarray]:
        """Yield `count` arrays [rows] of tokens, the first of which is `writing.token`.

        Tokens are written in chunks, whose size follows the speed of the device so that a reader
        does not wait long. A chunk is dispatched before the host waits for the one before it.
        """
        chunk, waiting, size = writing.token[None], 1, 1
        while waiting:
            count, position = count - waiting, position + waiting
            ahead, next_chunk = min(size, count), chunk
            if ahead:
                next_chunk, writing = self._write(
                    self.params, writing, seed, position, ahead, end, self.model, sampling,
                    self.vocabulary,
                )  # fmt: skip
            began = time.perf_counter()
            tokens_NB = np.asarray(chunk)[:waiting]
            is_fast = time.perf_counter() - began < CHUNK_SECONDS
            size = min(2 * size, decode.CHUNK) if is_fast else max(size // 2, 1)
            yield from tokens_NB
            chunk, waiting = next_chunk, ahead

    def program(self, length: int, new_tokens: int, sampling: Sampling) -> str:
        """The compiled loop over the tokens of one row in HLO text, as `tokens` uses it."""
        slots = padded_size(length + new_tokens, self.model)
        prompt = jnp.zeros((1, SMALLEST_PREFILL), jnp.int32)
        _, cache = self._prefill.eval_shape(self.params, prompt, jnp.int32(1), self.model, slots)
        writing = decode.Writing(cache, jnp.zeros(1, jnp.int32), jnp.zeros(1, bool))
        lowered = self._write.lower(
            self.params, writing, np.uint32(0), length, 1, NO_TOKEN, self.model, sampling,
            self.vocabulary,
        )  # fmt: skip
        return lowered.compile().as_text() or ""

    def text(self, prompt: str, *, stop: Sequence[str] = (), **options) -> Iterator[str]:
        """Yield one sample's text in pieces, as soon as their UTF-8 is complete.

        Takes the options of `tokens`. Ends at the end-of-text token or before the first stop
        string.
        """
        stream = TextStream(self.tokenizer, stop)
        prompt_tokens, end = self.tokenizer.encode(prompt), self.tokenizer.end_of_text
        for (token,) in self.tokens(prompt_tokens, end=end, **options):
            yield stream.push(int(token))
            if stream.ended:
                return
        yield stream.flush()

    def samples(self, prompt: str, rows: int, *, stop: Sequence[str] = (), **options) -> list[str]:
        """Several samples of one prompt, decoded as one batch."""
        prompt_tokens, end = self.tokenizer.encode(prompt), self.tokenizer.end_of_text
        drawn = self.tokens(prompt_tokens, rows=rows, end=end, **options)
        return [self.decode_until(list(row), stop) for row in np.stack(list(drawn), axis=1)]

    def decode_until(self, tokens: list[int], stop: Sequence[str]) -> str:
        """The text before the end-of-text token or the first stop string."""
        end = self.tokenizer.end_of_text
        text = self.tokenizer.decode(tokens[: tokens.index(end)] if end in tokens else tokens)
        return _before_stop(text, stop)

    def beam_search(
        self, prompt: Sequence[int], *, new_tokens: int, width: int = 4, alpha: float = 0.6
    ) -> list[Continuation]:
        """The best continuations, best first (section 2.4: width 4, length penalty 0.6).

        A beam finishes at the end-of-text token, which is not part of its tokens, or after
        `new_tokens`. A prompt too long for the context is truncated on the left.

        Raises:
          ConfigError: `new_tokens` or `width` is out of range.
        """
        if not 0 < new_tokens < self.model.context or not 0 < 2 * width <= self.vocabulary:
            raise ConfigError(
                f"beam search over {new_tokens} tokens with {width} beams: it needs from 1 to "
                f"{self.model.context - 1} tokens, and at most half the vocabulary. Change them"
            )
        prompt = self._or_start(prompt)[-(self.model.context - new_tokens) :]
        history = [np.array([t], np.int32) for t in prompt]
        slots = padded_size(len(prompt), self.model)
        logits, cache, _ = self._read(history, len(prompt), 1, slots)
        is_end = np.arange(self.vocabulary) == self.tokenizer.end_of_text
        result = self._search(
            self.params,
            logits,
            cache,
            is_end,
            self.model,
            new_tokens=new_tokens,
            width=width,
            alpha=alpha,
        )
        result = jax.tree.map(lambda each: np.asarray(each)[0], result)
        return [
            Continuation(tokens[:length].tolist(), float(log_probability), float(score))
            for tokens, length, log_probability, score in zip(
                result.tokens, result.length, result.log_probability, result.score, strict=True
            )
            if np.isfinite(score)
        ]

    def _or_start(self, prompt: Sequence[int]) -> list[int]:
        """The prompt, or end-of-text if it is empty. Checks the ids, which JAX would clamp."""
        wrong = [token for token in prompt if not 0 <= token < self.vocabulary]
        if wrong:
            raise ConfigError(
                f"token id {wrong[0]} is not in the model: its vocabulary is "
                f"{self.vocabulary}. Use the model's tokenizer"
            )
        return list(prompt) or [self.tokenizer.end_of_text]

    def _read(
        self, history: list[np.ndarray], most: int, rows: int, slots: int
    ) -> tuple[jax.Array, Cache, int]:
        """Prefill with the last `most` tokens; returns logits, cache and filled slots.

        Lengths are padded (`padded_size`). If all rows have the same history, it is read once.
        """
        recent = np.stack(history[-most:], axis=1)
        shared = bool((recent == recent[:1]).all())
        length = recent.shape[1]
        size = padded_size(length, self.model)
        padded = np.pad(recent[:1] if shared else recent, ((0, 0), (0, size - length)))
        logits, cache = self._prefill(self.params, padded, jnp.int32(length), self.model, slots)
        if shared and rows > 1:
            first_row = jnp.zeros(rows, jnp.int32)
            logits, cache = logits[first_row], self._take_rows(cache, first_row)
        return logits, cache, length


def padded_size(length: int, model: Model) -> int:
    """Padded length of a text: a power of two, so that few programs are compiled."""
    return min(model.context, max(SMALLEST_PREFILL, 1 << (length - 1).bit_length()))


def load_generator(path: Path, step: int | None = None, weights: Weights = "full") -> Generator:
    """A generator for a checkpoint of a run (the newest if `step` is None), on one device.

    Raises the errors of `load_model`.
    """
    loaded = load_model(path, step, make_mesh(Mesh(data=1), jax.devices()[:1]))
    return Generator(loaded.params, loaded.model, loaded.tokenizer, weights)


class TextStream:
    """Incremental decoding of tokens to text, up to end-of-text or the first stop string."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.ended = False
        """Whether the text has ended; no more tokens may be pushed."""
        self._end = tokenizer.end_of_text
        self._decoder, self._stop, self._pending = StreamDecoder(tokenizer), stop, ""

    def push(self, token: int) -> str:
        """The text that is certain by now; a possible beginning of a stop string is buffered."""
        if token == self._end:
            self.ended = True
            return self.flush()
        self._pending += self._decoder.push(token)
        if any(each in self._pending for each in self._stop):
            self.ended = True
            return _before_stop(self._pending, self._stop)
        keep = _length_of_begun_stop(self._pending, self._stop)
        split = len(self._pending) - keep
        certain, self._pending = self._pending[:split], self._pending[split:]
        return certain

    def flush(self) -> str:
        """The buffered text, after the last token."""
        return self._pending + self._decoder.flush()


def _before_stop(text: str, stop: Sequence[str]) -> str:
    """The text before the stop string that completes first, as in a stream."""
    matches = [(text.find(each) + len(each), text.find(each)) for each in stop if each in text]
    return text[: min(matches)[1]] if matches else text


def _length_of_begun_stop(text: str, stop: Sequence[str]) -> int:
    """Number of characters at the end of the text that may begin a stop string."""
    lengths = (n for s in stop for n in range(1, len(s)) if text.endswith(s[:n]))
    return max(lengths, default=0)
