"""Broken files, through libraries of C++: run as a program, since a crash would end the tests.

    python native.py tokenizer|parquet FILE FEW

FILE is a whole one. What is tried lies in FILE.tried, so that the last one can be looked at.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from hypothesis import given
from mutations import bounds, broken_bytes, tries

from gpt3jax.data.corpora.documents import Document, Skipped
from gpt3jax.data.corpora.open import open_corpus
from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.errors import ConfigError

TEXTS = ("def f(x):\n    return x + 1\n", "the loss\r\n", "▁ ▅\0 \t日本語 \U0001f469‍\U0001f467", "")


def read_tokenizer(file: Path) -> None:
    """It works as any tokenizer does, or is refused."""
    tokenizer = Tokenizer.load(file)
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    tokenizer.decode(range(tokenizer.vocabulary))


def read_parquet(file: Path) -> None:
    """Rows are documents or are counted, or the field is not there."""
    corpus = open_corpus(str(file))
    found = [item for part in corpus.parts for item in corpus.read(part)]
    assert all(isinstance(item, Document | Skipped) for item in found)


READERS: dict[str, Callable[[Path], None]] = {"tokenizer": read_tokenizer, "parquet": read_parquet}


def main(what: str, file: str, few: str) -> None:
    """Try so many broken ones."""
    tried = Path(f"{file}.tried.{what}")

    @tries(int(few))
    @given(content=broken_bytes(Path(file).read_bytes()))
    def check(content: bytes) -> None:
        tried.write_bytes(content)
        with bounds(tried.parent):
            try:
                READERS[what](tried)
            except ConfigError as error:
                assert "\n" not in str(error)

    check()


if __name__ == "__main__":
    main(*sys.argv[1:])
