"""Ahead-of-time compilation of the training step for a topology that is not attached.

The chip's own compiler is used (see topologies.py) and nothing is executed. It takes a few GiB of
host memory and up to a few minutes.
"""

from __future__ import annotations

import dataclasses
import re
import time
from typing import TYPE_CHECKING, Any

from gpt3jax.config import Experiment, Mesh
from gpt3jax.errors import ConfigError
from gpt3jax.plan.estimate import Estimate
from gpt3jax.plan.hlo import Compiled, collectives, kernels, product_flops, scatters
from gpt3jax.plan.planner import describe_remedies, largest
from gpt3jax.plan.topologies import GPU_OPTIONS, describe_devices
from gpt3jax.runtime.chips import GiB

if TYPE_CHECKING:
    import jax


def compile_step(estimate: Estimate) -> Compiled:
    """Compiles the training step of a layout.

    Raises:
      ConfigError: no compiler exists for this chip, or the step does not fit in its memory.
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
    memory, chip = compiled.memory_analysis(), estimate.slice.chip
    assert memory is not None  # All compilers used here implement it.
    peak = memory.peak_memory_in_bytes
    if peak > (available := chip.hbm / chip.devices):
        raise ConfigError(_too_large("", peak / GiB, available / GiB, estimate))
    text = compiled.as_text() or ""
    microbatches = experiment.batch_sequences // experiment.microbatch
    return Compiled(
        peak,
        seconds,
        collectives(text, microbatches),
        kernels(text),
        product_flops(text, microbatches),
        scatters(text),
        text,
        microbatches,
    )


def as_laid_out(estimate: Estimate) -> Experiment:
    """Returns the experiment with the mesh, remat policy and microbatch of the layout."""
    layout, experiment = estimate.layout, estimate.experiment
    return dataclasses.replace(
        experiment,
        mesh=Mesh(layout.data, layout.fsdp, layout.tensor),
        model=dataclasses.replace(experiment.model, remat=layout.remat),
        train=dataclasses.replace(experiment.train, microbatch=layout.microbatch),
    )


def _lower(experiment: Experiment, mesh: jax.sharding.Mesh) -> jax.stages.Lowered:
    """Lowers the training step for abstract arguments with the shapes used in training."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from gpt3jax.sharding.rules import partition_spec
    from gpt3jax.train.state import abstract_state
    from gpt3jax.train.step import compile_train_step

    def scalar(dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((), dtype, sharding=NamedSharding(mesh, PartitionSpec()))

    count = experiment.batch_sequences // experiment.microbatch
    windows = jax.ShapeDtypeStruct(
        (count, experiment.microbatch, experiment.model.context + 1),
        jnp.int32,
        sharding=NamedSharding(mesh, partition_spec((None, "batch", None))),
    )
    step: Any = compile_train_step(experiment, mesh)
    state = abstract_state(experiment, mesh)
    return step.lower(state, windows, scalar(jnp.int32), scalar(jnp.float32))


def _out_of_memory(message: str, estimate: Estimate) -> str:
    """Rephrases the compiler's out-of-memory error, adding the largest terms and remedies."""
    match = re.search(r"\(?([\d.]+)G\)? exceeds available HBM \(([\d.]+)G\)", message)
    if not match:
        return f"the compiler failed: {' '.join(message.split())[:200]}. --debug prints the rest"
    return _too_large(" for its temporaries alone", float(match[1]), float(match[2]), estimate)


def _too_large(what: str, needed: float, available: float, estimate: Estimate) -> str:
    return (
        f"{estimate.layout.overrides} does not fit: the compiled step needs {needed:.2f} GiB"
        f"{what}, but the device has {available:.2f} GiB (largest estimated terms: "
        f"{largest(estimate)}). "
        f"{describe_remedies(estimate)}"
    )
