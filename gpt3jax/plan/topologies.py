"""Topology descriptions of TPU slices and GPU nodes for ahead-of-time compilation.

libtpu (extra `tpu`) and XLA's CUDA plugin (extra `cuda`) compile for these devices, which need not
be attached.

The GPU properties that XLA requires are from NVIDIA's CUDA programming guide ("Compute
Capabilities": threads, registers and shared memory of a multiprocessor) and the white papers of
Ampere, Hopper and Blackwell (multiprocessors, cache, boost clock), read 2026-11.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from gpt3jax.errors import ConfigError
from gpt3jax.plan.slices import Slice
from gpt3jax.runtime.memory import USABLE

ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_PLATFORMS": "cpu",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    # There is no CUDA driver whose version could be checked.
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
}
"""Environment variables that the compilers need on a machine without the device."""


@dataclass(frozen=True)
class Gpu:
    """Properties of a GPU that XLA's compiler needs."""

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    shared: int
    """Shared memory per multiprocessor in KiB; a thread block can use 1 KiB less."""
    cache: int
    """L2 cache in MiB."""
    clock: float
    """Boost clock in GHz."""


GPUS = {
    "a100": Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108, 164, 40, 1.41),
    "h100": Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132, 228, 50, 1.98),
    "h200": Gpu("NVIDIA H200", (9, 0), 132, 228, 50, 1.98),
    "b200": Gpu("NVIDIA B200", (10, 0), 148, 228, 126, 1.965),
}
GPU_OPTIONS = {
    # Autotuning needs a device to time kernels on.
    "xla_gpu_autotune_level": 0,
    # Without autotuning, Triton kernels would replace cuBLAS. cuBLAS calls also show their dtype in
    # the HLO text, so that float8 products can be counted.
    "xla_gpu_enable_triton_gemm": False,
}
"""XLA compiler options for a GPU that is not attached."""


def describe_devices(slice: Slice) -> list[Any]:
    """Returns the abstract JAX devices of a slice.

    Raises:
      ConfigError: no compiler exists for this chip, or it rejects the slice.
    """
    os.environ.update({k: v for k, v in ENVIRONMENT.items() if k not in os.environ})
    from jax.experimental import topologies

    chip = slice.chip
    if not chip.topology and chip.name not in GPUS:
        raise ConfigError(
            f"--compile: no compiler for {chip.name} works without the device. Use h100"
        )
    extra, compiler = ("tpu", "libtpu") if chip.topology else ("cuda", "XLA's CUDA plugin")
    arguments = _tpu_topology(slice) if chip.topology else _gpu_topology(slice)
    try:
        return list(topologies.get_topology_desc(**arguments).devices)
    except Exception as error:  # The compiler is not installed, or rejects the topology.
        raise ConfigError(
            f"--compile: {compiler} does not describe {slice.name} "
            f"({' '.join(str(error).split())[:120]}). pip install 'gpt3jax[{extra}]', or use "
            "another topology"
        ) from error


def _tpu_topology(slice: Slice) -> dict[str, Any]:
    chip, shape = slice.chip, "x".join(map(str, slice.shape))
    arguments: dict[str, Any] = {"platform": "tpu", "topology_name": f"{chip.topology}:{shape}"}
    if chip.name == "v4":
        arguments["chip_config_name"] = "megacore"
    if slice.slices > 1:
        arguments["num_slices"] = slice.slices
    return arguments


def _gpu_topology(slice: Slice) -> dict[str, Any]:
    """Describes the nodes as the hosts of one NVLink partition."""
    chip, gpu = slice.chip, GPUS[slice.chip.name]
    per_node = min(slice.chips, chip.domain)
    if slice.chips % per_node:
        raise ConfigError(
            f"--chips {slice.name}: the compiler supports only complete nodes of {chip.domain}. "
            f"Use {chip.name}:{-(-slice.chips // per_node) * per_node}"
        )
    return {
        "platform": "cuda",
        "topology_name": chip.name,
        "target_config": _target_config(slice, gpu),
        "topology": f"1x{slice.chips // per_node}x{per_node}",
    }


def _target_config(slice: Slice, gpu: Gpu) -> str:
    """XLA's GpuTargetConfigProto in text format."""
    major, minor = gpu.capability
    shared = gpu.shared << 10
    return f"""
        platform_name: "CUDA"
        device_description_str: "{gpu.name}"
        dnn_version_info {{ major: 9 minor: 12 }}
        runtime_version {{ major: 13 }}
        gpu_device_info {{
          cuda_compute_capability {{ major: {major} minor: {minor} }}
          core_count: {gpu.multiprocessors}
          clock_rate_ghz: {gpu.clock}
          memory_bandwidth: {slice.chip.hbm_rate:.0f}
          device_memory_size: {slice.chip.hbm / USABLE:.0f}
          l2_cache_size: {gpu.cache << 20}
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
