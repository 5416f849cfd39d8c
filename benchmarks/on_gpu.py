"""Training and decoding on one GPU, for three model sizes of the paper; takes about ten minutes.

    python benchmarks/on_gpu.py [--python-torch PATH] [--toy]

Training: complete steps with context 2048, in bfloat16 and with `--model.dtype float8`. MFU follows
the convention of `gpt3jax bench`, relative to the GPU's bfloat16 peak. Given an interpreter with
torch (for CUDA) and transformers, a PyTorch loop runs in alternation: torch.compile, fused
attention, fused AdamW, bfloat16 autocast, all layers dense. Decoding: one sequence with full and
quantized weights, with the share of the memory bandwidth. Finally the demo is trained in bfloat16
and in float8 and the validation losses are compared (`make demo` prepares its data).

--toy uses models of a few thousand parameters and also works on a CPU.

This script has not been run on a GPU yet. `gpt3jax plan experiments/gpt3_1b3.py --chips h100:1
--compile` compiles such a step without one.
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

HERE = Path(__file__).resolve().parent
SIZES = {"gpt3_125m": 16, "gpt3_1b3": 8, "gpt3_2b7": 4}
"""Windows per batch, by experiment."""
TOY = {"model.n-layers": 2, "model.d-model": 64, "model.n-heads": 2, "model.d-head": 32,
       "model.context": 64, "model.vocabulary": 512}  # fmt: skip
PAIRS = 3


def main() -> None:
    options = parse()
    head = (
        "model", "tokens/s", "MFU", "float8", "PyTorch", "ratio", "decoded/s", "int8",
        "of bandwidth",
    )  # fmt: skip
    print(table(head, [measure(name, options) for name in SIZES]))
    print("\nValidation loss of the demo, nats/token:\n")
    print(table(("step", "bfloat16", "float8"), curves(options)))


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def parse() -> argparse.Namespace:
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python-torch", help="interpreter with torch and transformers")
    parser.add_argument("--toy", action="store_true", help="tiny models, to test the script")
    return parser.parse_args()


def measure(name: str, options: argparse.Namespace) -> tuple[str, ...]:
    """Measures one model; returns a row of the table."""
    context, rows = (TOY["model.context"], 2) if options.toy else (2048, SIZES[name])
    changes = {**(TOY if options.toy else {}), "model.dense-every": 1}
    changes |= {"train.batch-tokens": rows * context, "train.microbatch": rows}
    ours, theirs = [], []
    for _ in range(PAIRS):
        ours.append(bench("train", name, changes))
        if options.python_torch:
            theirs.append(pytorch(name, rows, context, options))
    float8 = bench("train", name, changes | {"model.dtype": "float8"})
    decode = bench("decode", name, TOY if options.toy else {})
    best = sorted(ours, key=lambda each: each["tokens_per_s"])[PAIRS // 2]
    peer = f"{statistics.median(theirs):,.0f}" if theirs else "-"
    pairs = zip(ours, theirs, strict=False)
    ratio = statistics.median([a["tokens_per_s"] / b for a, b in pairs]) if theirs else None
    return (
        name, f"{best['tokens_per_s']:,.0f}", f"{best['mfu']:.1%}",
        f"{float8['tokens_per_s']:,.0f}", peer,
        "-" if ratio is None else f"{ratio:.2f}", f"{decode['full']['tokens_per_s']:,.0f}",
        f"{decode['int8']['tokens_per_s']:,.0f}", f"{1 / decode['full']['over_floor']:.0%}",
    )  # fmt: skip


def curves(options: argparse.Namespace) -> list[tuple[str, ...]]:
    """Validation loss of the demo by step, in bfloat16 and in float8."""
    losses: list[dict[int, float]] = []
    for dtype in ("bfloat16", "float8"):
        with tempfile.TemporaryDirectory() as folder:
            words = [f"--run={folder}/run", f"--model.dtype={dtype}", "--evaluate.every=100"]
            words += ["--train.steps=2"] if options.toy else []
            command = [sys.executable, "-m", "gpt3jax", "train", "experiments/tiny.py", *words]
            output(command)
            lines = Path(folder, "run", "metrics.jsonl").read_text().splitlines()
        records = map(json.loads, lines)
        losses.append({each["step"]: each["val_loss"] for each in records if "val_loss" in each})
    return [(str(step), *(f"{each[step]:.4f}" for each in losses)) for step in losses[0]]


def bench(what: str, name: str, changes: dict[str, Any]) -> dict[str, Any]:
    words = [f"--{key}={value}" for key, value in changes.items()]
    file = f"experiments/{name}.py"
    command = [sys.executable, "-m", "gpt3jax", "bench", what, file, *words, "--json"]
    return json.loads(output(command))


def pytorch(name: str, rows: int, context: int, options: argparse.Namespace) -> float:
    """Tokens per second of the PyTorch model with the same shape."""
    sys.path.insert(0, str(HERE.parent))
    from gpt3jax.user_code import load_experiment

    model = load_experiment(str(HERE.parent / "experiments" / f"{name}.py")).model
    shape = {"n_layers": model.n_layers, "n_heads": model.n_heads, "d_head": model.d_head,
             "vocabulary": model.vocabulary}  # fmt: skip
    if options.toy:
        shape = {"n_layers": 2, "n_heads": 2, "d_head": 32, "vocabulary": 512}
    shape_json = json.dumps(shape | {"context": context, "batch": rows})
    command = [options.python_torch, str(HERE / "one_side.py"), "train", "pytorch", shape_json]
    return json.loads(output(command))["tokens_per_s"]


def output(command: list[str]) -> str:
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    completed = subprocess.run(
        command, cwd=HERE.parent, env=environment, stdout=subprocess.PIPE, text=True
    )
    if completed.returncode:
        sys.exit(f"error: {' '.join(command)} failed with exit code {completed.returncode}")
    return completed.stdout.splitlines()[-1]


if __name__ == "__main__":
    main()
