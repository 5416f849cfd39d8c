"""The checkpoint manifest, `manifest.json`: every array and file of the checkpoint, with hashes.

It is written last, before the folder is renamed to its final name; a folder without one is not a
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
"""Larger array chunks have no file hash, since the hash of their leaf covers them."""
LARGEST = 1 << 30
"""Maximum size of a hashed file, bytes."""
CHUNK = re.compile(r"\d+(\.\d+)*")
"""Names of Zarr's chunk files: an index along each axis."""


class DamagedError(RunError):
    """A checkpoint differs from what was saved; the message names the file or the leaf."""


@dataclass(frozen=True)
class Leaf:
    """One array of the state."""

    shape: tuple[Count, ...]
    dtype: str
    hash: str
    """Hash of the values (array_hash.py), independent of the mesh."""


@dataclass(frozen=True)
class File:
    """One file of the folder."""

    bytes: Count
    sha256: str | None
    """None for large array chunks."""


@dataclass(frozen=True)
class CheckpointManifest:
    """Position, origin and contents of a checkpoint."""

    step: Count
    sequences: Count
    """Windows consumed since the start."""
    skips: tuple[Skip, ...]
    """Ranges of the data that were skipped before this step."""
    identity: str
    """Hash of the run's identity."""
    code: dict[str, str]
    """Versions of the packages that wrote it."""
    leaves: dict[str, Leaf]
    files: dict[str, File] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def state(self) -> str:
        """Hash of the complete state and its position, sixteen hex digits."""
        leaves = {name: dataclasses.astuple(leaf) for name, leaf in self.leaves.items()}
        return short_hash([self.step, self.sequences, leaves])

    def write(self, folder: Path) -> None:
        """Write the manifest of a folder, with the files that it contains now."""
        manifest = dataclasses.replace(self, files=dict(_files(folder)))
        record = dataclasses.asdict(manifest) | {"state": self.state}
        write_atomic(
            folder / MANIFEST_FILE, json.dumps(record | {"hash": short_hash(record)}) + "\n"
        )


def read_manifest(folder: Path) -> CheckpointManifest:
    """The manifest of a checkpoint.

    Raises:
      DamagedError: the manifest is missing or was modified.
    """
    try:
        record = serde.build(dict[str, Any], serde.read(folder / MANIFEST_FILE))
        recorded_hash = record.pop("hash", None)
        if short_hash(record) != recorded_hash:
            raise ValueError("its own hash does not agree")
        if record.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}, which this gpt3jax reads")
        record.pop("state", None)
        return serde.build(CheckpointManifest, record)
    except (OSError, ValueError) as error:
        raise DamagedError(f"{MANIFEST_FILE} cannot be trusted: {error}") from error


def check_files(folder: Path, manifest: CheckpointManifest) -> None:
    """Compare the size of every file, and the hash of small ones, with the manifest.

    Raises:
      DamagedError: a file is missing or differs.
    """
    for name, expected in manifest.files.items():
        try:
            actual = _file(folder, name, expected.bytes)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise DamagedError(f"file {name:.100} cannot be read: {why}") from error
        if actual != expected:
            what = "size" if actual.bytes != expected.bytes else "content"
            raise DamagedError(f"file {name:.100} has another {what} than when it was saved")


def _files(folder: Path) -> list[tuple[str, File]]:
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return [(name, _file(folder, name)) for name in names if name != MANIFEST_FILE]


def _file(folder: Path, name: str, expected: int | None = None) -> File:
    """Size and hash of a file; the hash only if the size is as expected."""
    path = folder / name
    status = os.stat(path)
    is_inside = path.resolve().is_relative_to(folder.resolve())
    # Only normalised names: with `x/../x` a manifest could have the same file read many times.
    if not (stat.S_ISREG(status.st_mode) and is_inside and os.path.normpath(name) == name):
        raise DamagedError(f"{name:.100} is not a file of the checkpoint")
    size = status.st_size
    is_values = size > HASHED_BYTES and CHUNK.fullmatch(path.name)
    if is_values or (expected is not None and size != min(expected, LARGEST)):
        return File(size, None)
    with path.open("rb") as file:
        return File(size, hashlib.file_digest(file, "sha256").hexdigest())
