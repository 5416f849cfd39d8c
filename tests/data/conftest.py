"""Tiny corpora, and data prepared from them."""

import random
from pathlib import Path

import pytest

from gpt3jax.data.prepare.prepare import prepare

WORDS = ["attention", "window", "token", "gradient", "layer", "value", "key", "query", "head"]


def _write_folder(folder: Path, files: int = 120, seed: int = 0) -> Path:
    """Text files of made-up lines; each file names itself, so that it can be recognised."""
    rng = random.Random(seed)
    folder.mkdir(parents=True)
    for i in range(files):
        lines = [" ".join(rng.choices(WORDS, k=9)) for _ in range(rng.randint(5, 30))]
        (folder / f"{i:03d}.txt").write_text(f"file{i:03d}\n" + "\n".join(lines) + "\n")
    return folder


@pytest.fixture
def write_folder():
    """The function (folder, files=120, seed=0) that writes such a corpus."""
    return _write_folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """120 text files, about 120 kB."""
    return _write_folder(tmp_path_factory.mktemp("corpus") / "texts")


@pytest.fixture(scope="session")
def data(folder, tmp_path_factory):
    """The folder, prepared at context 32, vocabulary 300."""
    out = tmp_path_factory.mktemp("data") / "texts"
    return prepare(str(folder), str(out), context=32, vocabulary=300, workers=1)


@pytest.fixture(scope="session")
def other(data, tmp_path_factory):
    """A smaller source, with the same tokenizer."""
    texts = _write_folder(tmp_path_factory.mktemp("corpus") / "other", files=30, seed=1)
    out = tmp_path_factory.mktemp("data") / "other"
    tokenizer = str(data.folder / "tokenizer.model")
    return prepare(str(texts), str(out), context=32, vocabulary=300, tokenizer=tokenizer, workers=1)
