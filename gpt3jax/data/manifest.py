"""What a prepared data folder holds: `manifest.json`, beside `tokenizer.model` and the shards."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gpt3jax import serde
from gpt3jax.errors import ConfigError
from gpt3jax.serde import Count, short_hash

VERSION = 1
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.model"
SHARD = re.compile(r"(train|validation)-\d+-of-\d+\.array_record")
HASH = re.compile(r"[0-9a-f]{16}|[0-9a-f]{64}")


@dataclass(frozen=True)
class Shard:
    """One ArrayRecord file: a window of context+1 little-endian ids in each record."""

    name: str
    windows: Count
    bytes: Count
    sha256: str


@dataclass(frozen=True)
class Split:
    """Training or validation text, in numbers. `bytes` are of UTF-8 text before tokenization.

    Of pairs, bytes and tokens are those that are learned: of completions.
    """

    documents: Count
    invalid_utf8: Count
    """Documents in which U+FFFD replaced bytes that are not UTF-8."""
    bytes: Count
    tokens: Count
    """Each document's tokens and its end-of-text."""
    dropped_tokens: Count
    """Tokens of the tails that were shorter than a window."""
    shards: tuple[Shard, ...]

    @property
    def windows(self) -> int:
        """Windows in all shards."""
        return sum(shard.windows for shard in self.shards)

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text per token; NaN without tokens."""
        return self.bytes / self.tokens if self.tokens else float("nan")


@dataclass(frozen=True)
class Manifest:
    """The record of one `prepare`: what was asked, what was found, what was written."""

    folder: Path = dataclasses.field(compare=False)
    """Where it lies; not part of the record."""
    corpus: str
    field: str
    corpus_hash: str
    """Of the names and sizes of the corpus's parts."""
    context: Count
    vocabulary: Count
    tokenizer: str
    """Hash of tokenizer.model."""
    tokenizer_trained: bool
    """On this corpus, rather than given."""
    validation_fraction: float
    seed: int
    end_of_text: Count
    dtype: Literal["<u2", "<u4", "<i2", "<i4"]
    """Of windows; signed where some tokens are read but not learned (pairs.py)."""
    skipped: dict[str, Count]
    """What was left out of the corpus, by reason."""
    train: Split
    validation: Split
    pairs: tuple[str, ...] = ()
    """The fields of prompt and completion; none: text."""
    version: Count = VERSION

    @property
    def train_windows(self) -> int:
        """Windows to train on."""
        return self.train.windows

    @property
    def validation_windows(self) -> int:
        """Windows held out."""
        return self.validation.windows

    @property
    def shards(self) -> tuple[Shard, ...]:
        """Every shard, training first."""
        return self.train.shards + self.validation.shards

    @property
    def hash(self) -> str:
        """Identifies the windows: tokenizer, context and the content of every shard."""
        shards = [[shard.name, shard.windows, shard.sha256] for shard in self.shards]
        return short_hash([self.version, self.tokenizer, self.context, self.dtype, shards])

    def write(self) -> None:
        """Write manifest.json into the folder."""
        record = dataclasses.asdict(self) | {"hash": self.hash}
        del record["folder"]
        (self.folder / MANIFEST).write_text(json.dumps(record, indent=2) + "\n")


def load_manifest(path: str | os.PathLike[str], flags: str = "") -> Manifest:
    """Read the manifest of a prepared data folder; `flags` are what it is to be made with if not.

    Raises:
      ConfigError: no such folder, not a data folder, or one of another version.
    """
    folder = Path(path)
    if not os.path.isdir(folder):
        raise ConfigError(
            f"data {path} is not there: no such folder. Make it: gpt3jax data prepare --corpus "
            f"FILES --out {shlex.quote(str(path))}{flags}"
        )
    try:
        record = serde.build(dict[str, Any], serde.read(folder / MANIFEST))
        version = record.get("version")
    except FileNotFoundError:
        raise ConfigError(
            f"{path} is not prepared data: it has no {MANIFEST}. "
            "Name a folder that gpt3jax data prepare made"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}/{MANIFEST} is damaged: {error}. Prepare it again") from error
    if version != VERSION:
        raise ConfigError(
            f"data {path} has format {version}: this gpt3jax reads format {VERSION}. "
            "Prepare it again into another folder"
        )
    return _parse(folder, record)


def _parse(folder: Path, record: dict[str, Any]) -> Manifest:
    try:
        written = record.pop("hash", None)
        manifest = serde.build(Manifest, record | {"folder": folder})
        if manifest.hash != written:
            raise ValueError("its hash does not agree")
        for shard in manifest.shards:
            if not (SHARD.fullmatch(shard.name) and HASH.fullmatch(shard.sha256)):
                raise ValueError(f"{shard.name!r} is no shard of it, or has no hash")
        if manifest.train_windows == 0:
            raise ValueError("it has nothing to train on")
        if not HASH.fullmatch(manifest.tokenizer):
            raise ValueError("its tokenizer has no hash")
    except ValueError as error:
        raise ConfigError(f"{folder}/{MANIFEST} is damaged: {error}. Prepare it again") from error
    return manifest


def prepare_again(manifest: Manifest, context: int, tokenizer: Path) -> str:
    """The command that makes other windows of the same corpus, beside those there are."""
    field = "" if manifest.field == "text" else f" --field {shlex.quote(manifest.field)}"
    fields = f" --pairs {shlex.join(manifest.pairs)}" if manifest.pairs else field
    return (
        f"gpt3jax data prepare --context {context} --corpus {manifest.corpus}{fields} "
        f"--tokenizer {tokenizer} --out {manifest.folder}-new"
    )


def verify(path: str | os.PathLike[str], part: int = 0, parts: int = 1) -> Manifest:
    """Compare the bytes of a data folder with its manifest, which is returned.

    Args:
      path: the folder.
      part: which part of the files to read, from 0; hosts share the work.
      parts: how many there are.

    Raises:
      ConfigError: a shard or the tokenizer is missing or has changed.
    """
    manifest = load_manifest(path)
    expected = {TOKENIZER: manifest.tokenizer}
    expected |= {shard.name: shard.sha256 for shard in manifest.shards}
    for name, digest in list(expected.items())[part::parts]:
        file = manifest.folder / name
        if not file.is_file():
            raise ConfigError(f"{file} is missing: the manifest names it. Restore or prepare again")
        if not sha256(file).startswith(digest):
            raise ConfigError(
                f"{file} is damaged: its SHA-256 is not the manifest's. Restore or prepare again"
            )
    return manifest


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
