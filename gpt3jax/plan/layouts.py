"""The ways to lay a training step over devices that are legal for a model and a batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

from gpt3jax.config import Experiment, Remat
from gpt3jax.errors import ConfigError

MOST_TENSOR = 64


@dataclass(frozen=True)
class Layout:
    """A mesh, what is recomputed, and how much of the batch goes at once."""

    data: int
    fsdp: int
    tensor: int
    remat: str
    microbatch: int
    """Windows per forward pass over the whole mesh."""

    @property
    def rows(self) -> int:
        """Devices that read different windows."""
        return self.data * self.fsdp

    @property
    def windows(self) -> int:
        """Windows at once per row of devices."""
        return self.microbatch // self.rows

    @property
    def overrides(self) -> str:
        """The flags that make an experiment run so."""
        return (
            f"--mesh.data {self.data} --mesh.fsdp {self.fsdp} --mesh.tensor {self.tensor} "
            f"--model.remat {self.remat} --train.microbatch {self.microbatch}"
        )


def meshes(experiment: Experiment, devices: int, slices: int = 1) -> Iterator[tuple[int, int, int]]:
    """(data, fsdp, tensor) that split model and batch evenly; slices lie along `data`."""
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
    """Parts of `tensor`; its ring (sharding/ring.py) has no products in float8."""
    return 1 if experiment.model.dtype == "float8" else MOST_TENSOR


def tensor_sizes(experiment: Experiment) -> dict[str, int]:
    """What the tensor axis must divide."""
    model = experiment.model
    return {
        "--model.n-heads": model.n_heads,
        "--model.context": model.context,
        "the padded vocabulary": model.padded_vocabulary,
    }


def layouts(experiment: Experiment, devices: int, slices: int = 1) -> Iterator[Layout]:
    """Every legal mesh, with every policy and every microbatch that divides the batch."""
    for data, fsdp, tensor in meshes(experiment, devices, slices):
        rows = data * fsdp
        for count in divisors(experiment.batch_sequences // rows):
            for remat in get_args(Remat):
                yield Layout(data, fsdp, tensor, remat, rows * count)


def check_some(experiment: Experiment, devices: int, slices: int = 1) -> None:
    """Refuse a number of devices that no mesh uses, naming batches and numbers that work.

    Raises:
      ConfigError: there is no legal mesh.
    """
    if any(True for _ in meshes(experiment, devices, slices)):
        return
    # Any number of rows that divides the batch will do, as so many parts of `data`.
    parts = [
        n
        for n in range(1, most_tensor(experiment) + 1)
        if not any(size % n for size in tensor_sizes(experiment).values())
    ]
    legal = {n * rows for n in parts for rows in divisors(experiment.batch_sequences)}
    near = sorted(legal, key=lambda n: (abs(n - devices), n))[:3]
    raise ConfigError(
        f"{devices} devices cannot share this model and a batch of {experiment.batch_sequences} "
        f"windows evenly (heads {experiment.model.n_heads}, width {experiment.model.d_model}): "
        f"numbers near it that work are {', '.join(map(str, sorted(near))) or 'none'}. Use one of "
        "them, or change --train.batch-tokens"
    )


def check_fits(experiment: Experiment, data: int, fsdp: int, tensor: int) -> None:
    """Refuse a mesh that cannot split this model or batch evenly, naming those that can.

    Raises:
      ConfigError: it cannot.
    """
    if tensor > 1 and most_tensor(experiment) == 1:
        raise ConfigError(
            f"--mesh.tensor is {tensor}, but --model.dtype is float8: tokens that travel round "
            "that axis are not multiplied in float8. Use --mesh.fsdp, or --model.dtype bfloat16"
        )
    rows = data * fsdp
    sizes = {
        "--train.microbatch": (experiment.microbatch, rows, "data x fsdp"),
        "--model.d-model": (experiment.model.d_model, fsdp, "fsdp"),
        **{name: (size, tensor, "tensor") for name, size in tensor_sizes(experiment).items()},
    }
    wrong = next((name for name, (size, parts, _) in sizes.items() if size % parts), None)
    if wrong is None:
        return
    size, parts, axis = sizes[wrong]
    legal = [
        mesh
        for mesh in meshes(experiment, data * fsdp * tensor)
        if experiment.microbatch % (mesh[0] * mesh[1]) == 0
    ]

    def distance(mesh: tuple[int, int, int]) -> float:
        pairs = zip(mesh, (data, fsdp, tensor), strict=True)
        return sum(abs(math.log(there / asked)) for there, asked in pairs)

    near = sorted(legal, key=distance)[:3]
    choices = "; ".join(f"--mesh.data {d} --mesh.fsdp {f} --mesh.tensor {t}" for d, f, t in near)
    raise ConfigError(
        f"{wrong} is {size}, which {axis} = {parts} does not divide: each part must be equal. "
        + (f"Nearest that work: {choices}" if near else "No mesh of these devices works: change it")
    )


def divisors(n: int) -> list[int]:
    """All divisors, ascending."""
    small = [k for k in range(1, math.isqrt(n) + 1) if n % k == 0]
    return sorted({*small, *(n // k for k in small)})
