"""Read untrusted JSON files, within size limits, into dataclasses with type checks.

A file may be damaged or malicious. Every fault is a ValueError that names its
location; the caller, which knows the file, adds what to do about it.
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
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

Count = Annotated[int, "count"]
"""Annotates a non-negative integer field, at most 2^63 - 1."""

LARGEST = 64 << 20
"""Maximum bytes of a JSON file; a manifest takes about 100 for each of its files."""
MAX_DEPTH = 32
"""Of nested containers."""


def read(path: Path, most: int = LARGEST) -> Any:
    """The JSON value of a file of at most `most` bytes.

    Raises:
      OSError: the file does not exist, or is not a regular file.
      ValueError: its content is not valid JSON, or exceeds a limit.
    """
    return parse(read_bytes(path, most).decode())


def read_bytes(path: Path, most: int = LARGEST) -> bytes:
    """The bytes of a file.

    Raises:
      OSError: the file does not exist, or is not a regular file: a FIFO or device may never end.
      ValueError: it has more than `most` bytes.
    """
    size = path.stat().st_size
    if not path.is_file():
        raise OSError(f"{path} is not a regular file")
    if size > most:
        raise ValueError(f"it has {size} bytes, over {most}")
    return path.read_bytes()


def parse(text: str) -> Any:
    """Parse a JSON text.

    Raises:
      ValueError: it is not JSON, contains NaN, an infinity or a duplicate key, or is too deep.
    """
    try:
        value = json.loads(text, parse_constant=_refuse, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("it is nested without end") from None
    level = [value]
    for _ in range(MAX_DEPTH):
        lists: list[Iterable[Any]] = [each for each in level if isinstance(each, list)]
        lists += [each.values() for each in level if isinstance(each, dict)]
        level = [inner for each in lists for inner in each]
    if level:
        raise ValueError(f"it is nested over {MAX_DEPTH} deep")
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("an object has a duplicate key")
    return values


def build(kind: Any, value: Any, name: str = "") -> Any:
    """Convert a JSON value to a type: the inverse of `dataclasses.asdict` and JSON.

    Args:
      kind: a dataclass, or the annotation of its fields: str, int, float, bool, None, Count,
        X | Y, Literal[...], tuple[X, ...], dict[str, X], or Any, which accepts everything.
      value: the parsed JSON. A float may be written as an integer, an int not as 1.0.
      name: of the value, for error messages.

    Raises:
      ValueError: a value has the wrong type, or a field is missing or unknown; it is named.
    """
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _build_fields(kind, value, name)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal and isinstance(value, str) and value in inner:
        return value
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(build(inner[0], each, f"{name}[{at}]") for at, each in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: build(inner[1], each, f"{name}.{key}") for key, each in value.items()}
    if origin in (typing.Union, types.UnionType):
        if isinstance(value, dict) and all(map(dataclasses.is_dataclass, inner)):
            # Records of a union have a `name` with a default, but for the first.
            named = value.get("name", "")
            chosen = [each for each in inner if getattr(each, "name", None) == named]
            return build(chosen[0] if chosen else inner[0], value, name)
        for each in inner:
            try:
                return build(each, value, name)
            except ValueError:
                continue
    if (origin is None or kind == Count) and _is_scalar(value, kind):
        return value
    expected = TYPE_NAMES.get(kind) or str(kind).replace("typing.", "")
    raise ValueError(f"{name or 'it'} is {_short(value)}, not {expected}")


TYPE_NAMES: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Count: "a count",
}


def _is_scalar(value: Any, kind: Any) -> bool:
    """Whether a value has a given scalar type."""
    if kind is Any or isinstance(value, bool):
        return kind in (Any, bool)
    if kind in (int, Count):
        return isinstance(value, int) and (0 if kind == Count else -(2**63)) <= value < 2**63
    if kind is float:
        # Compared rather than converted, because an int may overflow a float.
        return isinstance(value, int | float) and -math.inf < value < math.inf
    return isinstance(value, kind)


@functools.cache
def _fields(kind: type) -> tuple[dict[str, Any], list[str]]:
    """The type of each field of a dataclass, and the names of those without a default."""
    fields, none = dataclasses.fields(kind), dataclasses.MISSING
    required = [f.name for f in fields if f.default is none and f.default_factory is none]
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in fields}, required


def _build_fields(kind: type, value: Any, name: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{name or 'it'} is {_short(value)}, not an object")
    declared, required = _fields(kind)
    for key in value:
        if key not in declared:
            closest = difflib.get_close_matches(key, declared, 1, cutoff=0.0)[0]
            raise ValueError(f"{_inner(name, key[:40])} is not known; {_inner(name, closest)} is")
    for key in required:
        if key not in value:
            raise ValueError(f"{_inner(name, key)} is missing")
    return kind(**{key: build(declared[key], v, _inner(name, key)) for key, v in value.items()})


def _inner(name: str, key: str) -> str:
    return f"{name}.{key}".lstrip(".")


def _short(value: Any) -> str:
    """A value for an error message, truncated to 40 characters."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else f"{text[:37]}..."


def short_hash(value: Any) -> str:
    """Sixteen hex digits that identify a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
