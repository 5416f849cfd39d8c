"""Individual matrix products of a training step on this CPU: XLA compared with PyTorch.

    python benchmarks/products.py [--python-torch PATH] [--pairs 5] [--json]

The products are those of `against_pytorch.py --what train` at the 12M shape, in float32: 4,096
tokens, width 384, 6 heads of 64, context 256, vocabulary 4,096. Each side runs all products in a
separate process, in alternation. The table has the median rates in GFLOP/s, including that of a
2,048 x 2,048 product for reference, and the time of each product in a step. XLA compiles each
product as a program of its own.

A product that is slow here is slow in any JAX program, so the script can reproduce XLA issues.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from one_side import median_seconds

HERE = Path(__file__).resolve().parent
SIDES = ("xla", "torch")
REPETITIONS = 15


@dataclass(frozen=True)
class Product:
    """An einsum of two float32 arrays, and the number of times that a step computes it."""

    name: str
    equation: str
    left: tuple[int, ...]
    right: tuple[int, ...]
    times: int

    @property
    def flops(self) -> float:
        """2 x the product of the sizes of all indices."""
        inputs = self.equation.partition("->")[0].replace(",", "")
        return 2.0 * math.prod(dict(zip(inputs, self.left + self.right, strict=True)).values())


M, D, F, V, H, T, K = 4096, 384, 1536, 4096, 16 * 6, 256, 64
PRODUCTS = [
    Product("a large square", "mi,io->mo", (2048, 2048), (2048, 2048), 0),
    Product("q, k and v", "mi,io->mo", (M, D), (D, 3 * D), 6),
    Product("MLP up", "mi,io->mo", (M, D), (D, F), 6),
    Product("MLP down", "mi,io->mo", (M, F), (F, D), 6),
    Product("up's input gradient", "mo,io->mi", (M, F), (D, F), 6),
    Product("down's input gradient", "mo,io->mi", (M, D), (F, D), 6),
    Product("up's weight gradient", "mi,mo->io", (M, D), (M, F), 6),
    Product("down's weight gradient", "mi,mo->io", (M, F), (M, D), 6),
    Product("attention scores", "htk,hsk->hts", (H, T, K), (H, T, K), 6),
    Product("weights times values", "hts,hsk->htk", (H, T, T), (H, T, K), 6),
    Product("keys' gradient", "hts,htk->hsk", (H, T, T), (H, T, K), 6),
    Product("logits", "mi,vi->mv", (M // 2, D), (V, D), 2),
    Product("head's input gradient", "mv,vi->mi", (M // 2, V), (V, D), 2),
    Product("head's weight gradient", "mv,mi->vi", (M // 2, V), (M // 2, D), 2),
]


def main() -> None:
    options = parse()
    if options.side:
        print(json.dumps(one_side(options.side)))
        return
    interpreters = {"xla": sys.executable, "torch": options.python_torch}
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(options.pairs):
        for side in SIDES:
            runs[side].append(in_own_process(interpreters[side], side))
    medians = {
        side: {p.name: statistics.median(run[p.name] for run in runs[side]) for p in PRODUCTS}
        for side in SIDES
    }
    print(json.dumps(medians, indent=2) if options.json else table(medians))


def parse() -> argparse.Namespace:
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python-torch", default=sys.executable, help="interpreter with torch")
    parser.add_argument("--pairs", type=int, default=5, help="processes per side (5)")
    parser.add_argument(
        "--json", action="store_true", help="print seconds as JSON instead of a table"
    )
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    return parser.parse_args()


def in_own_process(interpreter: str, side: str) -> dict[str, float]:
    command = [interpreter, str(HERE / "products.py"), "--side", side]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(HERE.parent)}
    completed = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if completed.returncode:
        sys.exit(f"error: {' '.join(command)} failed with exit code {completed.returncode}")
    return json.loads(completed.stdout.splitlines()[-1])


def one_side(side: str) -> dict[str, float]:
    """Median seconds of each product."""
    prepare = {"xla": xla_product, "torch": torch_product}[side]
    return {product.name: median_seconds(prepare(product), 1, REPETITIONS) for product in PRODUCTS}


def xla_product(product: Product) -> Callable[[], Any]:
    from gpt3jax.runtime.memory import retain_freed_memory

    retain_freed_memory()  # Like PyTorch's allocator.
    import jax
    import jax.numpy as jnp

    left, right = (jnp.ones(shape, jnp.float32) for shape in (product.left, product.right))
    run = jax.jit(lambda a, b: jnp.einsum(product.equation, a, b))
    return lambda: run(left, right).block_until_ready()


def torch_product(product: Product) -> Callable[[], Any]:
    import torch

    left, right = (torch.ones(shape) for shape in (product.left, product.right))
    return lambda: torch.einsum(product.equation, left, right)


def table(seconds: dict[str, dict[str, float]]) -> str:
    lines = [f"{'':24}{'XLA':>9}{'PyTorch':>9}{'ratio':>8}{'ms a step, XLA':>16}"]
    for product in PRODUCTS:
        ours, theirs = (seconds[side][product.name] for side in SIDES)
        rates = (product.flops / s / 1e9 for s in (ours, theirs))
        lines.append(
            f"{product.name:24}" + "".join(f"{rate:9.0f}" for rate in rates)
            + f"{theirs / ours:8.2f}{1e3 * ours * product.times:16.1f}"
        )  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    main()
