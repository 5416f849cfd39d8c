"""Measures the speed of one library in this process, and prints it as a line of JSON.

    PYTHONPATH=. python benchmarks/one_side.py WHAT gpt3jax|pytorch|floor [SHAPE]

WHAT is train, decode, decode8 or first. SHAPE is a name in `SHAPES`, or a shape as JSON. PyTorch
uses a GPU if there is one, compiled and in bfloat16. `floor` is the upper limit on this machine:
the model's FLOPs at the measured rate of a large matrix product, and the bytes of parameters and KV
cache at the measured memory bandwidth.

against_pytorch.py runs these in alternation and documents the measurements.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

WARM_UP_STEPS, STEPS = 3, 8
REPETITIONS = 3
DECODING = {"decode": (1, 32, 200), "decode8": (8, 32, 200), "first": (1, 1000, 1)}
"""Rows, prompt tokens and new tokens, by WHAT."""
LEARNING_RATE, WEIGHT_DECAY, BETAS = 6e-4, 0.1, (0.9, 0.95)


@dataclass(frozen=True)
class Shape:
    """Shape of a model with dense layers, and windows per batch."""

    n_layers: int
    n_heads: int
    d_head: int
    vocabulary: int
    context: int
    batch: int

    @property
    def d_model(self) -> int:
        return self.n_heads * self.d_head


SHAPES = {
    "12M": Shape(n_layers=6, n_heads=6, d_head=64, vocabulary=4096, context=256, batch=16),
    "124M": Shape(n_layers=12, n_heads=12, d_head=64, vocabulary=50257, context=1024, batch=1),
    # As many of GPT-3 Small's layers as train in reasonable time.
    "small": Shape(n_layers=4, n_heads=12, d_head=64, vocabulary=8192, context=512, batch=4),
    "1M": Shape(n_layers=2, n_heads=2, d_head=64, vocabulary=4096, context=256, batch=4),
}


def train_gpt3jax(shape: Shape) -> dict[str, Any]:
    """Measures the compiled training step on windows from the host."""
    retain_memory()
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import NamedSharding

    from gpt3jax import config
    from gpt3jax.sharding.mesh import make_mesh
    from gpt3jax.sharding.rules import partition_spec
    from gpt3jax.train.state import init_sharded_state
    from gpt3jax.train.step import compile_train_step

    experiment = config.Experiment(
        "benchmark",
        jax_model(shape),
        config.Data((config.Source("random tokens", "nowhere"),)),
        config.Schedule(peak_learning_rate=LEARNING_RATE),
        config.Train(batch_tokens=shape.batch * shape.context),
        config.Optimizer(*BETAS, clip_norm=1.0, weight_decay=WEIGHT_DECAY),
    )
    mesh = make_mesh(experiment.mesh)
    with jax.set_mesh(mesh):
        state = init_sharded_state(experiment, mesh)
        count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        compiled = compile_train_step(experiment, mesh)
        sharding = NamedSharding(mesh, partition_spec((None, "batch", None)))
        rng = np.random.default_rng(0)

        def step() -> None:
            nonlocal state
            size = (1, shape.batch, shape.context + 1)
            windows = rng.integers(0, shape.vocabulary, size).astype(np.int32)
            windows = jax.device_put(windows, sharding)
            state, metrics = compiled(state, windows, jnp.int32(1), jnp.float32(LEARNING_RATE))
            jax.block_until_ready((state, metrics))

        seconds = median_seconds(step, WARM_UP_STEPS, STEPS)
    return jax_result(count, shape.batch * shape.context / seconds)


def train_pytorch(shape: Shape) -> dict[str, Any]:
    """Measures a plain training loop with fused AdamW, which is by far the fastest on a CPU."""
    import numpy as np
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = torch_model(shape).train().to(device)
    run = torch.compile(network) if device == "cuda" else network
    split = [[], []]
    for parameter in network.parameters():
        split[parameter.ndim == 1].append(parameter)
    groups = [{"params": split[0]}, {"params": split[1], "weight_decay": 0.0}]
    adam = torch.optim.AdamW(
        groups, lr=LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True
    )
    rng = np.random.default_rng(0)

    def step() -> None:
        windows = rng.integers(0, shape.vocabulary, (shape.batch, shape.context + 1))
        windows = torch.from_numpy(windows).to(device)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            logits = run(input_ids=windows[:, :-1], use_cache=False).logits
            labels = windows[:, 1:].flatten()
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        loss.item()

    seconds = median_seconds(step, WARM_UP_STEPS, STEPS)
    return torch_result(network, shape.batch * shape.context / seconds)


def decode_gpt3jax(shape: Shape, rows: int, prompt: int, new: int) -> dict[str, Any]:
    """Measures greedy decoding with a KV cache, or prefill if there is one new token."""
    import jax

    from gpt3jax.decoding.decode import Sampling
    from gpt3jax.decoding.generator import Generator
    from gpt3jax.model import param_specs
    from gpt3jax.model.init import init_params

    model = jax_model(shape)
    weights = init_params(jax.random.key(0), model)
    tokenizer: Any = SimpleNamespace(end_of_text=0, vocabulary=shape.vocabulary)
    generator = Generator(weights, model, tokenizer)
    greedy = Sampling(temperature=0)

    def decode() -> None:
        tokens = generator.tokens(range(prompt), new_tokens=new, rows=rows, sampling=greedy)
        assert len(list(tokens)) == new

    seconds = median_seconds(decode, 1, REPETITIONS)
    return jax_result(param_specs.count_params(model), counted(rows, prompt, new) / seconds)


def decode_pytorch(shape: Shape, rows: int, prompt: int, new: int) -> dict[str, Any]:
    import torch

    network = torch_model(shape).eval()
    tokens = torch.arange(prompt)[None].repeat(rows, 1)

    def decode() -> None:
        output = network.generate(
            tokens, max_new_tokens=new, do_sample=False, use_cache=True, pad_token_id=0
        )
        assert output.shape == (rows, prompt + new)

    with torch.inference_mode():
        seconds = median_seconds(decode, 1, REPETITIONS)
    return torch_result(network, counted(rows, prompt, new) / seconds)


def floor(what: str, shape: Shape) -> dict[str, Any]:
    """Tokens per second at the limit of matrix products or memory bandwidth, the lower of both."""
    from gpt3jax.model import param_specs
    from gpt3jax.plan.bench import bandwidth_limit, peak_limit

    model = jax_model(shape)
    parameters, peak = param_specs.count_params(model), _rate(peak_limit())
    if what == "train":
        return jax_result(parameters, peak / param_specs.flops_per_token(model))
    if what == "first":
        return jax_result(parameters, peak / param_specs.forward_flops_per_token(model))
    rows, prompt, new = decode_sizes(what, shape)
    weights = parameters - shape.context * shape.d_model
    cache = 2 * shape.n_layers * shape.d_model * (prompt + new / 2)
    step = max(4 * (weights + rows * cache) / _rate(bandwidth_limit()), 2 * weights * rows / peak)
    return jax_result(parameters, rows / step)


def _rate(limit: Any) -> float:
    for _ in range(4):
        limit.measure()
    return limit.rate


def decode_sizes(what: str, shape: Shape) -> tuple[int, int, int]:
    """Rows, prompt tokens and new tokens, limited by the context."""
    rows, prompt, new = DECODING[what]
    prompt = min(prompt, shape.context - 1)
    return rows, prompt, min(new, shape.context - prompt)


def counted(rows: int, prompt: int, new: int) -> int:
    """Number of tokens to count: new tokens of all rows, or prompt tokens if one is new."""
    return rows * (new if new > 1 else prompt)


TRAIN = {"gpt3jax": train_gpt3jax, "pytorch": train_pytorch}
DECODE = {"gpt3jax": decode_gpt3jax, "pytorch": decode_pytorch}


def measure(what: str, side: str, shape: Shape) -> dict[str, Any]:
    """Runs one measurement."""
    if side == "floor":
        return floor(what, shape)
    if what == "train":
        return TRAIN[side](shape)
    return DECODE[side](shape, *decode_sizes(what, shape))


def jax_model(shape: Shape) -> Any:
    from gpt3jax.config import Model

    return Model(
        n_layers=shape.n_layers,
        d_model=shape.d_model,
        n_heads=shape.n_heads,
        d_head=shape.d_head,
        vocabulary=shape.vocabulary,
        context=shape.context,
        dense_every=1,
        scan_layers=False,
        dtype="float32",
    )


def torch_model(shape: Shape) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=shape.vocabulary, n_positions=shape.context, n_embd=shape.d_model,
            n_layer=shape.n_layers, n_head=shape.n_heads, bos_token_id=None, eos_token_id=None,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    )  # fmt: skip


def retain_memory() -> None:
    """Like `gpt3jax train`, before importing jax."""
    from gpt3jax.runtime.memory import retain_freed_memory

    retain_freed_memory()


def jax_result(parameters: int, tokens_per_s: float) -> dict[str, Any]:
    import jax
    from jaxlib.version import __version__ as jaxlib_version

    versions = {"jax": jax.__version__, "jaxlib": jaxlib_version}
    return result(parameters, tokens_per_s, versions)


def torch_result(network: Any, tokens_per_s: float) -> dict[str, Any]:
    import torch
    import transformers

    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return result(sum(p.numel() for p in network.parameters()), tokens_per_s, versions)


def result(parameters: int, tokens_per_s: float, versions: dict[str, str]) -> dict[str, Any]:
    versions = {"python": platform.python_version(), **versions}
    return {"parameters": parameters, "tokens_per_s": tokens_per_s, "versions": versions}


def median_seconds(call: Callable[[], None], warm_up: int, repetitions: int) -> float:
    """Median duration of a call, after warm-up calls."""
    for _ in range(warm_up):
        call()
    seconds = []
    for _ in range(repetitions):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


if __name__ == "__main__":
    what, side, *rest = sys.argv[1:]
    name = rest[0] if rest else "12M"
    shape = SHAPES[name] if name in SHAPES else Shape(**json.loads(name))
    print(json.dumps(measure(what, side, shape)))
