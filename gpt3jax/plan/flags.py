"""Recommended XLA flags for a slice, with the reason for each.

Weights are all-gathered and gradients reduce-scattered inside the loop over layers
(sharding/collectives.py). By default some compilers do not overlap these collectives with compute.
The names are those of libtpu 0.0.42.1 and jaxlib 0.10.2. Their benefit has not been measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpt3jax.plan.layouts import Layout
from gpt3jax.plan.slices import Slice


@dataclass(frozen=True)
class Flag:
    """An XLA flag and the reason to set it."""

    flag: str
    why: str


# For chips with a 3D torus, whose compiler does not overlap all-gathers by default.
# fmt: off
FETCHING = (
    Flag("--xla_enable_async_all_gather=true",
         "all-gathers of weights run concurrently with matrix products"),
    Flag("--xla_tpu_enable_async_collective_fusion=true",
         "fuses an all-gather with the adjacent matrix products"),
    Flag("--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",
         "enables this fusion for all-gathers, which carry the weights"),
    Flag("--xla_tpu_enable_async_collective_fusion_multiple_steps=true",
         "spreads it over several products, as one is too short for a layer's weights"),
    Flag("--xla_tpu_overlap_compute_collective_tc=true",
         "the TensorCore computes while it sends"),
)
REPLICAS = (
    Flag("--xla_tpu_enable_data_parallel_all_reduce_opt=true",
         "gradients are all-reduced between slices during the backward pass"),
    Flag("--xla_tpu_data_parallel_opt_different_sized_ops=true",
         "does so for matrices of different sizes, too"),
)
# --xla_gpu_enable_latency_hiding_scheduler is omitted because it does not change the program that
# jaxlib 0.10.2 compiles (1.3B, eight H100s): collectives are already asynchronous.
GPU = (
    Flag("--xla_gpu_enable_pipelined_all_gather=true",
         "the next layer's weights are all-gathered during this layer"),
    Flag("--xla_gpu_enable_pipelined_reduce_scatter=true",
         "a layer's gradients are reduce-scattered during the next layer's backward pass"),
)
# fmt: on


def variable(slice: Slice) -> str:
    """Name of the environment variable for the flags; set it on every host."""
    return "LIBTPU_INIT_ARGS" if slice.chip.torus else "XLA_FLAGS"


def recommended(slice: Slice, layout: Layout) -> tuple[Flag, ...]:
    """Flags for a layout; empty if there is no communication or it overlaps by default."""
    if not slice.chip.torus:
        return GPU if layout.fsdp * layout.data * layout.tensor > 1 else ()
    fetching = FETCHING if slice.chip.torus == 3 and layout.fsdp > 1 else ()
    return fetching + (REPLICAS if slice.slices > 1 else ())
