"""Documents that a Python file generates: `def documents() -> Iterator[str]`.

The function runs three times: to measure the text, for the census, and for the
encoding. Its output cannot be divided, so one process reads it in order. The
part stores a hash of the first output; a function that is not deterministic is
refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from gpt3jax.data.corpora.documents import Document, Part, Skipped, decode_document
from gpt3jax.errors import ConfigError
from gpt3jax.user_code import call, named_errors


def generated_parts(spec: str) -> list[Part]:
    """The one part of `generated:FILE.py`.

    Raises:
      ConfigError: the file does not exist, fails, or yields no documents.
    """
    path = spec.removeprefix("generated:")
    digest, count, size = hashlib.blake2b(digest_size=8), 0, 0
    for raw in _documents(path):
        digest.update(hashlib.blake2b(raw).digest())
        count, size = count + 1, size + len(raw)
    if not size:
        raise ConfigError(f"{path}: documents() yields no text: nothing to read. Yield some")
    return [Part("generated", path, digest.hexdigest(), 0, count, size)]


def read_generated(part: Part, fields: Sequence[str]) -> Iterator[Document | Skipped]:
    """The documents that the file generates; their keys are their numbers.

    Raises:
      ConfigError: they differ from those of the first run.
    """
    name, digest = Path(part.path).name, hashlib.blake2b(digest_size=8)
    for number, raw in enumerate(_documents(part.path)):
        digest.update(hashlib.blake2b(raw).digest())
        yield decode_document(f"{name}:{number}", raw)
    if digest.hexdigest() != part.key:
        raise ConfigError(
            f"{part.path}: documents() yielded other text the second time: it must be "
            "deterministic. Seed its random numbers, and sort its sets"
        )


def _documents(path: str) -> Iterator[bytes]:
    """The UTF-8 texts that a file yields; `decode_document` handles lone surrogates."""
    result = call(path, "documents")
    if isinstance(result, str) or not isinstance(result, Iterable):
        raise ConfigError(
            f"{path}: documents() returned {type(result).__name__}: documents are many texts. "
            "Yield each"
        )
    end = object()
    with named_errors(Path(path)):
        texts = iter(result)
    while True:
        with named_errors(Path(path)):
            text = next(texts, end)
        if text is end:
            return
        if not isinstance(text, str):
            raise ConfigError(
                f"{path}: documents() yielded {type(text).__name__}: a document is text. "
                "Yield strings"
            )
        yield text.encode(errors="surrogatepass")
