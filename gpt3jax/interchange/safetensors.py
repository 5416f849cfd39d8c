"""Files of tensors that others can read: the safetensors format, read without trust.

    8 bytes: length of the header | JSON header: name -> dtype, shape, place | values

A folder has one file, or several and an index that says which tensor is in which. The package
safetensors reads them, one tensor at a time. They are written here, also one tensor at a time,
because the package writes a file only from tensors that are all in memory. Importing this file
does not import jax.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from gpt3jax import serde
from gpt3jax.errors import ConfigError, truncate
from gpt3jax.serde import Count

LONGEST_HEADER = 16 << 20
"""Bytes; a tensor takes about 100."""
MOST_DIMENSIONS = 8
SHARD_BYTES = 2 << 30
"""A file of several holds at most so much, unless one tensor alone is larger."""
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PLAIN_NAME = re.compile(r"\w[\w.-]{0,199}\.safetensors", re.ASCII)
FLOATS = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""What weights may be stored as: float32 holds each of their values exactly."""
NAMES = {np.dtype(dtype): name for name, dtype in FLOATS.items()}
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file, not yet read."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]

    def read(self) -> np.ndarray:
        """Its values.

        Raises:
          ConfigError: they are not of a dtype that weights have, or cannot be read.
        """
        if self.dtype not in FLOATS:
            raise ConfigError(
                f"tensor {truncate(self.name, 80)} has dtype {self.dtype}: weights are "
                f"{', '.join(FLOATS)}. Save the model as one of these"
            )
        with _opened(self.file) as tensors:
            return tensors.get_tensor(self.name)


@dataclass(frozen=True)
class _Entry:
    """What a header says of a tensor."""

    dtype: str
    shape: tuple[Count, ...]
    data_offsets: tuple[Count, ...]


def read_folder(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model's folder, by name. Files may be links, as a download cache has them.

    Raises:
      ConfigError: there are none, a file is not what its header says, or the index names a
        file that is not one of the folder, or tensors that are not where it says.
    """
    if (folder / SINGLE).exists():
        return read_header(folder / SINGLE)
    if not (folder / INDEX).exists():
        raise ConfigError(
            f"{folder} has no {SINGLE} and no {INDEX}: only safetensors are read, since other "
            "formats can run code. Save the model with safe_serialization=True"
        )
    with _refused(folder / INDEX):
        index = serde.build(dict[str, Any], serde.read(folder / INDEX))
        places = serde.build(dict[str, str], index.get("weight_map"), "weight_map")
        for file in set(places.values()):
            if not PLAIN_NAME.fullmatch(file):
                raise ValueError(f"{truncate(file, 80)!r} is not the name of a file of the folder")
    found: dict[str, Tensor] = {}
    for file in sorted(set(places.values())):
        for name, tensor in read_header(folder / file).items():
            if places.get(name) != file:
                raise ConfigError(
                    f"{folder / file} has a tensor {truncate(name, 80)}, of which "
                    f"{INDEX} does not say "
                    "so: which one counts? Get the folder again"
                )
            found[name] = tensor
    if missing := sorted(places.keys() - found.keys()):
        raise ConfigError(
            f"{folder / INDEX} names a tensor {truncate(missing[0], 80)} that is in no file: "
            "the folder "
            "is not whole. Get it again"
        )
    return found


def read_header(file: Path) -> dict[str, Tensor]:
    """The tensors of a file, by name; no values are read.

    Raises:
      ConfigError: the header is too long, is not JSON, or does not describe the file byte for
        byte: every byte belongs to exactly one tensor.
    """
    with _refused(file):
        header = _read_header(file)
    with _opened(file):  # Compares shapes and places with each other and with the file's size.
        return {name: Tensor(name, file, each.dtype, each.shape) for name, each in header.items()}


def _read_header(file: Path) -> dict[str, _Entry]:
    """A header; unlike the package, refuses names that come twice and fields that are unknown."""
    if not stat.S_ISREG(file.stat().st_mode):
        raise OSError(f"{file} is not a regular file")
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > LONGEST_HEADER:
            raise ValueError(f"its header would take {length:,} bytes")
        header = serde.build(dict[str, Any], serde.parse(opened.read(length).decode()))
    header.pop("__metadata__", None)
    entries = {name: serde.build(_Entry, entry, name[:40]) for name, entry in header.items()}
    for name, entry in entries.items():
        if len(entry.shape) > MOST_DIMENSIONS:
            raise ValueError(f"tensor {name[:80]!r} has {len(entry.shape)} dimensions")
    return entries


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """A file as the package opens it; its errors become ConfigErrors."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ConfigError(
            f"{file} can only be read with the package safetensors. "
            "pip install 'gpt3jax[huggingface]'"
        ) from error
    with _refused(file, SafetensorError), safe_open(file, "np", backend="pread") as tensors:
        yield tensors


@contextmanager
def _refused(file: Path, *others: type[Exception]) -> Iterator[None]:
    """Convert an OSError, a ValueError or one of `others` to a ConfigError that names the file."""
    try:
        yield
    except (OSError, ValueError, *others) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{file} cannot be read: {truncate(str(why), 160)}. Get the file again"
        ) from error


def write_folder(
    folder: Path, shapes: Shapes, dtype: np.dtype, tensors: Iterable[tuple[str, np.ndarray]]
) -> list[str]:
    """Write tensors as they come, into one file or several with an index.

    Args:
      folder: where.
      shapes: of all tensors, in the order in which they come.
      dtype: what they are stored as.
      tensors: names and values; each is let go before the next is asked for.

    Returns:
      The names of the files.
    """
    groups = list(_groups(shapes, dtype.itemsize))
    count = len(groups)
    files = [SINGLE] if count == 1 else [_shard_name(i, count) for i in range(1, count + 1)]
    coming = iter(tensors)
    for file, names in zip(files, groups, strict=True):
        with (folder / file).open("wb") as opened:
            opened.write(_header({name: shapes[name] for name in names}, dtype))
            for name in names:
                given, values = next(coming)
                if (given, values.shape) != (name, shapes[name]):
                    raise ValueError(f"{given} {values.shape} came, not {name} {shapes[name]}")
                opened.write(np.ascontiguousarray(values, dtype).reshape(-1).view(np.uint8).data)
                del values
            opened.flush()
            os.fsync(opened.fileno())
    if count > 1:
        places = {name: file for file, names in zip(files, groups, strict=True) for name in names}
        total = sum(map(math.prod, shapes.values())) * dtype.itemsize
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
        files.append(INDEX)
    return files


def _groups(shapes: Shapes, width: int) -> Iterator[list[str]]:
    """Names of the tensors of each file."""
    names: list[str] = []
    held = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * width
        if names and held + size > SHARD_BYTES:
            yield names
            names, held = [], 0
        names.append(name)
        held += size
    yield names


def _shard_name(number: int, count: int) -> str:
    return f"model-{number:05}-of-{count:05}.safetensors"


def _header(shapes: Shapes, dtype: np.dtype) -> bytes:
    """Length and header of a file; padded, so that values begin at a multiple of 8 bytes."""
    ends = list(itertools.accumulate(math.prod(s) * dtype.itemsize for s in shapes.values()))
    entries = {
        name: {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        for (name, shape), start, end in zip(shapes.items(), [0, *ends], ends, strict=False)
    }
    # transformers asks which library's layout it is; "pt" is the only answer that it takes.
    text = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
