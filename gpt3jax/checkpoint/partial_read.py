"""Partial reads of the arrays of a checkpoint, for models that do not fit into memory.

checkpointer.py stores arrays uncompressed (Zarr 2), with a folder per leaf and a file per block,
one block for each device that saved it. A layer of a stack, or some rows of an embedding, are
therefore a few byte ranges of a few files, whatever mesh saved them. TensorStore, which restores
complete states, reads complete files: 101 MB for a layer of 4 MB out of 24 (tensorstore 0.1.86).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from gpt3jax import serde
from gpt3jax.checkpoint.manifest import CheckpointManifest, DamagedError
from gpt3jax.config import Model
from gpt3jax.model.lora import apply_lora
from gpt3jax.model.param_specs import named_specs, param_specs
from gpt3jax.serde import Count

PART_BYTES = 64 << 20
"""Approximate size of each part in `StoredLeaf.parts`."""
DTYPES = {
    "<f4": np.dtype(np.float32),
    "<f2": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


@dataclass(frozen=True)
class StoredLeaf:
    """One leaf of a checkpoint on disk."""

    name: str
    folder: Path
    shape: tuple[int, ...]
    block: tuple[int, ...]
    """Shape of each file; files at the ends of an axis are padded to it."""
    dtype: np.dtype

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of blocks along each axis."""
        return tuple(-(-size // b) for size, b in zip(self.shape, self.block, strict=True))

    def read(self, start: int, stop: int) -> np.ndarray:
        """Entries `start` to `stop` along the first axis.

        Raises:
          DamagedError: a file is missing or too short.
        """
        result = np.empty((stop - start, *self.shape[1:]), self.dtype)
        rows, *widths = self.block
        blocks = [range(start // rows, -(-stop // rows)), *map(range, self.grid[1:])]
        for row, *columns in itertools.product(*blocks):
            begin, end = max(start, row * rows), min(stop, (row + 1) * rows)
            file = ".".join(map(str, (row, *columns)))
            values = self._read_block(file, begin - row * rows, end - row * rows)
            corner = (slice(at * b, (at + 1) * b) for at, b in zip(columns, widths, strict=True))
            target = result[(slice(begin - start, end - start), *corner)]
            target[...] = values[tuple(map(slice, target.shape))]  # Without the padding.
        return result

    def parts(self) -> Iterator[np.ndarray]:
        """The complete leaf in parts along its first axis."""
        entry = math.prod(self.shape[1:]) * self.dtype.itemsize
        step = max(1, PART_BYTES // max(1, entry))
        for start in range(0, self.shape[0], step):
            yield self.read(start, min(start + step, self.shape[0]))

    def _read_block(self, file: str, start: int, stop: int) -> np.ndarray:
        """Entries `start` to `stop` of a block along its first axis, padding included."""
        entry = math.prod(self.block[1:]) * self.dtype.itemsize
        try:
            with (self.folder / file).open("rb") as opened:
                opened.seek(start * entry)
                found = np.fromfile(opened, np.uint8, (stop - start) * entry)
            if found.nbytes < (stop - start) * entry:
                raise ValueError("it is cut short")
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise DamagedError(f"leaf {self.name} cannot be read: {why}") from error
        return found.view(self.dtype).reshape(stop - start, *self.block[1:])


@dataclass(frozen=True)
class StoredParams:
    """The parameters of a checkpoint on disk."""

    model: Model
    leaves: dict[str, StoredLeaf]
    """By the paths of `param_specs`, such as `layers/qkv/kernel`."""

    def read(self, path: str) -> np.ndarray:
        """A complete parameter."""
        leaf = self.leaves[path]
        return leaf.read(0, leaf.shape[0])

    def layer(self, index: int, name: str) -> dict[str, np.ndarray]:
        """The arrays of a part of one layer: kernel and bias of `qkv`, for example.

        LoRA is merged into the kernel.
        """
        arrays, factors = self._stored(index, name), self._stored(index, f"lora/{name}")
        if not factors:
            return arrays
        merged = apply_lora({name: arrays, "lora": {name: factors}}, self.model)[name]
        return {kind: np.asarray(values) for kind, values in merged.items()}

    def _stored(self, index: int, name: str) -> dict[str, np.ndarray]:
        prefix = f"layers/{name}/"
        return {
            path.removeprefix(prefix): leaf.read(index, index + 1)[0]
            for path, leaf in self.leaves.items()
            if path.startswith(prefix)
        }


def open_params(checkpoint: Path, manifest: CheckpointManifest, model: Model) -> StoredParams:
    """The parameters of a checkpoint. Raises the errors of `open_leaf`."""
    return StoredParams(
        model,
        {
            path: open_leaf(checkpoint, manifest, f"params/{path}", spec.shape)
            for path, spec in named_specs(param_specs(model))
        },
    )


def leaf_folder(name: str) -> str:
    """Orbax's folder of a leaf, relative to the checkpoint."""
    part, *rest = name.split("/")
    return f"{part}/{'.'.join(rest)}"


def open_leaf(
    checkpoint: Path, manifest: CheckpointManifest, name: str, shape: tuple[int, ...]
) -> StoredLeaf:
    """Open a leaf by its name in the manifest, such as `params/layers/qkv/kernel`.

    Args:
      checkpoint: the folder of the checkpoint.
      manifest: its manifest; the files have been checked (`manifest.check_files`).
      name: name of the leaf.
      shape: the shape that the model requires.

    Raises:
      DamagedError: the leaf is missing, has another shape, or is stored in another format.
    """
    folder = leaf_folder(name)
    leaf = manifest.leaves.get(name)
    if leaf is None or leaf.shape != shape or f"{folder}/.zarray" not in manifest.files:
        saved = "missing" if leaf is None else leaf.shape
        raise DamagedError(f"leaf {name} is {saved}, the model's is {shape}")
    try:
        layout = serde.build(dict[str, Any], serde.read(checkpoint / folder / ".zarray"))
        block = serde.build(tuple[Count, ...], layout.get("chunks"), "chunks")
        dtype = DTYPES.get(str(layout.get("dtype")))
        expected = {
            "zarr_format": 2,
            "order": "C",
            "compressor": None,
            "filters": None,
            "shape": list(shape),
            "dimension_separator": ".",
        }
        other = next((key for key, value in expected.items() if layout.get(key) != value), None)
        if other or dtype is None:
            raise ValueError(f"its {other or 'dtype'} is {layout.get(other or 'dtype')}")
        if len(block) != len(shape) or not all(block):
            raise ValueError(f"its blocks are {block}")
    except (OSError, ValueError) as error:
        raise DamagedError(f"leaf {name} has an unsupported storage format: {error}") from error
    stored = StoredLeaf(name, checkpoint / folder, shape, block, dtype)
    if math.prod(stored.grid) > len(manifest.files):
        raise DamagedError(f"leaf {name} is incomplete: files are missing")
    for position in itertools.product(*map(range, stored.grid)):
        file = manifest.files.get(f"{folder}/{'.'.join(map(str, position))}")
        if file is None or file.bytes != math.prod(block) * dtype.itemsize:
            raise DamagedError(f"leaf {name} is incomplete: files are missing or truncated")
    return stored
