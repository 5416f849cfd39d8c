"""Legal layouts (mesh, remat policy, microbatch) of a training step for a model and batch size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

from gpt3jax.config import Experiment, Remat
from gpt3jax.sharding.legal_meshes import divisors, meshes


@dataclass(frozen=True)
class Layout:
    """A mesh, a remat policy and a microbatch size."""

    data: int
    fsdp: int
    tensor: int
    remat: str
    microbatch: int
    """Windows per forward pass over the full mesh."""

    @property
    def rows(self) -> int:
        """Number of device groups that read different windows."""
        return self.data * self.fsdp

    @property
    def windows(self) -> int:
        """Windows of a microbatch per row of devices."""
        return self.microbatch // self.rows

    @property
    def overrides(self) -> str:
        """Command-line flags that select this layout."""
        return (
            f"--mesh.data {self.data} --mesh.fsdp {self.fsdp} --mesh.tensor {self.tensor} "
            f"--model.remat {self.remat} --train.microbatch {self.microbatch}"
        )


def layouts(experiment: Experiment, devices: int, slices: int = 1) -> Iterator[Layout]:
    """Yields each legal mesh with each remat policy and each microbatch that divides the batch."""
    for data, fsdp, tensor in meshes(experiment, devices, slices):
        rows = data * fsdp
        for count in divisors(experiment.batch_sequences // rows):
            for remat in get_args(Remat):
                yield Layout(data, fsdp, tensor, remat, rows * count)
