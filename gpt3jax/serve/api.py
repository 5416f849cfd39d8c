"""Parsing and validation of requests to OpenAI's completions API."""

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
"""Maximum size of a request body, in bytes."""
MOST_STOPS, LONGEST_STOP = 16, 256
HIGHEST_TEMPERATURE = 2.0
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "suffix": (None, ""),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
}
"""Unsupported parameters that OpenAI's clients may send, with the values that have no effect."""


class ApiError(Exception):
    """An error response: HTTP status, message, and the invalid field and OpenAI's code, if any."""

    def __init__(
        self, status: int, message: str, parameter: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.parameter, self.code = status, parameter, code

    def to_json(self) -> dict[str, Any]:
        """The error in OpenAI's format."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        other = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = kinds.get(self.status, other)
        error = {"message": str(self), "type": kind, "param": self.parameter, "code": self.code}
        return {"error": error}


@dataclass(frozen=True)
class StreamOptions:
    """The field `stream_options` of a request."""

    include_usage: bool | None = False
    include_obfuscation: bool | None = False
    """Ignored."""


@dataclass(frozen=True)
class _Body:
    """The fields of a request, with OpenAI's defaults."""

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
    """A valid request."""

    prompts: tuple[tuple[int, ...], ...]
    """Token ids; an empty prompt starts a new document."""
    most: int
    """Maximum number of new tokens."""
    temperature: float
    top_p: float
    samples: int
    """Samples per prompt."""
    stop: tuple[str, ...]
    logprobs: int | None
    """Number of top logprobs returned per token; None: no logprobs."""
    echo: bool
    seed: int
    stream: bool
    include_usage: bool


@dataclass(frozen=True)
class Served:
    """The served model, and the limits of one request."""

    name: str
    """The model's name in requests."""
    model: Model
    tokenizer: Tokenizer
    new_tokens: int
    """Maximum number of new tokens per row."""
    rows: int
    """Maximum number of rows: prompts times samples."""

    @cached_property
    def max_characters(self) -> int:
        """An upper bound on the length of a prompt that fits the context, in characters."""
        ids = range(self.tokenizer.vocabulary)
        return self.model.context * max(len(self.tokenizer.token_bytes(token)) for token in ids)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """A unique name for each row of the vocabulary, for logprobs.

        `top_logprobs` of OpenAI's completions is keyed by token text, but two tokens may have the
        same text: a byte token and a learned piece. The piece, which has the higher id, is named
        by its text, and the other by its bytes, as OpenAI names tokens that are not UTF-8:
        `bytes:\\x61`. A row without a token is named `<id>`.
        """
        known = range(min(self.tokenizer.vocabulary, self.model.vocabulary))
        tokens: dict[str, int] = {}
        for token in (*reversed(known), *range(len(known), self.model.vocabulary)):
            names = [f"<{token}>"]
            if token in known:
                names = _token_names(self.tokenizer.token_bytes(token))
            if token == self.tokenizer.end_of_text:
                names = [END_OF_TEXT]
            more = (f"{names[-1]}#{n}" for n in itertools.count(2))
            name = next(name for name in itertools.chain(names, more) if name not in tokens)
            tokens[name] = token
        return tuple(sorted(tokens, key=tokens.__getitem__))


def _token_names(raw: bytes) -> list[str]:
    """Candidate names of a token: its text, if it is UTF-8, and its escaped bytes."""
    escaped = "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
    with contextlib.suppress(UnicodeDecodeError):
        return [raw.decode(), escaped]
    return [escaped]


def completion(body: bytes, served: Served) -> Completion:
    """Parse and validate the JSON body of a request.

    Raises:
      ApiError: the request is invalid; the message names the field.
    """
    fields = _parse(body)
    if fields.model not in (None, served.name):
        message = f"there is no model {fields.model[:80]!r} here: {served.name!r} is served"
        raise ApiError(404, message, "model", "model_not_found")
    most = _check_range("max_tokens", fields.max_tokens, 0, served.new_tokens, 16)
    temperature = _check_range("temperature", fields.temperature, 0, HIGHEST_TEMPERATURE, 1.0)
    if 0 < temperature < 1e-6:
        raise _invalid("temperature", f"is {temperature}: it must be 0, or at least 1e-6")
    top_p = _check_range("top_p", fields.top_p, 0, 1, 1.0)
    if top_p == 0:
        raise _invalid("top_p", "is 0: it must be above 0, and at most 1")
    samples = _check_range("n", fields.n, 1, served.rows, 1)
    if fields.best_of not in (None, samples):
        raise _invalid("best_of", "is not supported unless it equals n")
    seed = _check_range("seed", fields.seed, 0, 2**32 - 1, secrets.randbits(32))
    logprobs = _check_range("logprobs", fields.logprobs, 0, BEST, None)
    options = fields.stream_options or StreamOptions()
    return Completion(
        prompts=_prompts(fields.prompt, served, served.rows // samples),
        most=most,
        temperature=float(temperature),
        top_p=float(top_p),
        samples=samples,
        stop=_stops(fields.stop),
        logprobs=logprobs,
        echo=bool(fields.echo),
        seed=seed,
        stream=bool(fields.stream),
        include_usage=bool(options.include_usage),
    )


def _parse(body: bytes) -> _Body:
    try:
        value = serde.parse(body.decode("utf-8-sig"))
    except ValueError as error:  # The base class of JSON and Unicode errors.
        raise ApiError(400, f"the body is not JSON: {str(error)[:200]}") from error
    try:
        body_fields = serde.build(_Body, value)
    except ValueError as error:
        field = re.split(r"\W", str(error), maxsplit=1)[0]
        known = field in _Body.__dataclass_fields__
        raise ApiError(400, str(error)[:300], field if known else None) from error
    for field, values in NEUTRAL.items():
        if getattr(body_fields, field) not in values:
            raise _invalid(field, "is not supported. Leave it out")
    return body_fields


def _invalid(field: str, reason: str) -> ApiError:
    return ApiError(400, f"{field} {reason}", field)


def _check_range(field: str, value: Any, least: float, most: float, default: Any) -> Any:
    """The value, or the default if it is null; raises ApiError if it is out of range."""
    if value is None:
        return default
    if not least <= value <= most:
        raise _invalid(field, f"is {value}: it must be from {least} to {most:,}")
    return value


def _stops(stop: Any) -> tuple[str, ...]:
    stops = [] if stop is None else [stop] if isinstance(stop, str) else stop
    are_strings = isinstance(stops, list) and all(isinstance(each, str) for each in stops)
    if not are_strings or not all(0 < len(each) <= LONGEST_STOP for each in stops):
        raise _invalid(
            "stop", f"must be a string or a list of strings, of 1 to {LONGEST_STOP} characters each"
        )
    if len(stops) > MOST_STOPS:
        raise _invalid("stop", f"has {len(stops)} strings: at most {MOST_STOPS} are allowed")
    return tuple(stops)


def _prompts(prompt: Any, served: Served, most: int) -> tuple[tuple[int, ...], ...]:
    """Token ids of the prompts: a string or a list of ids, or a list of either."""
    is_one = isinstance(prompt, str) or (
        isinstance(prompt, list) and bool(prompt) and all(isinstance(t, int) for t in prompt)
    )
    many = [prompt] if is_one else prompt
    if not isinstance(many, list) or not many or len({type(each) for each in many}) > 1:
        raise _invalid(
            "prompt", "must be a string, or a list of strings, of token ids, or of lists of ids"
        )
    if len(many) > most:
        raise _invalid("prompt", f"has {len(many)} prompts: with this n at most {most} are allowed")
    return tuple(_ids(each, served) for each in many)


def _ids(prompt: Any, served: Served) -> tuple[int, ...]:
    model = served.model
    if isinstance(prompt, str):
        if len(prompt) > served.max_characters:
            raise _too_long(f"over {model.context} tokens", model)
        try:
            ids = served.tokenizer.encode(prompt)
        except ConfigError as error:
            raise _invalid("prompt", f"cannot be read: {error}") from error
    elif isinstance(prompt, list) and all(type(token) is int for token in prompt):
        ids = prompt
        known = min(model.vocabulary, served.tokenizer.vocabulary)
        unknown = next((t for t in ids if not 0 <= t < known), None)
        if unknown is not None:
            raise _invalid("prompt", f"has token id {str(unknown)[:20]}: ids are below {known}")
    else:
        raise _invalid("prompt", "must consist of strings or lists of token ids")
    if len(ids) > model.context:
        raise _too_long(f"{len(ids):,} tokens", model)
    return tuple(ids)


def _too_long(length: str, model: Model) -> ApiError:
    message = f"prompt has {length}: the model's context is {model.context}. Give its end"
    return ApiError(400, message, "prompt", "context_length_exceeded")
