"""Speed of training and decoding at the paper's shapes, all layers dense, on random tokens."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from one_side import Shape
from record import GPT3JAX, ROOT, Results, run
from sides import Side, alternate, ratio

sys.path.insert(0, str(ROOT / "experiments"))
from gpt3 import ROWS  # noqa: E402

WINDOWS = {"125m": 16, "350m": 16, "760m": 8, "1b3": 8, "2b7": 4}
"""Windows per batch, by size."""
TOY = Shape(n_layers=2, n_heads=2, d_head=64, vocabulary=512, context=256, batch=2)
SHARED = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
"""Several programs are on the card at once."""
FLAGS = {
    "default": {},
    "no command buffers": {"XLA_FLAGS": "--xla_gpu_enable_command_buffer="},
    "no Triton products": {"XLA_FLAGS": "--xla_gpu_enable_triton_gemm=false"},
    "latency hiding": {"XLA_FLAGS": "--xla_gpu_enable_latency_hiding_scheduler=true"},
    "autotune level 5": {"XLA_FLAGS": "--xla_gpu_autotune_level=5"},
    "JAX_OPTIMIZATION_LEVEL=O1": {"JAX_OPTIMIZATION_LEVEL": "O1"},
}
"""Variables of each, of a training step."""
DECODE_FLAGS = {
    "default": {},
    "the loop in a graph": {"XLA_FLAGS": "--xla_gpu_enable_command_buffer=+WHILE,+CONDITIONAL"},
    "no command buffers": {"XLA_FLAGS": "--xla_gpu_enable_command_buffer="},
}
"""Variables of each, of decoding one row, which launches of kernels bind."""


def shape(size: str, options: argparse.Namespace, **changes: Any) -> Shape:
    """The shape of a row of Table 2.1; `changes` are fields of it."""
    row = ROWS[size]
    full = Shape(row.n_layers, row.n_heads, row.d_head, 50_257, 2048, WINDOWS[size])
    return dataclasses.replace(TOY if options.toy else full, **changes)


def train(options: argparse.Namespace, results: Results) -> None:
    """Training steps in bfloat16, in alternation with PyTorch's if there is one."""
    for size in options.only:
        ours = Side(sys.executable, "gpt3jax", shape(size, options, dtype="bfloat16"), SHARED)
        sides = {"bfloat16": ours}
        if options.python_torch:
            sides["pytorch"] = Side(options.python_torch, "pytorch", shape(size, options))
        alternate("train", sides, options.pairs)
        results.add(
            size,
            **{name: side.rates for name, side in sides.items()},
            windows=ours.shape.batch,
            mfu=_mfu(size, options, ours.rate),
            ratio=ratio(ours, sides["pytorch"]) if "pytorch" in sides else None,
            about={name: side.about for name, side in sides.items()},
        )


def float8(options: argparse.Namespace, results: Results) -> None:
    """Training steps in float8 and in bfloat16, in alternation."""
    for size in options.only:
        sides = {
            dtype: Side(sys.executable, "gpt3jax", shape(size, options, dtype=dtype), SHARED)
            for dtype in ("bfloat16", "float8")
        }
        alternate("train", sides, options.pairs)
        results.add(
            size,
            **{name: side.rates for name, side in sides.items()},
            ratio=ratio(sides["float8"], sides["bfloat16"]),
        )


def flags(options: argparse.Namespace, results: Results) -> None:
    """A training step of 125M, and decoding of one row, under flags; all in alternation."""
    settings = shape("125m", options, dtype="bfloat16")
    for what, variants in (("train", FLAGS), ("decode", DECODE_FLAGS)):
        sides = {}
        for name, variables in variants.items():
            given = dict(variables)
            if "XLA_FLAGS" in given:
                given["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {given['XLA_FLAGS']}"
            sides[name] = Side(sys.executable, "gpt3jax", settings, SHARED | given)
        alternate(what, sides, options.pairs)
        for name, side in sides.items():
            results.add(f"{what}, {name}", rates=side.rates, ratio=ratio(side, sides["default"]))


def decode(options: argparse.Namespace, results: Results) -> None:
    """One and eight rows, in three formats and by transformers, in alternation."""
    for size in options.only:
        for what in options.decode:
            sides = {
                weights: Side(
                    sys.executable,
                    "gpt3jax",
                    shape(size, options, dtype="bfloat16", weights=weights),
                    SHARED,
                )
                for weights in ("full", "bfloat16", "int8")
            }
            if options.python_torch:
                sides["pytorch"] = Side(options.python_torch, "pytorch", shape(size, options))
            alternate(what, sides, options.pairs)
            results.add(
                f"{size} {what}",
                **{name: side.rates for name, side in sides.items()},
                parameters=sides["full"].about["parameters"],
            )


def kernels(options: argparse.Namespace, results: Results) -> None:
    """`gpt3jax bench train --profile`, as the experiment has it but with dense layers."""
    for size in options.only:
        words = _words(size, options)
        file = str(ROOT / f"experiments/gpt3_{size}.py")
        with tempfile.TemporaryDirectory() as folder:
            command = [*GPT3JAX, "bench", "train", file, *words, "--profile", "--json"]
            completed = run(command, Path(folder))
            lines = completed.stdout.splitlines()
            figures = json.loads(lines[-1]) if lines else {"error": completed.stderr[-800:]}
        results.add(size, **figures)


def _words(size: str, options: argparse.Namespace) -> list[str]:
    """Overrides of the experiment of a size that make it `shape`."""
    each = shape(size, options)
    words = [f"--train.batch-tokens={each.tokens}", f"--train.microbatch={each.batch}",
             "--model.dense-every=1", "--model.remat=none"]  # fmt: skip
    if options.toy:
        fields = ("n_layers", "d_model", "n_heads", "d_head", "vocabulary", "context")
        words += [f"--model.{name.replace('_', '-')}={getattr(each, name)}" for name in fields]
    return words


def attention(options: argparse.Namespace, results: Results) -> None:
    """Causal attention of 125M and 1.3B by each kernel, in a process of its own."""
    file = Path(__file__).with_name("attention.py")
    for size in ("125m", "1b3"):
        each = shape(size, options)
        sizes = [each.batch, each.context, each.n_heads, each.d_head]
        completed = run([sys.executable, str(file), *map(str, sizes)], ROOT)
        for line in completed.stdout.splitlines():
            figures = json.loads(line)
            results.add(f"{size} {figures.pop('kernel')}", shape=sizes, **figures)
        if completed.returncode:
            results.add(size, error=completed.stderr[-800:])


def _mfu(size: str, options: argparse.Namespace, rate: float) -> float:
    """Share of an H100's and H200's bfloat16 peak, by the convention of `gpt3jax bench`."""
    from one_side import jax_model

    from gpt3jax.model.param_specs import flops_per_token
    from gpt3jax.runtime.chips import CHIPS

    return rate * flops_per_token(jax_model(shape(size, options))) / CHIPS["h200"].peak
