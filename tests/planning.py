"""`gpt3jax plan --compile` as a test asks for it: in a process of its own, as compilers want it."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
KEEP = ["--keep", "data", "fsdp", "tensor", "remat", "microbatch"]


def plan(*words):
    """All figures."""
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    done = subprocess.run(
        [sys.executable, "-m", "gpt3jax", "plan", *words, "--compile", "--json"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-500:]
    return json.loads(done.stdout)


def products_of(found):
    """Matrix products that the program computes, over the model's; attention aside."""
    flops = found["flops"]
    return found["product_flops"] / (flops["model"] - flops["attention"])


def sent(found):
    """Bytes that a device sends in a step."""
    return sum(each["bytes_sent"] for each in found["collectives"])
