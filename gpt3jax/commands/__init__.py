"""The commands: one function each, as `gpt3jax NAME` calls it.

Their arguments are the flags, their docstrings the help (cli.py reads both).
jax and everything heavy is imported inside, so that help and refusals are
immediate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gpt3jax.commands import data, exchange, sweeping, training, using

COMMANDS: dict[str, Callable[..., Any]] = {
    "data prepare": data.data_prepare,
    "data merge": data.data_merge,
    "data show": data.data_show,
    "data overlap": data.data_overlap,
    "plan": training.plan,
    "doctor": training.doctor,
    "train": training.train,
    "sweep": sweeping.sweep,
    "generate": using.generate,
    "inspect": using.inspect,
    "evaluate": using.evaluate,
    "perplexity": using.perplexity,
    "report": using.report,
    "verify": training.verify,
    "export": exchange.export,
    "import": exchange.import_,
    "serve": using.serve,
    "bench": training.bench,
}
