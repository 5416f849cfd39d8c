"""Traces of the steps that `gpt3jax bench train` and `decode` measure."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt3jax.config import Experiment, Model
from gpt3jax.decoding.decode import Sampling
from gpt3jax.decoding.generator import Generator
from gpt3jax.model.init import init_params
from gpt3jax.plan.choose import mesh_for
from gpt3jax.train.monitor.profile import Trace, new_folder, start
from gpt3jax.train.state import init_sharded_state
from gpt3jax.train.step import compile_train_step

STEPS = 5
PROMPT, WRITTEN = 32, 128
NO_GRAPHS = {"xla_gpu_graph_min_graph_size": 2**31 - 1}
"""Options of XLA: the events of kernels in a CUDA graph do not name their operation."""


def trace_train(experiment: Experiment) -> Trace:
    """Traces training steps on random tokens, without a wait between them."""
    mesh, _ = mesh_for(experiment)
    count = experiment.batch_sequences // experiment.microbatch
    shape = (count, experiment.microbatch, experiment.model.context + 1)
    windows = np.random.default_rng(0).integers(0, experiment.model.vocabulary, shape, np.int32)
    others = windows, jnp.int32(count), jnp.float32(0.0)
    with jax.set_mesh(mesh):
        jitted: Any = compile_train_step(experiment, mesh)
        state = init_sharded_state(experiment, mesh)
        options = NO_GRAPHS if jax.default_backend() == "gpu" else None
        step = jitted.lower(state, *others).compile(options)
        state, _ = jax.block_until_ready(step(state, *others))
        folder = _start("train", experiment)
        for number in range(STEPS):
            with jax.profiler.StepTraceAnnotation("train", step_num=number):
                state, _ = step(state, *others)
        jax.block_until_ready(state)
        jax.profiler.stop_trace()
        return Trace(folder, step.as_text(), count)


def trace_decode(experiment: Experiment) -> Trace:
    """Traces the tokens of one sequence with full weights, after the prefill; a step is a token."""
    model = experiment.model
    params = jax.jit(init_params, static_argnums=1)(jax.random.key(0), model)
    generator = Generator(params, model, random_tokens(model))
    prompt, n_new = decode_sizes(model)
    greedy = Sampling(0.0)
    for _ in generator.tokens(prompt, new_tokens=n_new, sampling=greedy):
        pass
    tokens = generator.tokens(prompt, new_tokens=n_new, sampling=greedy)
    next(tokens)
    # The second token is dispatched.
    jax.block_until_ready([each for each in jax.live_arrays() if not each.is_deleted()])
    folder = _start("decode", experiment)
    for number in range(n_new - 2):
        with jax.profiler.StepTraceAnnotation("decode", step_num=number):
            next(tokens)
    next(tokens)
    jax.profiler.stop_trace()
    return Trace(folder, generator.program(len(prompt), n_new, greedy), step="decode")


def random_tokens(model: Model) -> Any:
    """Stands in for a tokenizer, of which only token ids are needed."""
    return SimpleNamespace(vocabulary=model.vocabulary, end_of_text=0)


def decode_sizes(model: Model) -> tuple[list[int], int]:
    """The prompt of the benchmark, and the number of new tokens."""
    prompt = list(range(1, min(PROMPT, model.context // 2) + 1))
    return prompt, min(WRITTEN, model.context - len(prompt))


def _start(what: str, experiment: Experiment) -> Path:
    folder = new_folder(Path("profiles") / f"{experiment.name}-{what}")
    start(folder)
    return folder
