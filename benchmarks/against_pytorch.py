"""Training and decoding speed compared with PyTorch, on this machine's CPU.

    python benchmarks/against_pytorch.py [--pairs 5] [--python-torch PATH]

The PyTorch model has the same shape and number of parameters, in float32. It trains as in
pytorch_gpt.py and decodes as transformers' GPT2LMHeadModel.

train   complete steps on random tokens: forward, loss, backward, clipping to norm 1, AdamW with
        weight decay on matrices and embeddings. Mean of 8 steps.
decode  greedy decoding with a KV cache at batch 1: 200 new tokens after a prompt of 32, including
        prefill.
decode8 batched decode of 8 rows; counts the tokens of all rows.
first   prefill speed: prompt tokens per second until the first new token, for a prompt of 1,000.

gpt3jax, PyTorch and the machine's limit (`floor` in one_side.py) are processes of their own that
are measured in alternation (A B F A B F ...), because the speed of a machine drifts. Ratios are
taken within each pair, and the last line has the medians. A ratio above 1 means that gpt3jax is
faster; `over floor` is the time of gpt3jax relative to the limit.

It needs an interpreter with gpt3jax's dependencies, and one with torch and transformers, which may
be the same.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
from pathlib import Path
from typing import Any

from one_side import SHAPES
from sides import Side, alternate, ratio

SIDES = ("gpt3jax", "pytorch")
ALL = (*SIDES, "floor")
WHAT = ("train", "decode", "decode8", "first")


def main() -> None:
    options = parse()
    report = {"machine": machine(), "shape": options.shape, **vars(SHAPES[options.shape])}
    report |= {what: compare(what, options) for what in options.what}
    print(json.dumps(report, indent=2) if options.json else table(report, options.what))


def parse() -> argparse.Namespace:
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--what", nargs="+", choices=WHAT, default=WHAT[:2])
    parser.add_argument("--pairs", type=int, default=5, help="measurements per side (5)")
    parser.add_argument("--shape", choices=SHAPES, default="12M", help="model shape (12M)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--python-jax", default=sys.executable, help="interpreter with jax")
    parser.add_argument("--python-torch", default=sys.executable, help="interpreter with torch")
    options = parser.parse_args()
    if options.pairs < 1:
        parser.error(f"--pairs is {options.pairs}: it must be at least 1")
    return options


def compare(what: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measures all sides in alternation; returns the rates, the ratio of each pair, and medians."""
    interpreters = {side: options.python_jax for side in ALL} | {"pytorch": options.python_torch}
    # Otherwise both would use an accelerator.
    hidden = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    shape = SHAPES[options.shape]
    sides = {name: Side(interpreters[name], name, shape, hidden) for name in ALL}
    alternate(what, sides, options.pairs)
    rates = {name: side.rates for name, side in sides.items()}
    over = [floor / ours for ours, floor in zip(rates["gpt3jax"], rates["floor"], strict=True)]
    return {
        "parameters": sides["gpt3jax"].about["parameters"],
        "versions": {name: sides[name].about["versions"] for name in SIDES},
        "tokens_per_s": rates,
        "median_tokens_per_s": {name: side.rate for name, side in sides.items()},
        "ratios": [a / b for a, b in zip(*(rates[side] for side in SIDES), strict=True)],
        "median_ratio": ratio(*(sides[name] for name in SIDES)),
        "over_floor": over,
        "median_over_floor": statistics.median(over),
    }


def machine() -> dict[str, Any]:
    affinity = getattr(os, "sched_getaffinity", None)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "system": platform.platform(),
        "date": datetime.date.today().isoformat(),
    }


def table(report: dict[str, Any], what: list[str]) -> str:
    """Formats the report as text."""
    lines = ["{cpu}, {cores} cores, {system}, {date}".format(**report["machine"])]
    lines.append(
        "{shape}: {n_layers} layers, {n_heads} heads of {d_head}, vocabulary {vocabulary}, "
        "context {context}, batch {batch}, float32".format(**report)
    )
    for side, versions in report[what[0]]["versions"].items():
        lines.append(f"{side}: " + ", ".join(f"{name} {v}" for name, v in versions.items()))
    for name in what:
        measured = report[name]
        head = "".join(f"{each:>12}" for each in (*ALL, "ratio", "over floor"))
        lines += ["", f"{name + ', tokens/s':20}{head}"]
        rates = measured["tokens_per_s"].values()
        rows = zip(*rates, measured["ratios"], measured["over_floor"], strict=True)
        lines += [row(f"pair {i}", *values) for i, values in enumerate(rows, 1)]
        medians = measured["median_tokens_per_s"].values()
        lines.append(
            row("median", *medians, measured["median_ratio"], measured["median_over_floor"])
        )
    return "\n".join(lines)


def row(name: str, *figures: float) -> str:
    *rates, ratio, over = figures
    return f"{name:20}" + "".join(f"{r:>12,.0f}" for r in rates) + f"{ratio:>12.3f}{over:>12.2f}"


if __name__ == "__main__":
    main()
