"""Meshes that split a model and its batch evenly, and refusals of those that do not.

Does not import jax.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from gpt3jax.config import Experiment
from gpt3jax.errors import ConfigError

MOST_TENSOR = 64


def meshes(experiment: Experiment, devices: int, slices: int = 1) -> Iterator[tuple[int, int, int]]:
    """Yields each (data, fsdp, tensor) that splits model and batch evenly.

    Slices are always split along `data`.
    """
    model = experiment.model
    for tensor in divisors(devices // slices):
        if tensor > most_tensor(experiment):
            continue
        if any(size % tensor for size in tensor_sizes(experiment).values()):
            continue
        for fsdp in divisors(devices // slices // tensor):
            data = devices // tensor // fsdp
            if model.d_model % fsdp == 0 and experiment.batch_sequences % (data * fsdp) == 0:
                yield data, fsdp, tensor


def most_tensor(experiment: Experiment) -> int:
    """Largest size of the `tensor` axis. Its ring (sharding/ring.py) does not support float8."""
    return 1 if experiment.model.dtype == "float8" else MOST_TENSOR


def tensor_sizes(experiment: Experiment) -> dict[str, int]:
    """Dimensions that the `tensor` axis must divide."""
    model = experiment.model
    return {
        "--model.n-heads": model.n_heads,
        "--model.context": model.context,
        "the padded vocabulary": model.padded_vocabulary,
    }


def check_some(experiment: Experiment, devices: int, slices: int = 1) -> None:
    """Checks that a legal mesh exists for this number of devices.

    Raises:
      ConfigError: there is none; the message lists the closest device counts that work.
    """
    if any(True for _ in meshes(experiment, devices, slices)):
        return
    # Any number of rows that divides the batch is legal, as the size of `data`.
    parts = [
        n
        for n in range(1, most_tensor(experiment) + 1)
        if not any(size % n for size in tensor_sizes(experiment).values())
    ]
    legal = {n * rows for n in parts for rows in divisors(experiment.batch_sequences)}
    closest = sorted(legal, key=lambda n: (abs(n - devices), n))[:3]
    raise ConfigError(
        f"{devices} devices cannot share this model and a batch of {experiment.batch_sequences} "
        f"windows evenly (heads {experiment.model.n_heads}, width {experiment.model.d_model}): "
        f"the closest counts that work are {', '.join(map(str, sorted(closest))) or 'none'}. Use "
        "one of them, or change --train.batch-tokens"
    )


def check_fits(experiment: Experiment, data: int, fsdp: int, tensor: int) -> None:
    """Checks that a mesh splits this model and batch evenly.

    Raises:
      ConfigError: it does not; the message lists the closest meshes that do.
    """
    if tensor > 1 and most_tensor(experiment) == 1:
        raise ConfigError(
            f"--mesh.tensor is {tensor}, but --model.dtype is float8: the ring along that axis "
            "does not support float8. Use --mesh.fsdp, or --model.dtype bfloat16"
        )
    rows = data * fsdp
    sizes = {
        "--train.microbatch": (experiment.microbatch, rows, "data x fsdp"),
        "--model.d-model": (experiment.model.d_model, fsdp, "fsdp"),
        **{flag: (size, tensor, "tensor") for flag, size in tensor_sizes(experiment).items()},
    }
    name = next((flag for flag, (size, parts, _) in sizes.items() if size % parts), None)
    if name is None:
        return
    size, parts, axis = sizes[name]
    legal = [
        mesh
        for mesh in meshes(experiment, data * fsdp * tensor)
        if experiment.microbatch % (mesh[0] * mesh[1]) == 0
    ]

    def distance(mesh: tuple[int, int, int]) -> float:
        pairs = zip(mesh, (data, fsdp, tensor), strict=True)
        return sum(abs(math.log(size / requested)) for size, requested in pairs)

    closest = sorted(legal, key=distance)[:3]
    choices = "; ".join(f"--mesh.data {d} --mesh.fsdp {f} --mesh.tensor {t}" for d, f, t in closest)
    raise ConfigError(
        f"{name} is {size}, which {axis} = {parts} does not divide: each part must be equal. "
        + (f"Closest that work: {choices}" if closest else "Use another number of devices")
    )


def divisors(n: int) -> list[int]:
    """All divisors, ascending."""
    small = [k for k in range(1, math.isqrt(n) + 1) if n % k == 0]
    return sorted({*small, *(n // k for k in small)})
