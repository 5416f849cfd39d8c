"""Flags under which XLA compiles fast on CPUs: tests compile far more than they compute.

Compiling a forward and backward pass of four layers three times took 9.3 s of CPU time with
the first two flags alone, 3.9 s without fusion emitters, and 3.1 s with one module for all
code (`tests/conftest.py`'s model, two shared cores, jax 0.10.2, 2026-11-27).
"""

from importlib.metadata import version

from packaging.version import Version

_FLAGS = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
]
if Version(version("jaxlib")) < Version("0.11"):
    # Later versions have no such flag, and XLA ends the process at a flag that it does not know.
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")

FAST = " ".join(_FLAGS)
