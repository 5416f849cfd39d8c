"""XLA's flags that a slice should be started with: what each makes the compiler do, and why here.

Weights are gathered and gradients scattered by collectives inside the loop over layers
(sharding/collectives.py). Left alone, some compilers wait for each of them. Names are those of
libtpu 0.0.42.1 and jaxlib 0.10.2; what they gain was not measured, for want of machines.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpt3jax.plan.layouts import Layout
from gpt3jax.plan.slices import Slice


@dataclass(frozen=True)
class Flag:
    """A flag, and its reason."""

    flag: str
    why: str


# For chips whose compiler does not overlap by itself: those with a 3D torus.
# fmt: off
FETCHING = (
    Flag("--xla_enable_async_all_gather=true",
         "weights are fetched while products run, not between them"),
    Flag("--xla_tpu_enable_async_collective_fusion=true",
         "a gather goes on inside the products beside it"),
    Flag("--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",
         "the same, for gathers: those are our weights"),
    Flag("--xla_tpu_enable_async_collective_fusion_multiple_steps=true",
         "over several products: one is too short for a layer's weights"),
    Flag("--xla_tpu_overlap_compute_collective_tc=true",
         "the core computes while it sends"),
)
REPLICAS = (
    Flag("--xla_tpu_enable_data_parallel_all_reduce_opt=true",
         "gradients between slices are summed while the backward pass goes on"),
    Flag("--xla_tpu_data_parallel_opt_different_sized_ops=true",
         "also of matrices of unlike sizes"),
)
# Not among them: --xla_gpu_enable_latency_hiding_scheduler, without which jaxlib 0.10.2 compiles
# the same program (1.3B, eight H100s): collectives start early and are waited for late anyway.
GPU = (
    Flag("--xla_gpu_enable_pipelined_all_gather=true",
         "the next layer's weights are fetched during this one"),
    Flag("--xla_gpu_enable_pipelined_reduce_scatter=true",
         "a layer's gradients are scattered during the next one's backward pass"),
)
# fmt: on


def variable(slice: Slice) -> str:
    """The environment variable that takes them; on every host, before the command."""
    return "LIBTPU_INIT_ARGS" if slice.chip.torus else "XLA_FLAGS"


def recommended(slice: Slice, layout: Layout) -> tuple[Flag, ...]:
    """The flags for a layout; none where nothing is to be overlapped, or it is anyway."""
    if not slice.chip.torus:
        return GPU if layout.fsdp * layout.data * layout.tensor > 1 else ()
    fetching = FETCHING if slice.chip.torus == 3 and layout.fsdp > 1 else ()
    return fetching + (REPLICAS if slice.slices > 1 else ())
