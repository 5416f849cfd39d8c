"""Training and generation speed against PyTorch, on this machine's CPU.

    python benchmarks/against_pytorch.py [--pairs 5] [--python-torch PATH]

The peer is transformers' GPT2LMHeadModel: the same shape and parameters,
float32, in train mode without dropout, attention by PyTorch's fused kernel.

train   whole steps on random tokens: forward, loss, backward, clipping to
        norm 1, AdamW (matrices and embeddings decay). Median of the steps.
decode  greedy generation with a cache at batch 1, from 32 prompt tokens to
        200 new ones, reading the prompt included. Median of the repetitions.
decode8 the same at batch 8; tokens of all rows.
first   tokens read per second until the first is written, of a prompt of 1,000.

Each measurement is a process of its own, and ours, PyTorch's and that of the
machine's limit (one_side.py, `floor`) alternate (A B F A B F ...), since one
machine's speed drifts. The ratio is taken within each pair; the last line is the
median over pairs. Above 1, ours is faster; `over floor` is how many times as long
as at the limit ours takes.

Needs gpt3jax's dependencies in one interpreter, torch and transformers in one
(the same, or another).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from one_side import SHAPES

HERE = Path(__file__).resolve().parent
SIDES = ("gpt3jax", "pytorch")
ALL = (*SIDES, "floor")
WHAT = ("train", "decode", "decode8", "first")


def main() -> None:
    options = parse()
    report = {"machine": machine(), "shape": options.shape, **vars(SHAPES[options.shape])}
    report |= {what: compare(what, options) for what in options.what}
    print(json.dumps(report, indent=2) if options.json else table(report, options.what))


def parse() -> argparse.Namespace:
    summary, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--what", nargs="+", choices=WHAT, default=WHAT[:2])
    parser.add_argument("--pairs", type=int, default=5, help="measurements of each side (5)")
    parser.add_argument("--shape", choices=SHAPES, default="12M", help="of the model (12M)")
    parser.add_argument("--json", action="store_true", help="print JSON rather than a table")
    parser.add_argument("--python-jax", default=sys.executable, help="interpreter with jax")
    parser.add_argument("--python-torch", default=sys.executable, help="interpreter with torch")
    options = parser.parse_args()
    if options.pairs < 1:
        parser.error(f"--pairs is {options.pairs}: it must be at least 1")
    return options


def compare(what: str, options: argparse.Namespace) -> dict[str, Any]:
    """Alternate the two sides; all rates, the ratio of each pair, and the medians."""
    interpreters = {side: options.python_jax for side in ALL} | {"pytorch": options.python_torch}
    runs: dict[str, list[dict]] = {side: [] for side in ALL}
    for pair in range(1, options.pairs + 1):
        for side in ALL:
            result = in_own_process(interpreters[side], what, side, options.shape)
            runs[side].append(result)
            rate = result["tokens_per_s"]
            print(f"{what} pair {pair} {side}: {rate:,.0f} tokens/s", file=sys.stderr)
    rates = {side: [run["tokens_per_s"] for run in runs[side]] for side in ALL}
    ratios = [a / b for a, b in zip(*(rates[side] for side in SIDES), strict=True)]
    over = [floor / ours for ours, floor in zip(rates["gpt3jax"], rates["floor"], strict=True)]
    parameters = {run["parameters"] for side in ALL for run in runs[side]}
    if len(parameters) != 1:
        sys.exit(f"error: the models differ: they have {sorted(parameters)} parameters")
    return {
        "parameters": parameters.pop(),
        "versions": {side: runs[side][0]["versions"] for side in SIDES},
        "tokens_per_s": rates,
        "median_tokens_per_s": {side: statistics.median(each) for side, each in rates.items()},
        "ratios": ratios,
        "median_ratio": statistics.median(ratios),
        "over_floor": over,
        "median_over_floor": statistics.median(over),
    }


def in_own_process(interpreter: str, what: str, side: str, shape: str) -> dict[str, Any]:
    command = [interpreter, str(HERE / "one_side.py"), what, side, shape]
    # On an accelerator only one side would leave the CPU.
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"error: {' '.join(command)} failed with exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


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
    """The report for people."""
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
