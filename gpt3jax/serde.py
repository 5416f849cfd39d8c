"""What was stored as JSON, read back: within bounds, and each value of the type it is declared.

A file may have been damaged, or made by somebody who means harm. What is wrong
is a ValueError that says where; who knows the file says what to do about it.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import math
import types
import typing
from pathlib import Path
from typing import Any, Literal, NewType

Count = NewType("Count", int)
"""Annotates a field that counts something: a whole number from 0 to 2^63 - 1."""

LARGEST = 64 << 20
"""Bytes of a JSON file; a manifest takes about 100 for each of its files."""
DEEPEST = 32
"""Containers within each other."""


def read(path: Path) -> Any:
    """The JSON value of a file.

    Raises:
      OSError: it is not there, or not a regular file.
      ValueError: it does not hold JSON, or more than one can mean to.
    """
    return parse(read_bytes(path).decode())


def read_bytes(path: Path, most: int = LARGEST) -> bytes:
    """A file's bytes.

    Raises:
      OSError: it is not there, or not a regular file: a FIFO or a device may have no end.
      ValueError: it is larger than `most`.
    """
    size = path.stat().st_size
    if not path.is_file():
        raise OSError(f"{path} is not a regular file")
    if size > most:
        raise ValueError(f"it has {size} bytes, over {most}")
    return path.read_bytes()


def fill(file: Any, values: Any) -> None:
    """Read an open file into an array in C order, until it is full.

    Raises:
      OSError: it cannot be read.
      ValueError: it ends before.
    """
    view = memoryview(values.reshape(-1).view("uint8"))
    done = 0
    while done < len(view):
        count = file.readinto(view[done:])  # Of a raw file, 2 GiB at most.
        if not count:
            raise ValueError("it is cut short")
        done += count


def parse(text: str) -> Any:
    """The value of a JSON text.

    Raises:
      ValueError: it is none; NaN and infinities are not JSON, nor is a name given twice.
    """
    try:
        value = json.loads(text, parse_constant=_refuse, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("it is nested without end") from None
    level = [value]
    for _ in range(DEEPEST):
        lists = [each for each in level if isinstance(each, list)]
        lists += [each.values() for each in level if isinstance(each, dict)]
        level = [inner for each in lists for inner in each]
    if level:
        raise ValueError(f"it is nested over {DEEPEST} deep")
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object of it has one name twice")
    return found


def build(kind: Any, value: Any, name: str = "") -> Any:
    """A value of a type, from the plain one that `dataclasses.asdict` and JSON make of it.

    Args:
      kind: a dataclass, or what its fields are annotated with: str, int, float, bool, None,
        Count, X | Y, Literal[...], tuple[X, ...], dict[str, X]; Any takes everything.
      value: what JSON gave. A float may be written as a whole number, an int may not be 1.0.
      name: of the value, for messages.

    Raises:
      ValueError: a value is of another type, or a field is missing or unknown; it is named.
    """
    if dataclasses.is_dataclass(kind):
        return _build_fields(kind, value, name)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal and isinstance(value, str) and value in inner:
        return value
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(build(inner[0], each, f"{name}[{at}]") for at, each in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: build(inner[1], each, f"{name}.{key}") for key, each in value.items()}
    if origin in (typing.Union, types.UnionType):
        for each in inner:
            try:
                return build(each, value, name)
            except ValueError:
                continue
    if origin is None and _is_one(value, kind):
        return value
    said = WORDS.get(kind) or str(kind).replace("typing.", "")
    raise ValueError(f"{name or 'it'} is {_short(value)}, not {said}")


WORDS = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text",
    Count: "a count",
}  # fmt: skip


def _is_one(value: Any, kind: Any) -> bool:
    """Whether a value is of a type that has no parts."""
    if kind is Any or isinstance(value, bool):
        return kind in (Any, bool)
    if kind in (int, Count):
        return isinstance(value, int) and (0 if kind is Count else -(2**63)) <= value < 2**63
    if kind is float:
        # Compared, since an int may be too large to be made a float.
        return isinstance(value, int | float) and -math.inf < value < math.inf
    return isinstance(value, kind)


@functools.cache
def _fields(kind: type) -> tuple[dict[str, Any], list[str]]:
    """What each field is declared, and which must be given."""
    fields, none = dataclasses.fields(kind), dataclasses.MISSING
    needed = [f.name for f in fields if f.default is none and f.default_factory is none]
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields}, needed


def _build_fields(kind: type, value: Any, name: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{name or 'it'} is {_short(value)}, not an object")
    declared, needed = _fields(kind)
    for key in value:
        if key not in declared:
            near = difflib.get_close_matches(key, declared, 1, cutoff=0.0)[0]
            raise ValueError(f"{_inner(name, key[:40])} is not known; {_inner(name, near)} is")
    for key in needed:
        if key not in value:
            raise ValueError(f"{_inner(name, key)} is missing")
    return kind(**{key: build(declared[key], v, _inner(name, key)) for key, v in value.items()})


def _inner(name: str, key: str) -> str:
    return f"{name}.{key}".lstrip(".")


def _short(value: Any) -> str:
    """A value in a message; a long one by its beginning."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else f"{text[:37]}..."


def short_hash(value: Any) -> str:
    """Sixteen hex digits that identify a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
