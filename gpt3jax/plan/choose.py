"""Chooses the mesh of a run: the configured one, or the fastest estimate for `auto` axes."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from gpt3jax.config import Experiment, Mesh
from gpt3jax.plan.planner import plan
from gpt3jax.plan.slices import Slice
from gpt3jax.runtime.chips import Chip, GiB, chip_of
from gpt3jax.sharding.axes import AXES
from gpt3jax.sharding.legal_meshes import check_fits

if TYPE_CHECKING:
    import jax

UNKNOWN = Chip(
    "device", "", 1e11, 1.0, 1e15, 2e10, 5e9, 0, 0, 2**30, 1e9, 0.0, "nobody",
)  # fmt: skip
"""Placeholder for CPUs and unknown devices: slow, with slow links and ample memory."""


def mesh_for(experiment: Experiment) -> tuple[jax.sharding.Mesh, str]:
    """Returns the mesh over all devices, and a sentence that explains the choice.

    Raises:
      ConfigError: no mesh is legal, or the configured one does not divide the model and batch.
    """
    import jax

    from gpt3jax.sharding.mesh import make_mesh, slices_of

    devices = jax.devices()
    config, why = choose(experiment, len(devices), devices[0].device_kind, slices_of(devices))
    mesh = make_mesh(config, devices)
    check_fits(experiment, **mesh.shape)
    return mesh, why


def choose(experiment: Experiment, devices: int, kind: str, slices: int = 1) -> tuple[Mesh, str]:
    """Returns the experiment's mesh with every `auto` axis resolved, and the reason.

    Raises:
      ConfigError: no mesh is legal, or none fits.
    """
    configured = dataclasses.asdict(experiment.mesh)
    given = tuple(axis for axis in AXES if configured[axis] != "auto")
    if len(given) == len(AXES):
        return experiment.mesh, "mesh as given"
    chip = chip_of(kind) or UNKNOWN
    slice = Slice(chip, (devices // slices // chip.devices,), slices)
    candidates = plan(experiment, slice, (*given, "remat", "microbatch"))
    best, others = candidates.best, candidates.fitting[1:]
    mesh = Mesh(best.layout.data, best.layout.fsdp, best.layout.tensor)
    why = (
        f"mesh of {devices} x {kind}: data {mesh.data}, fsdp {mesh.fsdp}, tensor {mesh.tensor}, "
        f"the fastest by estimate of {len(candidates.fitting)} that fit "
        f"({best.peak_bytes / GiB:.2f} GiB a device"
    )
    if others:
        next_best, slower = others[0].layout, others[0].step_s / best.step_s - 1
        why += (
            f"; next is data {next_best.data}, fsdp {next_best.fsdp}, tensor {next_best.tensor}, "
            f"{slower:.1%} slower"
        )
    return mesh, why + ")"
