"""One record for each optimizer; train/optimizers.py has a function for each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from gpt3jax.errors import check, check_choice, check_numbers

Moments = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Appendix B).

    The paper does not say which parameters decay. As in most GPT-2 reimplementations, matrices
    and embeddings do; biases and gains do not.
    """

    b1: float = 0.9
    b2: float = 0.95
    epsilon: float = 1e-8
    clip_norm: float = 1.0
    weight_decay: float = 0.1
    moments: Moments = "float32"
    """Storage between steps; bfloat16 rounds to nearest and halves the bytes."""

    def __post_init__(self) -> None:
        check_choice("--optimizer.moments", self.moments, get_args(Moments))
        check_numbers(self, "optimizer", b1=0, b2=0, epsilon=0, clip_norm=1e-12, weight_decay=0)
        for name, value in (("b1", self.b1), ("b2", self.b2)):
            check(value < 1, f"--optimizer.{name} is {value}: it must be below 1. Lower it")

    def state_bytes(self, path: str) -> int:
        """Bytes of optimizer state per element of a parameter: two moments."""
        return 8 if self.moments == "float32" else 4


def is_matrix(path: str) -> bool:
    """Whether a parameter is a layer's matrix, which Muon orthogonalises."""
    return path.endswith("/kernel")


@dataclass(frozen=True)
class Muon:
    """Orthogonalised momentum for the layers' matrices (Jordan et al. 2024), AdamW for the rest.

    The update of a matrix of m rows and n columns has a root mean square of 0.2 whatever its shape
    (Liu et al. 2025, arXiv 2502.16982), about that of AdamW, so that one rate suits both.
    """

    name: Literal["muon"] = "muon"
    momentum: float = 0.95
    matrix_rate: float = 1.0
    """The learning rate of the matrices, relative to that of the schedule."""
    adamw: AdamW = field(default_factory=AdamW)
    """For embeddings, biases and gains; its clipping and weight decay are for all parameters."""

    def __post_init__(self) -> None:
        check_numbers(self, "optimizer", momentum=0, matrix_rate=0)
        check(
            self.momentum < 1,
            f"--optimizer.momentum is {self.momentum}: it must be below 1. Lower it",
        )

    def state_bytes(self, path: str) -> int:
        """Bytes of optimizer state per element of a parameter: a momentum, or AdamW's."""
        return 4 if is_matrix(path) else self.adamw.state_bytes(path)


Optimizer = AdamW | Muon
"""Each but AdamW has a field `name`, by which its records are told apart (serde.py)."""
