"""Accelerator specifications for `plan`: FLOP/s, memory, interconnect, prices.

FLOP/s, HBM and interconnect are from data sheets (Google Cloud's TPU pages and the JAX Scaling
Book, read 2026-11; NVIDIA's). `hbm` is the memory that XLA can allocate: for TPUs the limit of
libtpu 0.0.42.1, for GPUs 92 % of the card. Prices are on-demand list prices per chip and hour in
US regions at the given dates. They differ up to threefold between sellers; `--price` overrides
them.

`matmul` is the fraction of peak FLOP/s that large bfloat16 matrix products reach. It is measured
and published for v5e (0.92 at 8192 cubed, JAX's Pallas guide), A100, H100 and B200 (0.87, 0.80,
0.78 at the best shapes, Bekman's ML Engineering), and inferred from training runs: published ones,
and for the H200 our own on one card (docs/benchmarks.md), whose software is two years younger than
that of the published H100 runs.
"""

from __future__ import annotations

from dataclasses import dataclass

GiB = 2**30


@dataclass(frozen=True)
class Chip:
    """One type of accelerator. Figures are per chip, in bytes, FLOP and seconds."""

    name: str
    kind: str
    """Prefix of jax.Device.device_kind."""
    peak: float
    """Dense bfloat16 FLOP/s (V100: float16)."""
    matmul: float
    """Fraction of peak FLOP/s that large matrix products reach."""
    hbm: float
    """Bytes of HBM that XLA can allocate."""
    hbm_rate: float
    """HBM bandwidth, bytes/s."""
    link: float
    """Bytes/s per direction of a ring over one axis of the slice: one ICI link, or the NVLinks
    of a GPU."""
    torus: int
    """Dimensions of the ICI torus; 0 for GPUs, whose fast links connect `domain` chips."""
    wraps: int
    """ICI axes whose length is a multiple of this are rings; others are lines."""
    domain: int
    """Chips connected by fast links: a TPU slice, or a GPU node."""
    outer: float
    """Bytes/s per chip between slices or nodes."""
    price: float
    """Dollars per chip and hour."""
    quoted: str
    """Source and date of the price."""
    devices: int = 1
    """JAX devices per chip."""
    topology: str = ""
    """Name in libtpu topologies, where AOT compilation without the chip is supported."""


# fmt: off
CHIPS = {chip.name: chip for chip in (
    Chip("v4", "TPU v4", 275e12, 0.82, 30.75 * GiB, 1.2e12, 45e9, 3, 4, 4096, 6.25e9,
         3.22, "Google Cloud us-central2, 2025-01, second-hand", topology="v4"),
    Chip("v5e", "TPU v5 lite", 197e12, 0.84, 15.75 * GiB, 0.819e12, 45e9, 2, 16, 256, 3.125e9,
         1.20, "Google Cloud us, 2026, second-hand", topology="v5e"),
    Chip("v5p", "TPU v5", 459e12, 0.80, 95.74 * GiB, 2.765e12, 90e9, 3, 4, 8960, 6.25e9,
         4.20, "Google Cloud us-east, 2026, second-hand", topology="v5p"),
    Chip("v6e", "TPU v6 lite", 918e12, 0.68, 31.25 * GiB, 1.638e12, 90e9, 2, 16, 256, 12.5e9,
         2.70, "Google Cloud us-east5, 2026-08, second-hand", topology="v6e"),
    Chip("v7x", "TPU7x", 2307e12, 0.65, 189.5 * GiB, 7.38e12, 90e9, 3, 4, 9216, 12.5e9,
         12.00, "Google Cloud us-central1, 2026-08, second-hand", devices=2, topology="tpu7x"),
    Chip("v100", "Tesla V100", 125e12, 0.65, 27.6 * GiB, 0.9e12, 150e9, 0, 0, 8, 1.5625e9,
         3.06, "AWS p3.16xlarge, from memory"),
    Chip("a100", "NVIDIA A100", 312e12, 0.76, 73.6 * GiB, 2.0e12, 300e9, 0, 0, 8, 25e9,
         3.43, "AWS p4de, 2026-11"),
    Chip("h100", "NVIDIA H100", 989e12, 0.60, 73.3 * GiB, 3.35e12, 450e9, 0, 0, 8, 50e9,
         6.88, "AWS p5, 2026-11"),
    Chip("h200", "NVIDIA H200", 989e12, 0.71, 129.2 * GiB, 4.8e12, 450e9, 0, 0, 8, 50e9,
         7.91, "AWS p5en, 2026-08"),
    Chip("b200", "NVIDIA B200", 2250e12, 0.58, 164.7 * GiB, 8.0e12, 900e9, 0, 0, 8, 50e9,
         14.24, "AWS p6-b200, 2026, second-hand"),
)}
# fmt: on


def chip_of(device_kind: str) -> Chip | None:
    """The chip of a JAX device, or None if unknown (e.g. a CPU)."""
    matches = [chip for chip in CHIPS.values() if device_kind.startswith(chip.kind)]
    return max(matches, key=lambda chip: len(chip.kind), default=None)


def peak_flops(device_kind: str) -> float | None:
    """Peak bfloat16 FLOP/s of one JAX device, or None if unknown (e.g. a CPU)."""
    chip = chip_of(device_kind)
    return chip and chip.peak / chip.devices
