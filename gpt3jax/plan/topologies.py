"""Devices that are not here, as their compilers describe them: TPU slices and nodes of GPUs.

libtpu (extra `tpu`) and XLA's CUDA plugin (extra `cuda`) compile for these; nothing runs.

What XLA asks of a GPU is in NVIDIA's CUDA programming guide ("Compute Capabilities": threads,
registers and shared memory of a multiprocessor) and in the white papers of Ampere, Hopper and
Blackwell (multiprocessors, cache, boost clock), read 2026-11.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from gpt3jax.errors import ConfigError
from gpt3jax.plan.estimate import USABLE
from gpt3jax.plan.slices import Slice

ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_PLATFORMS": "cpu",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    # There is no driver whose version could be looked at.
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
}
"""What the compilers ask for where there is no device."""


@dataclass(frozen=True)
class Gpu:
    """What XLA's compiler must know of a card."""

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    shared: int
    """KiB of a multiprocessor; a block of threads gets one less."""
    cache: int
    """MiB, of the second level."""
    clock: float
    """GHz."""


GPUS = {
    "a100": Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108, 164, 40, 1.41),
    "h100": Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132, 228, 50, 1.98),
    "h200": Gpu("NVIDIA H200", (9, 0), 132, 228, 50, 1.98),
    "b200": Gpu("NVIDIA B200", (10, 0), 148, 228, 126, 1.965),
}
GPU_OPTIONS = {
    # There is nothing to time kernels on.
    "xla_gpu_autotune_level": 0,
    # Else untimed Triton kernels take the place of cuBLAS; and it is seen what is in float8.
    "xla_gpu_enable_triton_gemm": False,
}
"""How XLA compiles for a GPU that is not there."""


def describe_devices(slice: Slice) -> list:
    """The jax devices of a slice.

    Raises:
      ConfigError: there is no compiler for this chip, or it refuses the slice.
    """
    os.environ.update({k: v for k, v in ENVIRONMENT.items() if k not in os.environ})
    from jax.experimental import topologies

    chip = slice.chip
    if not chip.topology and chip.name not in GPUS:
        raise ConfigError(f"--compile: there is no compiler for {chip.name} without one. Use h100")
    extra, compiler = ("tpu", "libtpu") if chip.topology else ("cuda", "XLA's CUDA plugin")
    words = _of_tpus(slice) if chip.topology else _of_gpus(slice)
    try:
        return topologies.get_topology_desc(**words).devices
    except Exception as error:  # The compiler is missing, or refuses the shape.
        raise ConfigError(
            f"--compile: {compiler} does not describe {slice.name} "
            f"({' '.join(str(error).split())[:120]}). pip install 'gpt3jax[{extra}]', or another "
            "shape"
        ) from error


def _of_tpus(slice: Slice) -> dict:
    chip, shape = slice.chip, "x".join(map(str, slice.shape))
    words: dict = {"platform": "tpu", "topology_name": f"{chip.topology}:{shape}"}
    if chip.name == "v4":
        words["chip_config_name"] = "megacore"
    if slice.slices > 1:
        words["num_slices"] = slice.slices
    return words


def _of_gpus(slice: Slice) -> dict:
    """Nodes of cards as one domain of so many hosts."""
    chip, card = slice.chip, GPUS[slice.chip.name]
    each = min(slice.chips, chip.domain)
    if slice.chips % each:
        raise ConfigError(
            f"--chips {slice.name}: the compiler knows whole nodes of {chip.domain}. "
            f"Use {chip.name}:{-(-slice.chips // each) * each}"
        )
    return {
        "platform": "cuda", "topology_name": chip.name, "target_config": _target(slice, card),
        "topology": f"1x{slice.chips // each}x{each}",
    }  # fmt: skip


def _target(slice: Slice, card: Gpu) -> str:
    """XLA's GpuTargetConfigProto, as text."""
    major, minor = card.capability
    shared = card.shared << 10
    return f"""
        platform_name: "CUDA"
        device_description_str: "{card.name}"
        dnn_version_info {{ major: 9 minor: 12 }}
        runtime_version {{ major: 13 }}
        gpu_device_info {{
          cuda_compute_capability {{ major: {major} minor: {minor} }}
          core_count: {card.multiprocessors}
          clock_rate_ghz: {card.clock}
          memory_bandwidth: {slice.chip.hbm_rate:.0f}
          device_memory_size: {slice.chip.hbm / USABLE:.0f}
          l2_cache_size: {card.cache << 20}
          shared_memory_per_core: {shared}
          shared_memory_per_block_optin: {shared - 1024}
          shared_memory_per_block: 49152
          threads_per_warp: 32
          threads_per_block_limit: 1024
          threads_per_core_limit: 2048
          fpus_per_core: 128
          registers_per_core_limit: 65536
          registers_per_block_limit: 65536
          block_dim_limit_x: 2147483647
          block_dim_limit_y: 65535
          block_dim_limit_z: 65535
        }}
    """
