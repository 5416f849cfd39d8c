"""Benchmarks of training, decoding, data loading and checkpointing on this machine.

MFU convention, printed with each result: model FLOPs are 6 per matrix element and token
(including the tied head, excluding embedding lookups) plus 12 per visible key and unit of attention
width; causal and banded masks count only the visible keys. The peak is the chip's bfloat16 rate.
On a CPU, which has no published peak, it is the measured rate of a 2048 x 2048 float32 matmul.

`floor_s` is a lower bound on the time on this machine and `over_floor` the ratio of the measured
time to it. The bound for training and prefill is the model FLOPs at the peak rate; for decoding a
token, the parameter bytes at the measured memory bandwidth; for the data loader, the bytes of its
token ids at that bandwidth; for a checkpoint save, the bytes of the state at that bandwidth.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from gpt3jax.checkpoint.checkpointer import Checkpointer, leaves_of
from gpt3jax.checkpoint.manifest import CheckpointManifest
from gpt3jax.config import Experiment, Weights
from gpt3jax.data import loader
from gpt3jax.decoding.decode import Sampling
from gpt3jax.decoding.generator import Generator
from gpt3jax.model import param_specs
from gpt3jax.model.init import init_params
from gpt3jax.plan.choose import mesh_for
from gpt3jax.runtime.chips import peak_flops
from gpt3jax.train.schedules import Microbatches
from gpt3jax.train.state import abstract_state, init_sharded_state
from gpt3jax.train.step import compile_train_step

PRODUCT = 2048
PROMPT, WRITTEN = 32, 128
BATCHES = 50
READ_BYTES = 1 << 28
"""Size of the array for the bandwidth test; larger than any cache."""

UNITS = {
    "flops_per_s": "FLOP/s", "bytes_per_s": "bytes/s", "tokens_per_s": "tokens/s", "_s": "s",
    "over_floor": "times the floor", "mfu": "of the peak", "share": "of a save", "bytes": "bytes",
    "tokens": "tokens", "sequences": "windows",
}  # fmt: skip
"""Units by suffix of the metric's name; the first match wins. Metrics without a match are counts.
"""


@dataclass(frozen=True)
class RandomTokens:
    """Stands in for a tokenizer, since `bench decode` only needs token ids."""

    vocabulary: int
    end_of_text: int = 0


def bench(what: str, experiment: Experiment, repeats: int, *, as_json: bool) -> None:
    """Runs one benchmark and prints the median of `repeats` for each metric."""
    measure = {
        "train": bench_train,
        "decode": bench_decode,
        "data": bench_data,
        "save": bench_save,
    }[what]
    figures = {
        "what": what,
        "parameters": param_specs.count_params(experiment.model),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "repeats": repeats,
        "jax": jax.__version__,
        **measure(experiment, repeats),
    }
    if as_json:
        print(json.dumps(figures))
        return
    table = Table(show_header=False, box=None)
    for name, value in _flat(figures):
        shown = f"{value:,.4g}" if isinstance(value, float) else str(value)
        unit = next((unit for ending, unit in UNITS.items() if name.endswith(ending)), "")
        table.add_row(name, shown, "" if isinstance(value, str) else unit)
    Console().print(table)


def _flat(figures: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from ((f"{name}: {key}", figure) for key, figure in value.items())
        else:
            yield name, value


def bench_train(experiment: Experiment, repeats: int) -> dict[str, Any]:
    """Measures complete training steps on random tokens: tokens/s, model FLOP/s and MFU."""
    mesh, _ = mesh_for(experiment)
    count = experiment.batch_sequences // experiment.microbatch
    shape = (count, experiment.microbatch, experiment.model.context + 1)
    rng = np.random.default_rng(experiment.seed)
    with jax.set_mesh(mesh):
        step = compile_train_step(experiment, mesh)
        state = init_sharded_state(experiment, mesh)

        def train_step() -> None:
            nonlocal state
            windows = rng.integers(0, experiment.model.vocabulary, shape, dtype=np.int32)
            state, metrics = step(state, windows, jnp.int32(count), jnp.float32(0.0))
            metrics["loss"].block_until_ready()

        seconds = _median_seconds(train_step, repeats)
    tokens_per_s = experiment.train.batch_tokens / seconds
    flops = tokens_per_s * param_specs.flops_per_token(experiment.model)
    peak, peak_name = _peak()
    return {
        "step_s": seconds,
        **_over_floor(seconds, seconds * flops / peak),
        "tokens_per_s": tokens_per_s,
        "model_flops_per_s": flops,
        "mfu": flops / peak,
        "mfu_convention": f"6 N + causal attention, over {peak_name} of {peak:.3g} FLOP/s",
    }


def bench_decode(experiment: Experiment, repeats: int) -> dict[str, Any]:
    """Measures greedy decoding of one sequence: tokens/s and time to first token.

    The weight formats (float32 and quantized) are timed in alternation.
    """
    model = experiment.model
    params = jax.jit(init_params, static_argnums=1)(jax.random.key(0), model)
    tokenizer: Any = RandomTokens(model.vocabulary)
    generators = {
        weights: Generator(params, model, tokenizer, weights) for weights in get_args(Weights)
    }
    prompt = list(range(1, min(PROMPT, model.context // 2) + 1))
    n_new = min(WRITTEN, model.context - len(prompt))

    def decode(generator: Generator, new_tokens: int) -> Callable[[], None]:
        def work() -> None:
            for _ in generator.tokens(prompt, new_tokens=new_tokens, sampling=Sampling(0.0)):
                pass

        return work

    first = _medians({name: decode(each, 1) for name, each in generators.items()}, repeats)
    total = _medians({name: decode(each, n_new) for name, each in generators.items()}, repeats)
    bandwidth, (peak, _) = read_bytes_per_s(), _peak()
    figures: dict[str, Any] = {"prompt_tokens": len(prompt), "new_tokens": n_new}
    prefill_s = len(prompt) * param_specs.forward_flops_per_token(model) / peak
    for name, each in generators.items():
        rate = (n_new - 1) / (total[name] - first[name])
        weight_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(each.params))
        figures[name] = {
            "tokens_per_s": rate,
            **_over_floor(1 / rate, weight_bytes / bandwidth),
            "weight_bytes_per_s": rate * weight_bytes,
            "first_token_s": first[name],
            "first_token_over_floor": first[name] / (prefill_s + weight_bytes / bandwidth),
        }
    return figures | {"read_bytes_per_s": bandwidth}


def bench_data(experiment: Experiment, repeats: int) -> dict[str, Any]:
    """Measures the data loader alone, in tokens/s, on the experiment's prepared data."""
    context, size = experiment.model.context, experiment.microbatch
    order = loader.windows(experiment.data, experiment.seed, context)
    spans = Microbatches([(size, sys.maxsize)], size, 0)
    batches = loader.batches(order, spans, range(size), context + 1)
    seconds = _median_seconds(lambda: [next(batches) for _ in range(BATCHES)], repeats)
    batches.close()  # pyright: ignore[reportAttributeAccessIssue]
    tokens = BATCHES * size * context
    return {
        "tokens_per_s": tokens / seconds,
        **_over_floor(seconds, 4 * tokens / read_bytes_per_s()),
        "batch_sequences": size,
    }


