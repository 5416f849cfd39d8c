"""Compile the real train step for chips that are not there, by their own compiler (topologies.py).

Nothing runs. It needs a few GiB of memory and minutes, not chips.
"""

from __future__ import annotations

import dataclasses
import re
import time

from gpt3jax.config import Experiment, Mesh
from gpt3jax.errors import ConfigError
from gpt3jax.plan.estimate import Estimate
from gpt3jax.plan.hlo import Compiled, collectives, kernels, product_flops
from gpt3jax.plan.planner import largest, ways_out
from gpt3jax.plan.topologies import GPU_OPTIONS, describe_devices
from gpt3jax.runtime.chips import GiB


def compile_step(estimate: Estimate) -> Compiled:
    """Compile the step of a layout.

    Raises:
      ConfigError: there is no compiler for this chip, or the step does not fit.
    """
    devices = describe_devices(estimate.slice)
    import jax

    from gpt3jax.sharding.mesh import make_mesh

    experiment = as_laid_out(estimate)
    mesh = make_mesh(experiment.mesh, devices)
    began = time.perf_counter()
    with jax.set_mesh(mesh):
        lowered = _lower(experiment, mesh)
        try:
            compiled = lowered.compile(None if estimate.slice.chip.torus else GPU_OPTIONS)
        except jax.errors.JaxRuntimeError as error:
            raise ConfigError(_out_of_memory(str(error), estimate)) from error
    seconds = time.perf_counter() - began
    peak, chip = compiled.memory_analysis().peak_memory_in_bytes, estimate.slice.chip
    if peak > (there := chip.hbm / chip.devices):
        raise ConfigError(_too_large("", peak / GiB, there / GiB, estimate))
    text = compiled.as_text()
    microbatches = experiment.batch_sequences // experiment.microbatch
    return Compiled(
        peak,
        seconds,
        collectives(text, microbatches),
        kernels(text),
        product_flops(text, microbatches),
    )


def as_laid_out(estimate: Estimate) -> Experiment:
    """The experiment with the mesh, policy and microbatch of a layout."""
    at, experiment = estimate.layout, estimate.experiment
    return dataclasses.replace(
        experiment,
        mesh=Mesh(at.data, at.fsdp, at.tensor),
        model=dataclasses.replace(experiment.model, remat=at.remat, scan_layers=True),
        train=dataclasses.replace(experiment.train, microbatch=at.microbatch),
    )


def _lower(experiment: Experiment, mesh):
    """The train step on abstract arguments of the shapes that training has."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from gpt3jax.sharding.rules import partition_spec
    from gpt3jax.train.state import abstract_state
    from gpt3jax.train.step import compile_train_step

    def scalar(dtype):
        return jax.ShapeDtypeStruct((), dtype, sharding=NamedSharding(mesh, PartitionSpec()))

    count = experiment.batch_sequences // experiment.microbatch
    windows = jax.ShapeDtypeStruct(
        (count, experiment.microbatch, experiment.model.context + 1),
        jnp.int32,
        sharding=NamedSharding(mesh, partition_spec((None, "batch", None))),
    )
    step = compile_train_step(experiment, mesh)
    state = abstract_state(experiment, mesh)
    return step.lower(state, windows, scalar(jnp.int32), scalar(jnp.float32))


def _out_of_memory(message: str, estimate: Estimate) -> str:
    """The compiler's refusal in words, with what is largest and what would help."""
    found = re.search(r"\(?([\d.]+)G\)? exceeds available HBM \(([\d.]+)G\)", message)
    if not found:
        return f"the compiler failed: {' '.join(message.split())[:200]}. --debug shows all"
    return _too_large(" for its temporaries alone", *map(float, found.groups()), estimate)


def _too_large(what: str, needed: float, there: float, estimate: Estimate) -> str:
    return (
        f"{estimate.layout.overrides} does not fit: the compiled step needs {needed:.2f} GiB"
        f"{what}, {there:.2f} GiB are there (largest by estimate: {largest(estimate)}). "
        f"{ways_out(estimate)}"
    )
