"""Documents that a Python file makes: `def documents() -> Iterator[str]`.

The file is run at each reading: once to see how much there is, once for the
census, once to be encoded. One process does it, in order, since what comes out
of a function cannot be cut. A part carries the hash of all that came out at
first, so a file that gives something else the next time is found out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from gpt3jax.data.corpora.documents import Document, Part, Skipped, decode_document
from gpt3jax.errors import ConfigError
from gpt3jax.user_code import call, naming


def generated_parts(spec: str) -> list[Part]:
    """The one part of `generated:FILE.py`.

    Raises:
      ConfigError: the file is not there, cannot be run, or gives no documents.
    """
    path = spec.removeprefix("generated:")
    digest, count, size = hashlib.blake2b(digest_size=8), 0, 0
    for raw in _documents(path):
        digest.update(hashlib.blake2b(raw).digest())
        count, size = count + 1, size + len(raw)
    if not size:
        raise ConfigError(f"{path}: documents() gives no text: nothing to read. Yield some")
    return [Part("generated", path, digest.hexdigest(), 0, count, size)]


def read_generated(part: Part, fields: Sequence[str]) -> Iterator[Document | Skipped]:
    """The documents that the file makes, named by their number.

    Raises:
      ConfigError: they are not those of the first time.
    """
    name, digest = Path(part.path).name, hashlib.blake2b(digest_size=8)
    for number, raw in enumerate(_documents(part.path)):
        digest.update(hashlib.blake2b(raw).digest())
        yield decode_document(f"{name}:{number}", raw)
    if digest.hexdigest() != part.key:
        raise ConfigError(
            f"{part.path}: documents() gave other text the second time: data must come out the "
            "same whenever it is made. Give its random numbers a seed, and sort its sets"
        )


def _documents(path: str) -> Iterator[bytes]:
    """What the file yields, as UTF-8; a lone surrogate is left for `decode_document` to count."""
    made = call(path, "documents")
    if isinstance(made, str) or not isinstance(made, Iterable):
        raise ConfigError(
            f"{path}: documents() returned {type(made).__name__}: documents are many texts. "
            "Yield each"
        )
    end = object()
    with naming(Path(path)):
        texts = iter(made)
    while True:
        with naming(Path(path)):
            text = next(texts, end)
        if text is end:
            return
        if not isinstance(text, str):
            raise ConfigError(
                f"{path}: documents() yielded {type(text).__name__}: a document is text. "
                "Yield strings"
            )
        yield text.encode(errors="surrogatepass")
