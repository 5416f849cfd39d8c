"""The page: a record of plain values and arrays, and the script that draws it, in one file.

It needs nothing outside itself. Its own policy lets only this script run, by its
hash, and nothing be fetched; what a model wrote is data, and is only ever set as
text.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import numpy as np

from gpt3jax.data.tokenizer import Tokenizer

SCRIPTS = ("base", "whole", "track", "lens", "heads", "anatomy", "training", "shots", "start")
"""In template/, in their order: what all use, one for each section, and what begins."""

KINDS = {"f": ("float32", "float16"), "u": ("uint32", "uint16", "uint8"), "i": ("int32",)}


def page(title: str, record: dict[str, Any]) -> str:
    """The record as one HTML page; any text is safe in it.

    Args:
      title: of the page.
      record: what the modules beside this one give, by section; left out, a section is not shown.
    """
    folder = files("gpt3jax.inspect") / "template"
    parts = [(folder / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS]
    script = '"use strict";\n(() => {\n' + "\n".join(parts) + "\n})();\n"
    trusted = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    filled = {
        "title": html.escape(title),
        "trusted": trusted,
        "style": (folder / "page.css").read_text(encoding="utf-8"),
        "record": as_data(record),
        "script": script,
    }
    text = (folder / "page.html").read_text(encoding="utf-8")
    first, *rest = text.split("{{")
    # In one pass: what is filled in is not looked at again.
    return first + "".join(
        filled[name] + after for name, after in (part.split("}}", 1) for part in rest)
    )


def as_data(record: Any) -> str:
    """JSON that no HTML parser sees an end or a tag in; arrays as base64 with shape and type.

    Raises:
      ValueError: an array is of a type that the page does not read.
    """
    text = json.dumps(record, ensure_ascii=True, separators=(",", ":"), default=_array)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _array(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{type(value).__name__} has no place in a record")
    name = "float32" if value.dtype == np.float64 else value.dtype.name
    if name not in KINDS.get(value.dtype.kind, ()):
        raise ValueError(f"an array of {value.dtype} has no place in a record")
    data = np.ascontiguousarray(value, np.dtype(name).newbyteorder("<"))
    packed = base64.b64encode(data.tobytes()).decode()
    return {"dtype": name, "shape": list(value.shape), "base64": packed}


def texts(record: Any, tokenizer: Tokenizer) -> dict[str, str]:
    """What the tokens of a record look like: of every id in its uint32 arrays."""
    ids = np.unique(np.concatenate([np.zeros(0, np.uint32), *_ids(record)]))
    return {str(token): token_text(int(token), tokenizer) for token in ids}


def token_text(token: int, tokenizer: Tokenizer) -> str:
    """One token as text; bytes that are no text by themselves as their numbers."""
    if token == tokenizer.end_of_text:
        return "<|endoftext|>"
    raw = tokenizer.token_bytes(token)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "".join(f"<{byte:02X}>" for byte in raw)


def _ids(record: Any) -> Iterator[np.ndarray]:
    if isinstance(record, np.ndarray):
        if record.dtype == np.uint32:
            yield record.ravel()
    elif isinstance(record, dict | list | tuple):
        for each in record.values() if isinstance(record, dict) else record:
            yield from _ids(each)
