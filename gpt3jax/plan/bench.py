"""How fast this machine trains, writes, reads and saves, at the shape of an experiment.

MFU convention, printed with each figure: model FLOPs are 6 per matrix element
and token (the tied head included, embedding lookups not) plus 12 per visible
key and attention-width element (causal and banded masks count only what they
leave). The peak is the chip's bfloat16 rate; on a CPU, which has no such
figure, it is the rate of a 2048 x 2048 float32 product measured just before.

`floor_s` is what no program can be faster than here, and `over_floor` how many times as long ours
takes: of training and of reading a prompt, the model's FLOPs at the peak; of writing a token, the
parameters at the rate at which memory is read, measured; of the loader, the token ids it hands
over at that rate, and of a save, the state.
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
"""Larger than any cache."""


UNITS = {
    "flops_per_s": "FLOP/s", "bytes_per_s": "bytes/s", "tokens_per_s": "tokens/s", "_s": "s",
    "over_floor": "times the floor", "mfu": "of the peak", "share": "of a save", "bytes": "bytes",
    "tokens": "tokens", "sequences": "windows",
}  # fmt: skip
"""Units of figures by the endings of their names; the first that fits. Others are counts."""


@dataclass(frozen=True)
class RandomTokens:
    """Stands in for a tokenizer: `bench decode` writes ids, not text."""

    vocabulary: int
    end_of_text: int = 0


def bench(what: str, experiment: Experiment, repeats: int, *, as_json: bool) -> None:
    """Measure and print; each figure is the median of `repeats`."""
    measure = {
        "train": bench_train, "decode": bench_decode, "data": bench_data, "save": bench_save,
    }[what]  # fmt: skip
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
            yield from ((f"{name}: {of}", figure) for of, figure in value.items())
        else:
            yield name, value


def bench_train(experiment: Experiment, repeats: int) -> dict[str, Any]:
    """Whole training steps on random tokens: tokens/s, model FLOP/s, MFU."""
    mesh, _ = mesh_for(experiment)
    count = experiment.batch_sequences // experiment.microbatch
    shape = (count, experiment.microbatch, experiment.model.context + 1)
    draw = np.random.default_rng(experiment.seed)
    with jax.set_mesh(mesh):
        step = compile_train_step(experiment, mesh)
        state = init_sharded_state(experiment, mesh)

        def once() -> None:
            nonlocal state
            windows = draw.integers(0, experiment.model.vocabulary, shape, dtype=np.int32)
            state, metrics = step(state, windows, jnp.int32(count), jnp.float32(0.0))
            metrics["loss"].block_until_ready()

        seconds = _median_seconds(once, repeats)
    tokens_per_s = experiment.train.batch_tokens / seconds
    flops = tokens_per_s * param_specs.flops_per_token(experiment.model)
    peak, of = _peak()
    return {
        "step_s": seconds,
        **_over_floor(seconds, seconds * flops / peak),
        "tokens_per_s": tokens_per_s,
        "model_flops_per_s": flops,
        "mfu": flops / peak,
        "mfu_convention": f"6 N + causal attention, over {of} of {peak:.3g} FLOP/s",
    }


def bench_decode(experiment: Experiment, repeats: int) -> dict[str, Any]:
    """Cached greedy generation of one sample: tokens/s, seconds to the first token.

    Also with packed weights, in alternation.
    """
    model = experiment.model
    params = jax.jit(init_params, static_argnums=1)(jax.random.key(0), model)
    tokenizer = RandomTokens(model.vocabulary)
    generators = {
        weights: Generator(params, model, tokenizer, weights) for weights in get_args(Weights)
    }
    prompt = list(range(1, min(PROMPT, model.context // 2) + 1))
    written = min(WRITTEN, model.context - len(prompt))

    def write(generator: Generator, new_tokens: int) -> Callable[[], None]:
        def work() -> None:
            drawn = generator.tokens(prompt, new_tokens=new_tokens, sampling=Sampling(0.0))
            for _ in drawn:
                pass

        return work

    first = _medians({name: write(each, 1) for name, each in generators.items()}, repeats)
    whole = _medians({name: write(each, written) for name, each in generators.items()}, repeats)
    bandwidth, (peak, _) = read_bytes_per_s(), _peak()
    figures: dict[str, Any] = {"prompt_tokens": len(prompt), "new_tokens": written}
    reading = len(prompt) * param_specs.forward_flops_per_token(model) / peak
    for name, each in generators.items():
        rate = (written - 1) / (whole[name] - first[name])
        matrices = sum(leaf.nbytes for leaf in jax.tree.leaves(each.params))
        figures[name] = {
            "tokens_per_s": rate,
            **_over_floor(1 / rate, matrices / bandwidth),
            "weight_bytes_per_s": rate * matrices,
            "first_token_s": first[name],
            "first_token_over_floor": first[name] / (reading + matrices / bandwidth),
        }
    return figures | {"read_bytes_per_s": bandwidth}


def bench_data(experiment: Experiment, repeats: int) -> dict[str, Any]:
    """The loader alone, on the experiment's prepared data: tokens/s handed over."""
    context, size = experiment.model.context, experiment.microbatch
    order = loader.windows(experiment.data, experiment.seed, context)
    spans = Microbatches([(size, sys.maxsize)], size, 0)
    batches = loader.batches(order, spans, range(size), context + 1)
    seconds = _median_seconds(lambda: [next(batches) for _ in range(BATCHES)], repeats)
    batches.close()
    tokens = BATCHES * size * context
    return {
        "tokens_per_s": tokens / seconds,
        **_over_floor(seconds, 4 * tokens / read_bytes_per_s()),
        "batch_sequences": size,
    }


