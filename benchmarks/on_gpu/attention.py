"""Times causal attention alone, forward and with its gradient, by each kernel that JAX has.

    python benchmarks/on_gpu/attention.py WINDOWS TOKENS HEADS WIDTH

Prints a line of JSON for each kernel: milliseconds of the forward pass and of both passes, the
largest difference of the gradients from those of cuDNN, or why the kernel did not run.

Legend: B windows, T tokens, H heads, K head width.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

CALLS, REPEATS = 20, 5
Kernel = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def main() -> None:
    B, T, H, K = map(int, sys.argv[1:])
    keys = jax.random.split(jax.random.key(0), 3)
    qkv = [jax.random.normal(key, (B, T, H, K), jnp.bfloat16) for key in keys]
    expected = None
    for name, kernel in kernels(K).items():
        figures: dict[str, Any] = {}
        try:
            figures["forward_ms"] = milliseconds(jax.jit(kernel), qkv)
            both = jax.jit(jax.grad(partial(_sum, kernel), argnums=(0, 1, 2)))
            gradients = [each.astype(jnp.float32) for each in both(*qkv)]
            expected = expected or gradients
            pairs = zip(gradients, expected, strict=True)
            figures["difference"] = max(float(jnp.abs(a - b).max()) for a, b in pairs)
            figures["both_ms"] = milliseconds(both, qkv)
        except Exception as error:  # A kernel may refuse a shape or a card in many ways.
            figures["error"] = f"{type(error).__name__}: {error}"[:300]
        print(json.dumps({"kernel": name, **figures}), flush=True)


def _sum(kernel: Kernel, *qkv: jax.Array) -> jax.Array:
    return kernel(*qkv).astype(jnp.float32).sum()


def kernels(K: int) -> dict[str, Kernel]:
    """The kernels by name, cuDNN's first if there is a GPU."""
    xla: Any = partial(jax.nn.dot_product_attention, is_causal=True, implementation="xla")
    if jax.default_backend() != "gpu":
        return {"xla": xla}
    found: dict[str, Any] = {
        "cudnn": partial(jax.nn.dot_product_attention, is_causal=True, implementation="cudnn")
    }
    from jax.experimental.pallas.ops.gpu import attention, attention_mgpu

    for block in (64, 128):
        sizes = attention.BlockSizes(block, block, block, block, block, block)
        found[f"pallas triton {block}"] = partial(
            attention.mha, segment_ids=None, sm_scale=K**-0.5, causal=True, block_sizes=sizes
        )
    for block in (64, 128, 256):
        # JAX 0.11.2 has no backward pass of this kernel for causal attention.
        config = attention_mgpu.TuningConfig(64, block, max_concurrent_steps=2, causal=True)
        found[f"pallas mosaic {block}"] = partial(_mosaic, config=config)
    return found


def _mosaic(q: jax.Array, k: jax.Array, v: jax.Array, config: Any) -> jax.Array:
    """This kernel does not scale the scores; in JAX 0.11.2 it takes float16 only."""
    from jax.experimental.pallas.ops.gpu import attention_mgpu

    q, k, v = (x.astype(jnp.float16) for x in (q * q.shape[-1] ** -0.5, k, v))
    return attention_mgpu.attention(q, k, v, config)


def milliseconds(call: Callable[..., Any], qkv: list[jax.Array]) -> float:
    """The median of means over calls that do not wait for each other."""
    jax.block_until_ready(call(*qkv))
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        result = None
        for _ in range(CALLS):
            result = call(*qkv)
        jax.block_until_ready(result)
        seconds.append((time.perf_counter() - began) / CALLS)
    return 1e3 * statistics.median(seconds)


if __name__ == "__main__":
    main()
