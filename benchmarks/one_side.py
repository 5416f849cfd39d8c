"""Measures the speed of one library in this process, on request.

    PYTHONPATH=. python benchmarks/one_side.py WHAT gpt3jax|pytorch|floor [SHAPE] < /dev/null

WHAT is train, decode, decode8 or first. SHAPE is a name in `SHAPES`, or a shape as JSON. Once
everything is compiled, a line of JSON has the parameters and the versions; then each line of
standard input is answered by one measurement, so that several such processes can alternate. With no
input there is one measurement.

PyTorch uses a GPU if there is one. `floor` is the upper limit on this machine: the model's FLOPs at
the measured rate of a large matrix product, and the bytes of parameters and KV cache at the
measured memory bandwidth.

against_pytorch.py and on_gpu/ run these and document the measurements.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

WARM_UP_STEPS, STEPS = 3, {"cpu": 8, "accelerator": 20}
"""Training steps: before the first measurement, and in each, without a wait between them."""
DECODING = {"decode": (1, 32, 200), "decode8": (8, 32, 200), "first": (1, 1000, 1)}
"""Rows, prompt tokens and new tokens, by WHAT."""
VOCABULARY_MULTIPLE = 128
"""PyTorch's embedding has such a number of rows, as gpt3jax's has, since products are faster."""
LEARNING_RATE, WEIGHT_DECAY, BETAS = 6e-4, 0.1, (0.9, 0.95)


@dataclass(frozen=True)
class Shape:
    """Shape of a model with dense layers, windows per batch, and formats of gpt3jax."""

    n_layers: int
    n_heads: int
    d_head: int
    vocabulary: int
    context: int
    batch: int
    dtype: str = "float32"
    """As --model.dtype; PyTorch computes in float32 on CPUs and in bfloat16 on GPUs."""
    weights: str = "full"
    """As --weights, for decoding."""

    @property
    def d_model(self) -> int:
        return self.n_heads * self.d_head

    @property
    def tokens(self) -> int:
        """Tokens per batch."""
        return self.batch * self.context


SHAPES = {
    "12M": Shape(n_layers=6, n_heads=6, d_head=64, vocabulary=4096, context=256, batch=16),
    "124M": Shape(n_layers=12, n_heads=12, d_head=64, vocabulary=50257, context=1024, batch=1),
    # As many of GPT-3 Small's layers as train in reasonable time.
    "small": Shape(n_layers=4, n_heads=12, d_head=64, vocabulary=8192, context=512, batch=4),
    "1M": Shape(n_layers=2, n_heads=2, d_head=64, vocabulary=4096, context=256, batch=4),
}


class Side(NamedTuple):
    """A program that is ready to be measured."""

    parameters: int
    versions: dict[str, str]
    measure: Callable[[], float]
    """Tokens per second."""


def train_gpt3jax(shape: Shape) -> Side:
    """The compiled training step on windows from the host."""
    retain_memory()
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import NamedSharding

    from gpt3jax import config
    from gpt3jax.model.param_specs import count_params
    from gpt3jax.sharding.mesh import make_mesh
    from gpt3jax.sharding.rules import partition_spec
    from gpt3jax.train.state import init_sharded_state
    from gpt3jax.train.step import compile_train_step

    experiment = config.Experiment(
        "benchmark",
        jax_model(shape),
        config.Data((config.Source("random tokens", "nowhere"),)),
        config.Schedule(peak_learning_rate=LEARNING_RATE),
        config.Train(batch_tokens=shape.tokens),
        config.AdamW(*BETAS, clip_norm=1.0, weight_decay=WEIGHT_DECAY),
    )
    mesh = make_mesh(experiment.mesh)
    with jax.set_mesh(mesh):
        state = init_sharded_state(experiment, mesh)
        compiled = compile_train_step(experiment, mesh)
    sharding = NamedSharding(mesh, partition_spec((None, "batch", None)))
    rng = np.random.default_rng(0)

    def step() -> Any:
        nonlocal state
        windows = random_windows(rng, shape)[None].astype(np.int32)
        windows = jax.device_put(windows, sharding)
        with jax.set_mesh(mesh):
            state, metrics = compiled(state, windows, jnp.int32(1), jnp.float32(LEARNING_RATE))
        return state, metrics

    steps = STEPS["cpu" if jax.default_backend() == "cpu" else "accelerator"]
    count = count_params(experiment.model)
    return training(count, jax_versions(), step, jax.block_until_ready, steps, shape)


def train_pytorch(shape: Shape) -> Side:
    """The training step of pytorch_gpt.py."""
    import numpy as np
    import torch
    from pytorch_gpt import GPT, trainer

    torch.manual_seed(0)
    padded = -(-shape.vocabulary // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    network = GPT(shape.n_layers, shape.n_heads, shape.d_head, padded, shape.context)
    compiled = trainer(network, LEARNING_RATE, BETAS, WEIGHT_DECAY)
    rng = np.random.default_rng(0)

    def step() -> Any:
        return compiled(random_windows(rng, shape))

    count = sum(each.numel() for each in network.parameters())
    count -= (padded - shape.vocabulary) * shape.d_model
    steps = STEPS["accelerator" if torch.cuda.is_available() else "cpu"]
    return training(count, torch_versions(), step, lambda loss: loss.item(), steps, shape)


def random_windows(rng: Any, shape: Shape) -> Any:
    """int64 token ids of shape (batch, context + 1)."""
    return rng.integers(0, shape.vocabulary, (shape.batch, shape.context + 1))


def training(
    count: int,
    versions: dict[str, str],
    step: Callable[[], Any],
    wait: Callable[[Any], Any],
    steps: int,
    shape: Shape,
) -> Side:
    """Measures `steps` training steps at once, after some to warm up."""
    for _ in range(WARM_UP_STEPS):
        wait(step())

    def measure() -> float:
        result, began = None, time.perf_counter()
        for _ in range(steps):
            result = step()
        wait(result)
        return steps * shape.tokens / (time.perf_counter() - began)

    return Side(count, versions, measure)


def decode_gpt3jax(shape: Shape, rows: int, prompt: int, new: int) -> Side:
    """Greedy decoding with a KV cache, or prefill if there is one new token."""
    import jax

    from gpt3jax.decoding.decode import Sampling
    from gpt3jax.decoding.generator import Generator
    from gpt3jax.model import param_specs
    from gpt3jax.model.init import init_params

    model = jax_model(shape)
    params = jax.jit(init_params, static_argnums=1)(jax.random.key(0), model)
    tokenizer: Any = SimpleNamespace(end_of_text=0, vocabulary=shape.vocabulary)
    generator = Generator(params, model, tokenizer, shape.weights)  # pyright: ignore
    greedy = Sampling(temperature=0)

    def decode() -> None:
        tokens = generator.tokens(range(prompt), new_tokens=new, rows=rows, sampling=greedy)
        assert len(list(tokens)) == new

    count = param_specs.count_params(model)
    return decoding(count, jax_versions(), decode, counted(rows, prompt, new))


def decode_pytorch(shape: Shape, rows: int, prompt: int, new: int) -> Side:
    """`generate` of transformers' GPT-2, in bfloat16 on a GPU."""
    import torch
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = torch_model(shape).eval()
    count = sum(each.numel() for each in network.parameters())
    network = network.to(device, torch.bfloat16 if device == "cuda" else torch.float32)
    tokens = torch.arange(prompt, device=device)[None].repeat(rows, 1)

    @torch.inference_mode()
    def decode() -> None:
        output = network.generate(
            tokens, max_new_tokens=new, do_sample=False, use_cache=True, pad_token_id=0
        )
        assert output.cpu().shape == (rows, prompt + new)

    versions = torch_versions() | {"transformers": transformers.__version__}
    return decoding(count, versions, decode, counted(rows, prompt, new))


