"""The commands, one function each. cli.py derives flags from arguments and help from docstrings.

Commands import jax and other heavy modules inside the function, so that help and errors about
arguments appear immediately.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gpt3jax.commands import (
    bench,
    data,
    doctor,
    evaluate,
    export,
    generate,
    import_,
    inspect,
    overlap,
    perplexity,
    plan,
    report,
    serve,
    sweep,
    train,
    verify,
)

COMMANDS: dict[str, Callable[..., Any]] = {
    "data prepare": data.data_prepare,
    "data merge": data.data_merge,
    "data show": data.data_show,
    "data overlap": overlap.data_overlap,
    "plan": plan.plan,
    "doctor": doctor.doctor,
    "train": train.train,
    "sweep": sweep.sweep,
    "generate": generate.generate,
    "inspect": inspect.inspect,
    "evaluate": evaluate.evaluate,
    "perplexity": perplexity.perplexity,
    "report": report.report,
    "verify": verify.verify,
    "export": export.export,
    "import": import_.import_,
    "serve": serve.serve,
    "bench": bench.bench,
}
