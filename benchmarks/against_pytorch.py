"""Training and decoding speed compared with PyTorch, on this machine's CPU.

    python benchmarks/against_pytorch.py [--pairs 5] [--python-torch PATH]

The PyTorch model is transformers' GPT2LMHeadModel with the same shape and number of parameters, in
float32, in train mode without dropout, with PyTorch's fused attention kernel.

train   complete steps on random tokens: forward, loss, backward, clipping to norm 1, AdamW with
        weight decay on matrices and embeddings. Median of the steps.
decode  greedy decoding with a KV cache at batch 1: 200 new tokens after a prompt of 32, including
        prefill. Median of the repetitions.
decode8 batched decode of 8 rows; counts the tokens of all rows.
first   prefill speed: prompt tokens per second until the first new token, for a prompt of 1,000.

Each measurement is a separate process. gpt3jax, PyTorch and the machine's limit (`floor` in
one_side.py) alternate (A B F A B F ...), because the speed of a machine drifts. Ratios are taken
within each pair, and the last line has the medians. A ratio above 1 means that gpt3jax is faster;
`over floor` is the time of gpt3jax relative to the limit.

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
    """Runs all sides in alternation; returns the rates, the ratio of each pair, and medians."""
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
    # Otherwise only gpt3jax would use an accelerator.
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "JAX_PLATFORMS": "cpu"}
    completed = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if completed.returncode:
        sys.exit(f"error: {' '.join(command)} failed with exit code {completed.returncode}")
    return json.loads(completed.stdout.splitlines()[-1])


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
