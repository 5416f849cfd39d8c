"""The manifest of a checkpoint: `manifest.json`, which says what must be found in its folder.

It is written last, before the folder gets its name; a folder without one is no
checkpoint. Importing this file does not import jax.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt3jax import serde
from gpt3jax.errors import RunError
from gpt3jax.run_dir import Skip, write_atomic
from gpt3jax.serde import Count, short_hash

FORMAT = 1
MANIFEST_FILE = "manifest.json"
HASHED_BYTES = 1 << 20
"""Larger files of values are not hashed: each byte of theirs is in a leaf's hash."""
LARGEST = 1 << 30
"""Bytes of a file that is hashed."""
CHUNK = re.compile(r"\d+(\.\d+)*")
"""Zarr's names for files of values: a place along each axis."""


class DamagedError(RunError):
    """A checkpoint is not what was saved. The message names the file or the leaf."""


@dataclass(frozen=True)
class Leaf:
    """One array of the state."""

    shape: tuple[Count, ...]
    dtype: str
    hash: str
    """Of its values (array_hash.py): the same on every mesh."""


@dataclass(frozen=True)
class File:
    """One file of the folder."""

    bytes: Count
    sha256: str | None
    """None for large files of values."""


@dataclass(frozen=True)
class CheckpointManifest:
    """What a checkpoint holds."""

    step: Count
    sequences: Count
    """Windows consumed since the start."""
    skips: tuple[Skip, ...]
    """Stretches of the data that were passed over on the way here."""
    identity: str
    """Hash of the run's identity."""
    code: dict[str, str]
    """Versions that wrote it."""
    leaves: dict[str, Leaf]
    files: dict[str, File] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def state(self) -> str:
        """Sixteen hex digits that identify every bit of the state and its position."""
        leaves = {name: dataclasses.astuple(leaf) for name, leaf in self.leaves.items()}
        return short_hash([self.step, self.sequences, leaves])

    def write(self, folder: Path) -> None:
        """Seal a folder with what is in it now."""
        manifest = dataclasses.replace(self, files=dict(_files(folder)))
        record = dataclasses.asdict(manifest) | {"state": self.state}
        write_atomic(
            folder / MANIFEST_FILE, json.dumps(record | {"hash": short_hash(record)}) + "\n"
        )


def read_manifest(folder: Path) -> CheckpointManifest:
    """The manifest of a checkpoint.

    Raises:
      DamagedError: there is none, or it was changed.
    """
    try:
        record = serde.build(dict[str, Any], serde.read(folder / MANIFEST_FILE))
        written = record.pop("hash", None)
        if short_hash(record) != written:
            raise ValueError("its own hash does not agree")
        if record.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}, which this gpt3jax reads")
        record.pop("state", None)
        return serde.build(CheckpointManifest, record)
    except (OSError, ValueError) as error:
        raise DamagedError(f"{MANIFEST_FILE} cannot be trusted: {error}") from error


def check_files(folder: Path, manifest: CheckpointManifest) -> None:
    """Compare names and sizes of all files with the manifest, and what small ones hold.

    Raises:
      DamagedError: a file is missing or differs.
    """
    for name, expected in manifest.files.items():
        try:
            found = _file(folder, name, expected.bytes)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise DamagedError(f"file {name:.100} cannot be read: {why}") from error
        if found != expected:
            what = "size" if found.bytes != expected.bytes else "content"
            raise DamagedError(f"file {name:.100} has another {what} than when it was saved")


def _files(folder: Path) -> list[tuple[str, File]]:
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return [(name, _file(folder, name)) for name in names if name != MANIFEST_FILE]


def _file(folder: Path, name: str, expected: int | None = None) -> File:
    """What is there by this name; the content only if the size is as expected."""
    path = folder / name
    found = os.stat(path)
    is_inside = path.resolve().is_relative_to(folder.resolve())
    # One name per file: by `x/../x` a manifest could have a file read for ever.
    if not (stat.S_ISREG(found.st_mode) and is_inside and os.path.normpath(name) == name):
        raise DamagedError(f"{name:.100} is not a file of the checkpoint")
    size = found.st_size
    is_values = size > HASHED_BYTES and CHUNK.fullmatch(path.name)
    if is_values or (expected is not None and size != min(expected, LARGEST)):
        return File(size, None)
    with path.open("rb") as file:
        return File(size, hashlib.file_digest(file, "sha256").hexdigest())