def decoding(count: int, versions: dict[str, str], decode: Callable[[], None], tokens: int) -> Side:
    """Measures one call, after one to warm up."""
    decode()

    def measure() -> float:
        began = time.perf_counter()
        decode()
        return tokens / (time.perf_counter() - began)

    return Side(count, versions, measure)


def floor(what: str, shape: Shape) -> Side:
    """The limit of matrix products or memory bandwidth, the lower of both."""
    from gpt3jax.model import param_specs
    from gpt3jax.plan.bench import bandwidth_limit, peak_limit

    model = jax_model(shape)
    parameters = param_specs.count_params(model)
    peak, bandwidth = peak_limit(), bandwidth_limit()

    def measure() -> float:
        peak.measure()
        if what == "train":
            return peak.rate / param_specs.flops_per_token(model)
        if what == "first":
            return peak.rate / param_specs.forward_flops_per_token(model)
        bandwidth.measure()
        rows, prompt, new = decode_sizes(what, shape)
        weights = parameters - shape.context * shape.d_model
        cache = 2 * shape.n_layers * shape.d_model * (prompt + new / 2)
        read, computed = 4 * (weights + rows * cache), 2 * weights * rows
        return rows / max(read / bandwidth.rate, computed / peak.rate)

    return Side(parameters, jax_versions(), measure)


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


def prepare(what: str, side: str, shape: Shape) -> Side:
    """Compiles one program and runs it once."""
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
        dtype=shape.dtype,  # pyright: ignore[reportArgumentType]
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


def jax_versions() -> dict[str, str]:
    import jax
    from jaxlib.version import __version__ as jaxlib_version

    return {"jax": jax.__version__, "jaxlib": jaxlib_version}


def torch_versions() -> dict[str, str]:
    import torch

    return {"torch": torch.__version__}


def main() -> None:
    what, side, *rest = sys.argv[1:]
    name = rest[0] if rest else "12M"
    shape = SHAPES[name] if name in SHAPES else Shape(**json.loads(name))
    ready = prepare(what, side, shape)
    versions = {"python": platform.python_version(), **ready.versions}
    print(json.dumps({"parameters": ready.parameters, "versions": versions}), flush=True)
    asked = 0
    for _ in sys.stdin:
        asked += 1
        print(json.dumps({"tokens_per_s": ready.measure()}), flush=True)
    if not asked:
        print(json.dumps({"tokens_per_s": ready.measure()}))


if __name__ == "__main__":
    main()
