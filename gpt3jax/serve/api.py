"""What may be asked: a completion as OpenAI's API has it, and every reason to refuse one."""

from __future__ import annotations

import contextlib
import itertools
import re
import secrets
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from gpt3jax import serde
from gpt3jax.config import Model
from gpt3jax.data.byte_level import END_OF_TEXT
from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.decoding.batched import BEST
from gpt3jax.errors import ConfigError

LARGEST_BODY = 1 << 20
"""Bytes."""
MOST_STOPS, LONGEST_STOP = 16, 256
HIGHEST_TEMPERATURE = 2.0
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "suffix": (None, ""),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
}
"""Asked of by OpenAI's clients, and not here: only the values that change nothing."""


class ApiError(Exception):
    """A request that is answered with an error.

    Args:
      status: of HTTP.
      message: for a person.
      parameter: which field is wrong, if one is.
      code: for a program.
    """

    def __init__(
        self, status: int, message: str, parameter: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.parameter, self.code = status, parameter, code

    def to_json(self) -> dict[str, Any]:
        """As OpenAI writes it."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {
            "message": str(self), "type": kinds.get(self.status, kind), "param": self.parameter,
            "code": self.code,
        }  # fmt: skip
        return {"error": error}


@dataclass(frozen=True)
class StreamOptions:
    """`stream_options` of a request."""

    include_usage: bool | None = False
    include_obfuscation: bool | None = False
    """Of no effect."""


@dataclass(frozen=True)
class _Body:
    """A request as it is sent, with OpenAI's defaults."""

    model: str | None = None
    prompt: Any = ""
    max_tokens: int | None = 16
    temperature: float | None = 1.0
    top_p: float | None = 1.0
    n: int | None = 1
    best_of: int | None = None
    stop: Any = None
    logprobs: int | None = None
    echo: bool | None = False
    seed: int | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    suffix: Any = None
    presence_penalty: Any = None
    frequency_penalty: Any = None
    logit_bias: Any = None


@dataclass(frozen=True)
class Completion:
    """A request that can be answered."""

    prompts: tuple[tuple[int, ...], ...]
    """Token ids; an empty prompt starts a new document."""
    most: int
    """Tokens to write, at most."""
    temperature: float
    top_p: float
    samples: int
    """Of each prompt."""
    stop: tuple[str, ...]
    logprobs: int | None
    """How many of the likeliest tokens are told with each; None: no scores at all."""
    echo: bool
    seed: int
    stream: bool
    include_usage: bool

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts."""
        return sum(map(len, self.prompts))


@dataclass(frozen=True)
class Served:
    """The model that is served, and what one request may ask of it at most."""

    name: str
    """As requests name it."""
    model: Model
    tokenizer: Tokenizer
    new_tokens: int
    """Of each row."""
    rows: int
    """Prompts times samples."""

    @cached_property
    def most_letters(self) -> int:
        """No prompt that fits the context is longer."""
        ids = range(self.tokenizer.vocabulary)
        return self.model.context * max(len(self.tokenizer.token_bytes(token)) for token in ids)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What each row of the vocabulary is called where tokens are scored: no two alike.

        `top_logprobs` of OpenAI's completions is keyed by texts, of which two tokens may have the
        same: a byte's own token, and the piece that is learned for it. The later id, the piece,
        is named by its text; the other by its bytes, as OpenAI names what is no UTF-8:
        `bytes:\\x61`. A row without a token is `<id>`.
        """
        known = range(min(self.tokenizer.vocabulary, self.model.vocabulary))
        found: dict[str, int] = {}
        for token in (*reversed(known), *range(len(known), self.model.vocabulary)):
            names = [f"<{token}>"]
            if token in known:
                names = _spellings(self.tokenizer.token_bytes(token))
            if token == self.tokenizer.end_of_text:
                names = [END_OF_TEXT]
            more = (f"{names[-1]}#{n}" for n in itertools.count(2))
            name = next(name for name in itertools.chain(names, more) if name not in found)
            found[name] = token
        return tuple(sorted(found, key=found.__getitem__))


def _spellings(spelled: bytes) -> list[str]:
    """Bytes as text, if they are, and as OpenAI writes those that are not."""
    escaped = "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)
    with contextlib.suppress(UnicodeDecodeError):
        return [spelled.decode(), escaped]
    return [escaped]


def completion(body: bytes, served: Served) -> Completion:
    """The request that a body holds: JSON.

    Raises:
      ApiError: it cannot be answered; the message names the field.
    """
    asked = _parse(body)
    if asked.model not in (None, served.name):
        what = f"there is no model {asked.model[:80]!r} here: {served.name!r} is served"
        raise ApiError(404, what, "model", "model_not_found")
    most = _within("max_tokens", asked.max_tokens, 0, served.new_tokens, 16)
    temperature = _within("temperature", asked.temperature, 0, HIGHEST_TEMPERATURE, 1.0)
    if 0 < temperature < 1e-6:
        raise _wrong("temperature", f"is {temperature}: it is 0, or 1e-6 or more")
    top_p = _within("top_p", asked.top_p, 0, 1, 1.0)
    if top_p == 0:
        raise _wrong("top_p", "is 0: it is above 0, and at most 1")
    samples = _within("n", asked.n, 1, served.rows, 1)
    if asked.best_of not in (None, samples):
        raise _wrong("best_of", "is not supported, but as the same as n")
    seed = _within("seed", asked.seed, 0, 2**32 - 1, secrets.randbits(32))
    logprobs = asked.logprobs
    if logprobs is not None:
        logprobs = _within("logprobs", logprobs, 0, BEST, 0)
    prompts = _prompts(asked.prompt, served, served.rows // samples)
    options = asked.stream_options or StreamOptions()
    return Completion(
        prompts, most, float(temperature), float(top_p), samples, _stops(asked.stop), logprobs,
        bool(asked.echo), seed, bool(asked.stream), bool(options.include_usage),
    )  # fmt: skip


def _parse(body: bytes) -> _Body:
    try:
        value = serde.parse(body.decode("utf-8-sig"))
    except ValueError as error:  # JSON's and Unicode's errors are of this kind.
        raise ApiError(400, f"the body is not JSON: {str(error)[:200]}") from error
    try:
        asked = serde.build(_Body, value)
    except ValueError as error:
        field = re.match(r"\w*", str(error))[0]
        known = field in _Body.__dataclass_fields__
        raise ApiError(400, str(error)[:300], field if known else None) from error
    for field, values in NEUTRAL.items():
        if getattr(asked, field) not in values:
            raise _wrong(field, "is not supported. Leave it out")
    return asked


def _wrong(field: str, what: str) -> ApiError:
    return ApiError(400, f"{field} {what}", field)


def _within(field: str, value: Any, least: float, most: float, default: Any) -> Any:
    """A number in its range; null is the default."""
    if value is None:
        return default
    if not least <= value <= most:
        raise _wrong(field, f"is {value}: it is from {least} to {most:,} here")
    return value


def _stops(stop: Any) -> tuple[str, ...]:
    found = [] if stop is None else [stop] if isinstance(stop, str) else stop
    is_texts = isinstance(found, list) and all(isinstance(each, str) for each in found)
    if not is_texts or not all(0 < len(each) <= LONGEST_STOP for each in found):
        raise _wrong("stop", f"is text, or a list of texts, of 1 to {LONGEST_STOP} letters each")
    if len(found) > MOST_STOPS:
        raise _wrong("stop", f"has {len(found)} texts: at most {MOST_STOPS}")
    return tuple(found)


def _prompts(prompt: Any, served: Served, most: int) -> tuple[tuple[int, ...], ...]:
    """One text or list of ids, or a list of either: token ids of each."""
    is_one = isinstance(prompt, str) or (
        isinstance(prompt, list) and bool(prompt) and all(isinstance(t, int) for t in prompt)
    )
    many = [prompt] if is_one else prompt
    if not isinstance(many, list) or not many or len({type(each) for each in many}) > 1:
        raise _wrong("prompt", "is text, a list of texts, of token ids, or of lists of token ids")
    if len(many) > most:
        raise _wrong("prompt", f"has {len(many)} prompts: with this n at most {most} are answered")
    return tuple(_ids(each, served) for each in many)


def _ids(prompt: Any, served: Served) -> tuple[int, ...]:
    model = served.model
    if isinstance(prompt, str):
        if len(prompt) > served.most_letters:
            raise _too_long(f"over {model.context} tokens", model)
        try:
            ids = served.tokenizer.encode(prompt)
        except ConfigError as error:
            raise _wrong("prompt", f"cannot be read: {error}") from error
    elif isinstance(prompt, list) and all(type(token) is int for token in prompt):
        ids = prompt
        known = min(model.vocabulary, served.tokenizer.vocabulary)
        wrong = next((t for t in ids if not 0 <= t < known), None)
        if wrong is not None:
            raise _wrong("prompt", f"has token id {str(wrong)[:20]}: they are below {known}")
    else:
        raise _wrong("prompt", "holds what is neither text nor a list of token ids")
    if len(ids) > model.context:
        raise _too_long(f"{len(ids):,} tokens", model)
    return tuple(ids)


def _too_long(length: str, model: Model) -> ApiError:
    message = f"prompt has {length}: the model reads {model.context} at once. Give its end"
    return ApiError(400, message, "prompt", "context_length_exceeded")
