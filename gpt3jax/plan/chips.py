"""Peak rates of accelerators, from their makers' data sheets."""

PEAK_BF16_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}
"""Dense bfloat16 FLOP/s by the start of jax.Device.device_kind."""


def peak_flops(device_kind: str) -> float | None:
    """Peak of one device, or None where it is not known (a CPU)."""
    matches = [name for name in PEAK_BF16_FLOPS if device_kind.startswith(name)]
    return PEAK_BF16_FLOPS[max(matches, key=len)] if matches else None
