"""Train, understand and trust a GPT-3 (Brown et al. 2020) in JAX.

In a notebook: `gpt3jax.load`, `generate`, `capture` and `evaluate` (api.py), and `Experiment`.
They are imported when they are first used, so that the command line starts without jax.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt3jax.api import capture, evaluate, generate, load
    from gpt3jax.config import Experiment

__version__ = "0.2.0"
__all__ = ["Experiment", "capture", "evaluate", "generate", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "gpt3jax.config" if name == "Experiment" else "gpt3jax.api"
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
