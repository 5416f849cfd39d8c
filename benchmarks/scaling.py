"""Scaling of the time of a training step with model size, devices and processes.

    python benchmarks/scaling.py [--repeats 5] [--json]

One dimension is varied at a time; each point is a separate process of `gpt3jax bench train`. The
exponent is the slope of log seconds against log size. It equals the exponent of the model's FLOPs
if the step is compute-bound, and is smaller if there is constant overhead. `devices` compares a
batch on 1 and 8 devices that share this machine's cores, which measures the overhead of
partitioning. `processes` compares two devices in one process with two processes that communicate
over loopback, three times each in alternation: 40 steps of `gpt3jax train` on the demo's data, of
which the last 30 count.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
BASE = {
    "model.n-layers": 4, "model.d-model": 256, "model.n-heads": 4, "model.d-head": 64,
    "model.vocabulary": 2048, "model.context": 256, "train.batch-tokens": 2048,
}  # fmt: skip
POINTS: dict[str, list[dict[str, int]]] = {
    "layers": [{"model.n-layers": n} for n in (2, 4, 8)],
    "width": [{"model.d-model": 64 * heads, "model.n-heads": heads} for heads in (2, 4, 8)],
    "context": [{"model.context": n, "train.batch-tokens": 8 * n} for n in (128, 256, 512, 1024)],
    "batch": [{"train.batch-tokens": 256 * rows} for rows in (4, 8, 16, 32)],
}
"""Overrides of each point; the first one is the dimension that is varied."""


def main() -> None:
    options = parse()
    report = {axis: _axis(points, options.repeats) for axis, points in POINTS.items()}
    report["devices"] = {str(n): _bench({}, options.repeats, devices=n)["step_s"] for n in (1, 8)}
    report["processes"] = _processes()
    if options.json:
        print(json.dumps(report, indent=2))
        return
    for axis in POINTS:
        result = report[axis]
        seconds = ", ".join(f"{size:,}: {s * 1e3:.0f}" for size, s in result["step_s"].items())
        print(
            f"{axis:8} time ~ size^{result['exponent']:.2f}, FLOPs ~ size^"
            f"{result['exponent_of_flops']:.2f}   (ms at {seconds})"
        )
    one, eight = report["devices"].values()
    print(f"devices  8 on the same cores: {eight / one:.2f} times one ({one * 1e3:.0f} ms)")
    alone, pair = report["processes"].values()
    print(
        f"processes 2 with a device each: {pair / alone:.2f} times one with two "
        f"({alone * 1e3:.0f} ms)"
    )


def parse() -> argparse.Namespace:
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--repeats", type=int, default=5, help="steps, of which the median counts (5)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    return parser.parse_args()


def _axis(points: list[dict[str, int]], repeats: int) -> dict[str, Any]:
    results = [_bench(point, repeats) for point in points]
    sizes = [next(iter(point.values())) for point in points]
    seconds = [each["step_s"] for each in results]
    flops = [each["step_s"] * each["model_flops_per_s"] for each in results]
    return {
        "step_s": dict(zip(sizes, seconds, strict=True)),
        "exponent": float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0]),
        "exponent_of_flops": float(np.polyfit(np.log(sizes), np.log(flops), 1)[0]),
    }


def _bench(changes: dict[str, int], repeats: int, devices: int = 1) -> dict[str, Any]:
    words = [f"--{name}={value}" for name, value in (BASE | changes).items()]
    flags = f"--xla_force_host_platform_device_count={devices}"
    completed = subprocess.run(
        [sys.executable, "-m", "gpt3jax", "bench", "train", "experiments/tiny.py", *words,
         "--mesh.data", str(devices), "--repeats", str(repeats), "--json"],
        cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    if completed.returncode:
        sys.exit(f"error: {changes} failed with exit code {completed.returncode}")
    print(f"{changes or BASE} on {devices}: done", file=sys.stderr)
    return json.loads(completed.stdout.splitlines()[-1])


def _processes() -> dict[str, float]:
    """Median seconds of a step for one process with two devices, and two with one device each."""
    step_s: dict[str, list[float]] = {"1": [], "2": []}
    for _ in range(3):
        for processes, seconds in step_s.items():
            seconds.append(_train(int(processes)))
    return {processes: statistics.median(seconds) for processes, seconds in step_s.items()}


def _train(processes: int) -> float:
    """Trains the demo; returns the median seconds of steps 11 to 40."""
    words = [f"--{name}={value}" for name, value in BASE.items()]
    with tempfile.TemporaryDirectory() as folder:
        completed = subprocess.run(
            [sys.executable, "launch/local.py", "--processes", str(processes),
             "--devices", str(2 // processes), "experiments/tiny.py", "--run", f"{folder}/run",
             *words, "--mesh.data=2", "--train.steps=40", "--train.log-every=1",
             "--evaluate.sample-tokens=0"],
            cwd=ROOT, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        if completed.returncode:
            sys.exit(f"error: {processes} processes failed with exit code {completed.returncode}")
        lines = Path(folder, "run", "metrics.jsonl").read_text().splitlines()
    steps = [record for record in map(json.loads, lines) if "step_s" in record]
    return statistics.median(each["step_s"] for each in steps if each["step"] > 10)


if __name__ == "__main__":
    main()
