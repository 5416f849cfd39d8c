"""The manifest of a prepared data folder, which has a `tokenizer.model` and data shards."""

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
    """Counts and shards of the training or validation split; `bytes` are of UTF-8 text.

    For pairs, only the bytes and tokens of completions are counted.
    """

    documents: Count
    invalid_utf8: Count
    """Documents in which U+FFFD replaced invalid UTF-8."""
    bytes: Count
    tokens: Count
    """Including an end-of-text after each document."""
    dropped_tokens: Count
    """Tokens at the ends of shards that did not fill a window."""
    shards: tuple[Shard, ...]

    @property
    def windows(self) -> int:
        """Number of windows in all shards."""
        return sum(shard.windows for shard in self.shards)

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text per token, or NaN without tokens."""
        return self.bytes / self.tokens if self.tokens else float("nan")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a data folder is prepared with."""

    corpus: str
    field: str
    corpus_hash: str
    """Hash of the names and sizes of the corpus's parts."""
    context: Count
    vocabulary: Count
    tokenizer_trained: bool
    """Whether the tokenizer was trained on this corpus."""
    validation_fraction: float
    seed: int
    pairs: tuple[str, ...] = ()
    """The fields of prompt and completion; empty for text."""

    @property
    def values(self) -> dict[str, Any]:
        """These fields, without those of a subclass."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(Settings)}


@dataclass(frozen=True, kw_only=True)
class Manifest(Settings):
    """The settings, statistics and files of a prepared data folder."""

    folder: Path = dataclasses.field(compare=False)
    """The folder itself; not stored."""
    tokenizer: str
    """Hash of tokenizer.model."""
    end_of_text: Count
    dtype: Literal["<u2", "<u4", "<i2", "<i4"]
    """Of windows; signed for pairs, where ~id marks tokens that are not targets (pairs.py)."""
    skipped: dict[str, Count]
    """Number of skipped documents, by reason."""
    train: Split
    validation: Split
    version: Count = VERSION

    @property
    def train_windows(self) -> int:
        """Number of training windows."""
        return self.train.windows

    @property
    def validation_windows(self) -> int:
        """Number of held-out windows."""
        return self.validation.windows

    @property
    def shards(self) -> tuple[Shard, ...]:
        """All shards, training first."""
        return self.train.shards + self.validation.shards

    @property
    def hash(self) -> str:
        """Hash of the tokenizer, the context and the content of every shard."""
        shards = [[shard.name, shard.windows, shard.sha256] for shard in self.shards]
        return short_hash([self.version, self.tokenizer, self.context, self.dtype, shards])

    def write(self) -> None:
        """Write manifest.json into the folder."""
        record = dataclasses.asdict(self) | {"hash": self.hash}
        del record["folder"]
        (self.folder / MANIFEST).write_text(json.dumps(record, indent=2) + "\n")


def load_manifest(path: str | os.PathLike[str], flags: str = "") -> Manifest:
    """Read the manifest of a prepared data folder.

    Args:
      path: the folder.
      flags: of `data prepare`, suggested in the error message if the folder does not exist.

    Raises:
      ConfigError: the folder does not exist, or is not prepared data of this version.
    """
    folder = Path(path)
    if not os.path.isdir(folder):
        raise ConfigError(
            f"data {path} does not exist: no such folder. Make it: gpt3jax data prepare --corpus "
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
            raise ValueError("its hash does not match")
        for shard in manifest.shards:
            if not (SHARD.fullmatch(shard.name) and HASH.fullmatch(shard.sha256)):
                raise ValueError(f"{shard.name!r} is not the name of a shard, or has no hash")
        if manifest.train_windows == 0:
            raise ValueError("it has no training windows")
        if not HASH.fullmatch(manifest.tokenizer):
            raise ValueError("its tokenizer has no hash")
    except ValueError as error:
        raise ConfigError(f"{folder}/{MANIFEST} is damaged: {error}. Prepare it again") from error
    return manifest


def prepare_again(manifest: Manifest, context: int, tokenizer: Path) -> str:
    """The command that prepares the same corpus with other settings, into a new folder."""
    field = "" if manifest.field == "text" else f" --field {shlex.quote(manifest.field)}"
    fields = f" --pairs {shlex.join(manifest.pairs)}" if manifest.pairs else field
    return (
        f"gpt3jax data prepare --context {context} --corpus {manifest.corpus}{fields} "
        f"--tokenizer {tokenizer} --out {manifest.folder}-new"
    )


def verify(path: str | os.PathLike[str], part: int = 0, parts: int = 1) -> Manifest:
    """Check the SHA-256 of a data folder's files against its manifest, and return it.

    Args:
      path: the folder.
      part: index of the part of the files to check; hosts share the work.
      parts: number of parts.

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
