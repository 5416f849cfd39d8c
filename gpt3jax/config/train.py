"""The length of training, the mesh, and what is measured during training."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Literal

from gpt3jax.errors import check, check_numbers

MOST_WINDOWS = 2**20
"""Maximum number of windows in a batch."""


@dataclass(frozen=True)
class Train:
    """The length of training, its batches and its checkpoints."""

    batch_tokens: int
    """Tokens in a full batch, a multiple of the context."""
    tokens: int = 300_000_000_000
    """Total number of training tokens."""
    steps: int | None = None
    """Stop after this many steps, if that comes before `tokens`."""
    ramp_from_tokens: int = 32_768
    """Batch size at the start of the ramp, in tokens."""
    ramp_tokens: int = 0
    """Tokens over which the batch size grows linearly to full; 0: full from the start."""
    microbatch: int = 0
    """Windows per forward pass over the mesh (gradient accumulation); 0: the full batch."""
    log_every: int = 10
    save_every: int = 1000
    keep: int = 3
    """Number of newest checkpoints to retain."""
    only: tuple[str, ...] = ()
    """Paths of parameters to train, as layers/qkv, */bias, layers[8:12]; empty: all, or LoRA's."""
    noise_scale: bool = False
    """Estimate the gradient noise scale where gradients are accumulated; costs memory traffic."""
    patience: int = 0
    """Early stopping: evaluations without a better val_loss, then the best checkpoint; 0: off."""

    def __post_init__(self) -> None:
        check_numbers(
            self, "train", batch_tokens=1, tokens=1, ramp_from_tokens=1, ramp_tokens=0,
            microbatch=0, log_every=1, save_every=1, keep=1, patience=0,
        )  # fmt: skip
        check(
            self.steps is None or self.steps >= 1,
            f"--train.steps is {self.steps}: it must be at least 1. Raise it, or give None",
        )


@dataclass(frozen=True)
class Mesh:
    """Devices along each axis: a number, -1 for all remaining devices, or auto (`plan` chooses)."""

    data: int | Literal["auto"] = -1
    """Data parallelism: each replica of the parameters reads its own windows."""
    fsdp: int | Literal["auto"] = 1
    """Parameters are sharded, with an all-gather per layer; each shard reads its own windows."""
    tensor: int | Literal["auto"] = 1
    """Heads, MLPs and windows are sharded."""

    def __post_init__(self) -> None:
        values = list((sizes := dataclasses.asdict(self)).values())
        check(
            all(size in ("auto", -1) or size > 0 for size in values),
            f"mesh {sizes}: an axis must be 1 or more devices, -1 for the rest, or auto. Change it",
        )
        check(
            values.count(-1) <= 1 and not (-1 in values and "auto" in values),
            f"mesh {sizes}: only one axis can be -1, and none if another is auto. "
            "Give the others a number",
        )


@dataclass(frozen=True)
class Evaluate:
    """What is measured and sampled during training."""

    every: int = 1000
    """Steps between evaluations."""
    windows: int = 256
    """Held-out windows per evaluation, always the same ones; 0: all."""
    prompt: str = ""
    """Prompt of the samples; empty: start a new document."""
    sample_tokens: int = 128
    tasks: tuple[str, ...] = ()
    """Tasks scored at each evaluation, as with `gpt3jax evaluate --beams 0`."""
    shots: tuple[int, ...] = (0, 8)
    """Numbers of demonstrations."""
    examples: int = 100
    """Examples of each task."""

    def __post_init__(self) -> None:
        check_numbers(self, "evaluate", every=1, windows=0, sample_tokens=0, examples=1)
        check(
            all(0 <= shots <= MOST_WINDOWS for shots in self.shots),
            f"--evaluate.shots is {list(self.shots)}: shots are at least 0. Change them",
        )
        check(
            not re.search("[\ud800-\udfff]", self.prompt),
            "--evaluate.prompt is not text: its bytes are not UTF-8. Write it in UTF-8",
        )
