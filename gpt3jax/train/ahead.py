"""Compile the real train step for a TPU slice that is not there, with the real TPU compiler.

libtpu (extra `tpu`) describes the slice; nothing runs. It needs a few GiB of
memory and minutes, not chips.
"""

from __future__ import annotations

import dataclasses
import os
import re
import time

from gpt3jax.config import ConfigError, Experiment, Mesh
from gpt3jax.plan.estimate import Estimate
from gpt3jax.plan.planner import largest, ways_out
from gpt3jax.plan.program import Compiled, collectives, kernels, product_flops

ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_PLATFORMS": "cpu",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
"""What libtpu asks for where there is no TPU."""


def compile_step(estimate: Estimate) -> Compiled:
    """Compile the step of a layout.

    Raises:
      ConfigError: there is no compiler for this chip, or the step does not fit.
    """
    chip = estimate.slice.chip
    if not chip.topology:
        raise ConfigError(f"--compile: there is no compiler for {chip.name} without one. Use a TPU")
    os.environ.update({k: v for k, v in ENVIRONMENT.items() if k not in os.environ})
    import jax
    from jax.experimental import topologies

    from gpt3jax.sharding.mesh import make_mesh

    experiment = as_laid_out(estimate)
    shape = "x".join(map(str, estimate.slice.shape))
    options: dict = {"chip_config_name": "megacore"} if chip.name == "v4" else {}
    if estimate.slice.slices > 1:
        options["num_slices"] = estimate.slice.slices
    try:
        described = topologies.get_topology_desc(
            f"{chip.topology}:{shape}", platform="tpu", **options
        )
    except Exception as error:  # libtpu is missing, or refuses the shape.
        raise ConfigError(
            f"--compile: libtpu does not describe {chip.topology}:{shape} "
            f"({' '.join(str(error).split())[:120]}). pip install 'gpt3jax[tpu]', or another shape"
        ) from error
    mesh = make_mesh(experiment.mesh, described.devices)
    began = time.perf_counter()
    with jax.set_mesh(mesh):
        lowered = _lower(experiment, mesh)
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            raise ConfigError(_out_of_memory(str(error), estimate)) from error
    seconds = time.perf_counter() - began
    text = compiled.as_text()
    microbatches = experiment.batch_sequences // experiment.microbatch
    return Compiled(
        compiled.memory_analysis().peak_memory_in_bytes,
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

    from gpt3jax.sharding.rules import partition
    from gpt3jax.train.state import abstract_state
    from gpt3jax.train.step import compile_train_step

    def scalar(dtype):
        return jax.ShapeDtypeStruct((), dtype, sharding=NamedSharding(mesh, PartitionSpec()))

    count = experiment.batch_sequences // experiment.microbatch
    windows = jax.ShapeDtypeStruct(
        (count, experiment.microbatch, experiment.model.context + 1),
        jnp.int32,
        sharding=NamedSharding(mesh, partition((None, "batch", None))),
    )
    step = compile_train_step(experiment, mesh)
    state = abstract_state(experiment, mesh)
    return step.lower(state, windows, scalar(jnp.int32), scalar(jnp.float32))


def _out_of_memory(message: str, estimate: Estimate) -> str:
    """The compiler's refusal in words, with what is largest and what would help."""
    found = re.search(r"\(?([\d.]+)G\)? exceeds available HBM \(([\d.]+)G\)", message)
    if not found:
        return f"the compiler failed: {' '.join(message.split())[:200]}. --debug shows all"
    needed, there = map(float, found.groups())
    return (
        f"{estimate.layout.overrides} does not fit: the compiled step needs {needed} GiB for its "
        f"temporaries alone, {there} GiB are there (largest by estimate: {largest(estimate)}). "
        f"{ways_out(estimate)}"
    )