def bench_save(experiment: Experiment, repeats: int) -> dict[str, Any]:
    """Measures saving and restoring a checkpoint in a temporary directory, and the cost of hashes.

    `stall_s` is the part of `save_s` that delays the next training step. The step is simulated by
    negating the state in place, which takes `pass_s` on its own; `stall_s` is the extra time it
    takes immediately after a save has started.
    """
    mesh, _ = mesh_for(experiment)
    with jax.set_mesh(mesh), tempfile.TemporaryDirectory(dir=".") as folder:
        checkpoints = Checkpointer(Path(folder) / "checkpoints", keep=1)
        state = init_sharded_state(experiment, mesh)
        steps, save_and_pass_s = itertools.count(1), []
        negated = jax.jit(lambda state: jax.tree.map(jnp.negative, state), donate_argnums=0)

        def negate_in_place() -> None:
            nonlocal state
            state = jax.block_until_ready(negated(state))

        def save() -> None:
            began = time.perf_counter()
            checkpoints.save(
                state,
                CheckpointManifest(next(steps), 0, (), "", {}, {}),
                lambda _: None,
            )
            negate_in_place()
            save_and_pass_s.append(time.perf_counter() - began)
            checkpoints.wait()

        seconds = _medians({"pass_s": negate_in_place, "save_s": save}, repeats)
        hash_s = _median_seconds(lambda: leaves_of(state), repeats)
        last, abstract = checkpoints.steps()[-1], abstract_state(experiment, mesh)
        restore_s = _median_seconds(lambda: checkpoints.restore(last, abstract), repeats)
        checkpoints.close()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    return {
        "bytes": size,
        **seconds,
        **_over_floor(seconds["save_s"], size / read_bytes_per_s()),
        "stall_s": statistics.median(save_and_pass_s[1:]) - seconds["pass_s"],
        "hash_s": hash_s,
        "hash_share": hash_s / seconds["save_s"],
        "restore_s": restore_s,
    }


def _median_seconds(work: Callable[[], Any], repeats: int) -> float:
    """Median duration of `work`, after one warm-up call."""
    return _medians({"": work}, repeats)[""]


def _medians(works: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median durations in seconds, measured by `_durations`."""
    return {name: statistics.median(each) for name, each in _durations(works, repeats).items()}


def _least_seconds(work: Callable[[], Any]) -> float:
    """The shortest of ten durations, for rates that serve as an upper bound."""
    return min(_durations({"": work}, 10)[""])


def _durations(works: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call, in alternation, after one warm-up call of each."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def _over_floor(seconds: float, floor: float) -> dict[str, float]:
    return {"floor_s": floor, "over_floor": seconds / floor}


def read_bytes_per_s() -> float:
    """Memory bandwidth: the rate at which all cores reduce an array larger than any cache."""
    x = jnp.ones((READ_BYTES // 16384, 4096), jnp.float32)
    largest = jax.jit(lambda x: x.max(1))
    return READ_BYTES / _least_seconds(lambda: largest(x).block_until_ready())


def _peak() -> tuple[float, str]:
    """FLOP/s of all devices together, and a description of this peak."""
    peak = peak_flops(jax.devices()[0].device_kind)
    if peak:
        return peak * jax.device_count(), "the bfloat16 peak"
    return product_flops_per_s(), f"a measured {PRODUCT} x {PRODUCT} float32 product"


def product_flops_per_s() -> float:
    """FLOP/s of a large float32 matrix product."""
    x = jnp.ones((PRODUCT, PRODUCT))
    product = jax.jit(jnp.matmul)
    return 2 * PRODUCT**3 / _least_seconds(lambda: product(x, x).block_until_ready())
