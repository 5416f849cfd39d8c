"""Tokenization speed compared with Hugging Face's tokenizers, on one core each.

    python benchmarks/against_tokenizers.py FOLDER [--vocabulary 8192] [--pairs 5]

Both train a BPE vocabulary of the same size (byte-level or byte-fallback) on the files of a folder
and then encode all of them. gpt3jax uses SentencePiece, one file at a time, like each process of
`data prepare`. The vocabularies differ, so the rate is bytes of text per second, printed with the
mean bytes per token. The two sides alternate.

It needs the package `tokenizers`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
MOST_BYTES = 20_000_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder of text files")
    parser.add_argument("--vocabulary", type=int, default=8192, help="vocabulary size (8192)")
    parser.add_argument("--pairs", type=int, default=5, help="measurements per side (5)")
    options = parser.parse_args()
    texts = read(options.folder)
    size = sum(len(text.encode()) for text in texts)
    sides = {
        "gpt3jax": gpt3jax_encoder(texts, options.vocabulary),
        "tokenizers": hugging_face_encoder(texts, options.vocabulary),
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    tokens = {}
    for _ in range(options.pairs):
        for name, encode in sides.items():
            began = time.perf_counter()
            tokens[name] = encode(texts)
            rates[name].append(size / 1e6 / (time.perf_counter() - began))
    print(f"{len(texts):,} files, {size / 1e6:.1f} MB, vocabulary {options.vocabulary:,}")
    for name in sides:
        median = statistics.median(rates[name])
        print(f"{name:11} {median:6.2f} MB/s   {size / tokens[name]:.2f} bytes per token")
    pairs = zip(rates["gpt3jax"], rates["tokenizers"], strict=True)
    print(
        f"ratio, median of {options.pairs} pairs: {statistics.median(a / b for a, b in pairs):.2f}"
    )


def read(folder: Path) -> list[str]:
    """Reads the UTF-8 files of a folder, up to about `MOST_BYTES`."""
    texts, size = [], 0
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or size > MOST_BYTES:
            continue
        try:
            texts.append(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            continue
        size += path.stat().st_size
    return texts


def gpt3jax_encoder(texts: list[str], vocabulary: int) -> Callable[[list[str]], int]:
    from gpt3jax.data.tokenizer import Tokenizer, train_tokenizer

    tokenizer = Tokenizer(train_tokenizer(texts, vocabulary))
    return lambda texts: sum(len(tokenizer.encode(text)) for text in texts)


def hugging_face_encoder(texts: list[str], vocabulary: int) -> Callable[[list[str]], int]:
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, vocab_size=vocabulary, show_progress=False)
    return lambda texts: sum(len(tokenizer.encode(text).ids) for text in texts)


if __name__ == "__main__":
    main()
