"""Benchmarks of training, decoding, data loading and checkpointing on this machine.

MFU convention, printed with each result: model FLOPs are 6 per matrix element and token
(including the tied head, excluding embedding lookups) plus 12 per visible key and unit of attention
width; causal and banded masks count only the visible keys. The peak is the chip's bfloat16 rate.
On a CPU, which has no published peak, it is the measured rate of a 2048 x 2048 float32 matmul.

`floor_s` is a lower bound on the time on this machine and `over_floor` the ratio of the measured
time to it. The bound for training and prefill is the model FLOPs at the peak rate; for decoding a
token, the parameter bytes at the measured memory bandwidth; for the data loader, the bytes of its
token ids at that bandwidth; for a checkpoint save, the bytes of the state at that bandwidth. Rates
that are measured are measured between the repetitions, and the best counts. A result below its
floor says that it cannot be trusted.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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
from gpt3jax.plan.bench_traces import decode_sizes, random_tokens, trace_decode, trace_train
from gpt3jax.plan.choose import mesh_for
from gpt3jax.plan.profile import sum_up
from gpt3jax.plan.show import print_profile
from gpt3jax.runtime.chips import chip_of, peak_flops
from gpt3jax.style import wide_console
from gpt3jax.train.schedules import Microbatches
from gpt3jax.train.state import abstract_state, init_sharded_state
from gpt3jax.train.step import compile_train_step

PRODUCT = 2048
BATCHES = 50
READ_BYTES, COPY_BYTES = 1 << 28, 1 << 30
"""Sizes of the arrays for the bandwidth test, on CPUs and accelerators; larger than any cache."""

UNITS = {
    "flops_per_s": "FLOP/s", "bytes_per_s": "bytes/s", "tokens_per_s": "tokens/s", "_s": "s",
    "over_floor": "times the floor", "mfu": "of the peak", "share": "of a save", "bytes": "bytes",
    "of_published": "of the chip's published rate",
    "tokens": "tokens", "sequences": "windows",
}  # fmt: skip
"""Units by suffix of the metric's name; the first match wins. Metrics without a match are counts.
"""


@dataclass
class Limit:
    """A rate that no work on this machine exceeds: published, or the best that was measured."""

    name: str
    amount: float
    """FLOPs or bytes of a call of `work`; of a second if the rate is published."""
    work: Callable[[], Any] | None = None
    seconds: list[float] = field(default_factory=list)

    def measure(self) -> None:
        """Time the work three times."""
        for _ in range(3):
            if self.work is not None:
                began = time.perf_counter()
                self.work()
                self.seconds.append(time.perf_counter() - began)

    @property
    def rate(self) -> float:
        """FLOP/s or bytes/s."""
        return self.amount / min(self.seconds, default=1.0)


def bench(
    what: str, experiment: Experiment, repeats: int, *, as_json: bool, with_profile: bool = False
) -> None:
    """Runs one benchmark and prints the median of `repeats` for each metric.

    With `with_profile`, which `train` and `decode` have, some steps are traced after that.
    """
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
    profile = None
    if with_profile:
        trace = {"train": trace_train, "decode": trace_decode}[what](experiment)
        profile = sum_up(trace, chip_of(jax.devices()[0].device_kind))
    if as_json:
        print(json.dumps(figures | ({"profile": profile.record()} if profile else {})))
        return
    table = Table(show_header=False, box=None)
    for name, value in _flat(figures):
        shown = f"{value:,.4g}" if isinstance(value, float) else str(value)
        unit = next((unit for ending, unit in UNITS.items() if name.endswith(ending)), "")
        table.add_row(name, shown, "" if isinstance(value, str) else unit)
    Console().print(table)
    if profile:
        print_profile(wide_console(soft_wrap=True), profile)


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

        peak = peak_limit()
        seconds = _median_seconds(train_step, repeats, peak)
    tokens_per_s = experiment.train.batch_tokens / seconds
    flops = tokens_per_s * param_specs.flops_per_token(experiment.model)
    return {
        "step_s": seconds,
        **_over_floor(seconds, seconds * flops / peak.rate),
        "tokens_per_s": tokens_per_s,
        "model_flops_per_s": flops,
        "mfu": flops / peak.rate,
        "mfu_convention": f"6 N + causal attention, over {peak.name} of {peak.rate:.3g} FLOP/s",
    }


def bench_decode(experiment: Experiment, repeats: int) -> dict[str, Any]:
    """Measures greedy decoding of one sequence: tokens/s and time to first token.

    The weight formats (float32 and quantized) are timed in alternation.
    """
    model = experiment.model
    params = jax.jit(init_params, static_argnums=1)(jax.random.key(0), model)
    generators = {
        weights: Generator(params, model, random_tokens(model), weights)
        for weights in get_args(Weights)
    }
    prompt, n_new = decode_sizes(model)

    def decode(generator: Generator, new_tokens: int) -> Callable[[], None]:
        def work() -> None:
            for _ in generator.tokens(prompt, new_tokens=new_tokens, sampling=Sampling(0.0)):
                pass

        return work

    limits = bandwidth, peak = bandwidth_limit(), peak_limit()
    first = _medians({name: decode(each, 1) for name, each in generators.items()}, repeats, *limits)
    total = _medians(
        {name: decode(each, n_new) for name, each in generators.items()}, repeats, *limits
    )
    figures: dict[str, Any] = {"prompt_tokens": len(prompt), "new_tokens": n_new}
    prefill_s = len(prompt) * param_specs.forward_flops_per_token(model) / peak.rate
    for name, each in generators.items():
        rate = (n_new - 1) / (total[name] - first[name])
        weight_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(each.params))
        figures[name] = {
            "tokens_per_s": rate,
            **_over_floor(1 / rate, weight_bytes / bandwidth.rate),
            "weight_bytes_per_s": rate * weight_bytes,
            "first_token_s": first[name],
            "first_token_over_floor": first[name] / (prefill_s + weight_bytes / bandwidth.rate),
        }
    return figures | _bandwidth(bandwidth)


def bench_data(experiment: Experiment, repeats: int) -> dict[str, Any]:
    """Measures the data loader alone, in tokens/s, on the experiment's prepared data."""
    context, size = experiment.model.context, experiment.microbatch
    order = loader.windows(experiment.data, experiment.seed, context)
    spans = Microbatches([(size, sys.maxsize)], size, 0)
    batches = loader.batches(order, spans, range(size), context + 1)
    bandwidth = bandwidth_limit()
    seconds = _median_seconds(lambda: [next(batches) for _ in range(BATCHES)], repeats, bandwidth)
    batches.close()  # pyright: ignore[reportAttributeAccessIssue]
    tokens = BATCHES * size * context
    return {
        "tokens_per_s": tokens / seconds,
        **_over_floor(seconds, 4 * tokens / bandwidth.rate),
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

        bandwidth = bandwidth_limit()
        seconds = _medians({"pass_s": negate_in_place, "save_s": save}, repeats, bandwidth)
        hash_s = _median_seconds(lambda: leaves_of(state), repeats)
        last, abstract = checkpoints.steps()[-1], abstract_state(experiment, mesh)
        restore_s = _median_seconds(lambda: checkpoints.restore(last, abstract), repeats)
        checkpoints.close()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    return {
        "bytes": size,
        **seconds,
        **_over_floor(seconds["save_s"], size / bandwidth.rate),
        "stall_s": statistics.median(save_and_pass_s[1:]) - seconds["pass_s"],
        "hash_s": hash_s,
        "hash_share": hash_s / seconds["save_s"],
        "restore_s": restore_s,
    }


def _median_seconds(work: Callable[[], Any], repeats: int, *limits: Limit) -> float:
    """Median duration of `work`, after one warm-up call."""
    return _medians({"": work}, repeats, *limits)[""]


def _medians(works: dict[str, Callable[[], Any]], repeats: int, *limits: Limit) -> dict[str, float]:
    """Median seconds of each call, in alternation, after one warm-up call of each.

    The limits are measured after each turn, since other programs may slow the machine at any time.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            if turn:
                seconds[name].append(time.perf_counter() - began)
        for limit in limits:
            limit.measure()
    return {name: statistics.median(each) for name, each in seconds.items()}


def _over_floor(seconds: float, floor: float) -> dict[str, Any]:
    figures: dict[str, Any] = {"floor_s": floor, "over_floor": seconds / floor}
    if seconds < floor:
        figures["not_trusted"] = "faster than its floor: the floor's rate was measured too low"
    return figures


def bandwidth_limit() -> Limit:
    """Memory bandwidth, for reading: on accelerators the rate of a copy, which reads and writes."""
    if jax.default_backend() == "cpu":
        x = jnp.ones((READ_BYTES // 16384, 4096), jnp.float32)
        largest = jax.jit(lambda x: x.max(1))
        return Limit("reading", READ_BYTES, lambda: largest(x).block_until_ready())
    x = jnp.ones(COPY_BYTES // 4, jnp.float32)
    negated = jax.jit(jnp.negative)
    return Limit("a copy", 2 * COPY_BYTES, lambda: negated(x).block_until_ready())


def _bandwidth(limit: Limit) -> dict[str, float]:
    """The measured bandwidth, and its share of the published one of a known chip."""
    chip = chip_of(jax.devices()[0].device_kind)
    figures = {"read_bytes_per_s": limit.rate}
    return figures | ({"read_of_published": limit.rate / chip.hbm_rate} if chip else {})


def peak_limit() -> Limit:
    """FLOP/s of all devices together."""
    peak = peak_flops(jax.devices()[0].device_kind)
    if peak:
        return Limit("the bfloat16 peak", peak * jax.device_count())
    x, product = jnp.ones((PRODUCT, PRODUCT)), jax.jit(jnp.matmul)
    return Limit(
        f"a measured {PRODUCT} x {PRODUCT} float32 product", 2 * PRODUCT**3,
        lambda: product(x, x).block_until_ready(),
    )  # fmt: skip