def bench_save(experiment: Experiment, repeats: int) -> dict[str, Any]:
    """A checkpoint written and read, in a temporary folder here: seconds, and the hashes' share.

    `stall_s` of `save_s` are those that a step is late which comes right after: the state is
    negated in place, which takes `pass_s` alone, and the more when a save has just begun.
    """
    mesh, _ = mesh_for(experiment)
    with jax.set_mesh(mesh), tempfile.TemporaryDirectory(dir=".") as folder:
        checkpoints = Checkpointer(Path(folder) / "checkpoints", keep=1)
        state = init_sharded_state(experiment, mesh)
        steps, late = itertools.count(1), []
        negated = jax.jit(lambda state: jax.tree.map(jnp.negative, state), donate_argnums=0)

        def pass_over() -> None:
            nonlocal state
            state = jax.block_until_ready(negated(state))

        def save() -> None:
            began = time.perf_counter()
            checkpoints.save(
                state, CheckpointManifest(next(steps), 0, (), "", {}, {}), lambda _: None
            )
            pass_over()
            late.append(time.perf_counter() - began)
            checkpoints.wait()

        seconds = _medians({"pass_s": pass_over, "save_s": save}, repeats)
        hash_s = _median_seconds(lambda: leaves_of(state), repeats)
        last, abstract = checkpoints.steps()[-1], abstract_state(experiment, mesh)
        restore_s = _median_seconds(lambda: checkpoints.restore(last, abstract), repeats)
        checkpoints.close()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    return {
        "bytes": size,
        **seconds,
        **_over_floor(seconds["save_s"], size / read_bytes_per_s()),
        "stall_s": statistics.median(late[1:]) - seconds["pass_s"],
        "hash_s": hash_s,
        "hash_share": hash_s / seconds["save_s"],
        "restore_s": restore_s,
    }


def _median_seconds(work: Callable[[], Any], repeats: int) -> float:
    """Median duration of the work, after one unmeasured go."""
    return _medians({"": work}, repeats)[""]


def _medians(works: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median durations in seconds, as `_durations` are taken."""
    return {name: statistics.median(each) for name, each in _durations(works, repeats).items()}


def _least_seconds(work: Callable[[], Any]) -> float:
    """The shortest of ten durations: a limit is the best that was seen."""
    return min(_durations({"": work}, 10)[""])


def _durations(works: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each go, in alternation, after one unmeasured go of each."""
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
    """Bytes of an array larger than any cache that all cores read to find each row's largest."""
    x = jnp.ones((READ_BYTES // 16384, 4096), jnp.float32)
    largest = jax.jit(lambda x: x.max(1))
    return READ_BYTES / _least_seconds(lambda: largest(x).block_until_ready())


def _peak() -> tuple[float, str]:
    """FLOP/s of all devices together, and what that figure is."""
    known = peak_flops(jax.devices()[0].device_kind)
    if known:
        return known * jax.device_count(), "the bfloat16 peak"
    return product_flops_per_s(), f"a measured {PRODUCT} x {PRODUCT} float32 product"


def product_flops_per_s() -> float:
    """FLOP/s of a large float32 product."""
    x = jnp.ones((PRODUCT, PRODUCT))
    product = jax.jit(jnp.matmul)
    return 2 * PRODUCT**3 / _least_seconds(lambda: product(x, x).block_until_ready())
