"""Parts of a checkpoint's leaves, read one at a time: a model need not fit into memory.

Leaves lie as checkpointer.py stores them, uncompressed (Zarr 2): a folder per leaf,
a file per block of it, one block per device that saved it. So this layer of a
stack, or these rows of a table, are a few stretches of a few files, whatever mesh
they come from.
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
"""About so much is read at a time where no part is asked for."""
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
    """Shape of each file of values; those at the ends are padded to it."""
    dtype: np.dtype

    def read(self, start: int, stop: int) -> np.ndarray:
        """Entries `start` to `stop` along the first axis.

        Raises:
          DamagedError: a file is shorter than it should be, or gone.
        """
        found = np.empty((stop - start, *self.shape[1:]), self.dtype)
        rows, *columns = self.block
        inner = [
            [
                (at, slice(at * width, min((at + 1) * width, size)))
                for at in range(-(-size // width))
            ]
            for size, width in zip(self.shape[1:], columns, strict=True)
        ]
        for row in range(start // rows, -(-stop // rows)):
            begin, end = max(start, row * rows), min(stop, (row + 1) * rows)
            target = found[begin - start : end - start]
            for places in itertools.product(*inner):
                name = ".".join(map(str, (row, *(at for at, _ in places))))
                there = tuple(each for _, each in places)
                if tuple(columns) == self.shape[1:]:
                    self._fill(target, name, begin - row * rows)
                    continue
                values = np.empty((end - begin, *columns), self.dtype)
                self._fill(values, name, begin - row * rows)
                kept = tuple(slice(each.stop - each.start) for each in there)
                target[(slice(None), *there)] = values[(slice(None), *kept)]
        return found

    def parts(self) -> Iterator[np.ndarray]:
        """All of it, some of the first axis at a time."""
        entry = math.prod(self.shape[1:]) * self.dtype.itemsize
        step = max(1, PART_BYTES // max(1, entry))
        for start in range(0, self.shape[0], step):
            yield self.read(start, min(start + step, self.shape[0]))

    def _fill(self, values: np.ndarray, file: str, start: int) -> None:
        """Read entries of a block, from `start` on, until the array is full."""
        entry = math.prod(self.block[1:]) * self.dtype.itemsize
        try:
            with (self.folder / file).open("rb", buffering=0) as opened:
                opened.seek(start * entry)
                serde.fill(opened, values)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise DamagedError(f"leaf {self.name} cannot be read: {why}") from error


@dataclass(frozen=True)
class StoredParams:
    """The parameters of a checkpoint on disk, as the table names them."""

    model: Model
    leaves: dict[str, StoredLeaf]
    """By path, as `layers/qkv/kernel`."""

    def whole(self, path: str) -> np.ndarray:
        """One that is not stacked."""
        leaf = self.leaves[path]
        return leaf.read(0, leaf.shape[0])

    def layer(self, index: int, name: str) -> dict[str, np.ndarray]:
        """The arrays of a name in one layer, by kind: of `qkv`, kernel and bias.

        What LoRA learned is in the kernel.
        """
        found, factors = self._stored(index, name), self._stored(index, f"lora/{name}")
        if not factors:
            return found
        changed = apply_lora({name: found, "lora": {name: factors}}, self.model)[name]
        return {kind: np.asarray(values) for kind, values in changed.items()}

    def _stored(self, index: int, name: str) -> dict[str, np.ndarray]:
        prefix = f"layers/{name}/"
        return {
            path.removeprefix(prefix): leaf.read(index, index + 1)[0]
            for path, leaf in self.leaves.items()
            if path.startswith(prefix)
        }


def open_params(checkpoint: Path, manifest: CheckpointManifest, model: Model) -> StoredParams:
    """The parameters of a checkpoint. Raises as `open_leaf`."""
    return StoredParams(
        model,
        {
            path: open_leaf(checkpoint, manifest, f"params/{path}", spec.shape)
            for path, spec in named_specs(param_specs(model))
        },
    )


def leaf_folder(name: str) -> str:
    """Where in a checkpoint Orbax keeps a leaf."""
    part, *rest = name.split("/")
    return f"{part}/{'.'.join(rest)}"


def open_leaf(
    checkpoint: Path, manifest: CheckpointManifest, name: str, shape: tuple[int, ...]
) -> StoredLeaf:
    """A leaf by its name in the manifest, as `params/layers/qkv/kernel`.

    Args:
      checkpoint: its folder.
      manifest: what the folder holds; its files have been checked (`manifest.check_files`).
      name: of the leaf.
      shape: what the model has there.

    Raises:
      DamagedError: it is not there, has another shape, or is not stored as we store.
    """
    folder = leaf_folder(name)
    leaf = manifest.leaves.get(name)
    if leaf is None or leaf.shape != shape or f"{folder}/.zarray" not in manifest.files:
        found = "missing" if leaf is None else leaf.shape
        raise DamagedError(f"leaf {name} is {found}, the model's is {shape}")
    try:
        layout = serde.build(dict[str, Any], serde.read(checkpoint / folder / ".zarray"))
        block = serde.build(tuple[Count, ...], layout.get("chunks"), "chunks")
        dtype = DTYPES.get(str(layout.get("dtype")))
        expected = {
            "zarr_format": 2, "order": "C", "compressor": None, "filters": None,
            "shape": list(shape), "dimension_separator": ".",
        }  # fmt: skip
        other = next((key for key, value in expected.items() if layout.get(key) != value), None)
        if other or dtype is None:
            raise ValueError(f"its {other or 'dtype'} is {layout.get(other or 'dtype')}")
        if len(block) != len(shape) or not all(block):
            raise ValueError(f"its blocks are {block}")
    except (OSError, ValueError) as error:
        raise DamagedError(f"leaf {name} is not stored as we store: {error}") from error
    grid = [-(-size // each) for size, each in zip(shape, block, strict=True)]
    size = math.prod(block) * dtype.itemsize
    if math.prod(grid) > len(manifest.files):
        raise DamagedError(f"leaf {name} is not whole: files of it are missing")
    for place in itertools.product(*map(range, grid)):
        file = manifest.files.get(f"{folder}/{'.'.join(map(str, place))}")
        if file is None or file.bytes != size:
            raise DamagedError(f"leaf {name} is not whole: files of it are missing or cut short")
    return StoredLeaf(name, checkpoint / folder, shape, block, dtype)
