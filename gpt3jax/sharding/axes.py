"""Logical axes of arrays, and the mesh axes over which they are sharded.

Parameters are sharded over `fsdp` by width and over `tensor` by head, MLP unit or vocabulary row.
Windows are sharded over `data` and `fsdp`; between layers, the tokens of a window are also sharded
over `tensor`. Importing this file does not import jax.
"""

from __future__ import annotations

AXES = ("data", "fsdp", "tensor")

RULES: dict[str | None, str | tuple[str, ...] | None] = {
    None: None,
    "batch": ("data", "fsdp"),
    "layers": None,
    "embed": "fsdp",
    "heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
}
