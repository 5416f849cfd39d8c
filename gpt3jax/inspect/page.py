"""The HTML page: a record of values and arrays, and the script that renders it, in one file.

The page is self-contained. Its content security policy allows only this script, by its hash, and
no requests. Text from a model is embedded as data and only ever set as text content.
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
"""Scripts in template/, in order: shared functions, one script per section, and the start."""

KINDS = {"f": ("float32", "float16"), "u": ("uint32", "uint16", "uint8"), "i": ("int32",)}


def page(title: str, record: dict[str, Any]) -> str:
    """Render records of the other modules, by section, as an HTML page; any text is safe in it.

    Sections without a record are not shown.
    """
    folder = files("gpt3jax.inspect") / "template"
    parts = [(folder / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS]
    script = '"use strict";\n(() => {\n' + "\n".join(parts) + "\n})();\n"
    filled = {
        "title": html.escape(title),
        "trusted": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "style": (folder / "page.css").read_text(encoding="utf-8"),
        "record": as_data(record),
        "script": script,
    }
    text = (folder / "page.html").read_text(encoding="utf-8")
    first, *rest = text.split("{{")
    # A single pass, so that placeholders in inserted text are not expanded.
    return first + "".join(
        filled[name] + after for name, after in (part.split("}}", 1) for part in rest)
    )


def as_data(record: Any) -> str:
    """JSON that is safe in an HTML script element; arrays are base64 with shape and dtype.

    Raises:
      ValueError: the dtype of an array is not supported.
    """
    text = json.dumps(record, ensure_ascii=True, separators=(",", ":"), default=_array)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _array(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{type(value).__name__} is not supported in a record")
    name = "float32" if value.dtype == np.float64 else value.dtype.name
    if name not in KINDS.get(value.dtype.kind, ()):
        raise ValueError(f"an array of {value.dtype} is not supported in a record")
    data = np.ascontiguousarray(value, np.dtype(name).newbyteorder("<"))
    packed = base64.b64encode(data.tobytes()).decode()
    return {"dtype": name, "shape": list(value.shape), "base64": packed}


def texts(record: Any, tokenizer: Tokenizer) -> dict[str, str]:
    """The texts of all token ids in a record, which are its uint32 arrays."""
    ids = np.unique(np.concatenate([np.zeros(0, np.uint32), *_ids(record)]))
    return {str(token): token_text(int(token), tokenizer) for token in ids}


def token_text(token: int, tokenizer: Tokenizer) -> str:
    """A token as text; tokens that are not UTF-8 as hexadecimal bytes."""
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
