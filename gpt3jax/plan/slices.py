"""Parses `--chips`: the kind, number and topology of accelerators.

v5p:8x8x16      a TPU slice with this topology     v5e:16x16*4    four such slices
h100:64         64 GPUs, eight per node
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass

from gpt3jax.errors import ConfigError
from gpt3jax.runtime.chips import CHIPS, Chip

SUFFIX = {"v4": "v4", "v5e": "v5litepod", "v5p": "v5p", "v6e": "v6e", "v7x": "tpu7x"}
MOST_CHIPS = 1_000_000
CORES = {"v4": 2, "v5e": 1, "v5p": 2, "v6e": 1, "v7x": 2}
"""Units per chip in Google Cloud's accelerator types: TensorCores for some kinds, else one."""


@dataclass(frozen=True)
class Slice:
    """One or more slices of chips of one kind."""

    chip: Chip
    shape: tuple[int, ...]
    """Chips along each axis of the torus; for GPUs, their number."""
    slices: int = 1
    """Number of such slices, connected by the data-centre network."""

    @property
    def chips(self) -> int:
        return math.prod(self.shape) * self.slices

    @property
    def devices(self) -> int:
        """Number of JAX devices."""
        return self.chips * self.chip.devices

    @property
    def name(self) -> str:
        text = f"{self.chip.name}:{'x'.join(map(str, self.shape))}"
        return text if self.slices == 1 else f"{text}*{self.slices}"

    @property
    def accelerator_type(self) -> str:
        """Google Cloud's name for one slice."""
        count = math.prod(self.shape) * CORES[self.chip.name]
        return f"{SUFFIX[self.chip.name]}-{count}"


def parse(text: str) -> Slice:
    """Parses KIND:TOPOLOGY or KIND:COUNT, optionally followed by *SLICES.

    Raises:
      ConfigError: the kind is unknown, or the topology is invalid.
    """
    match = re.fullmatch(r"(\w+):([0-9]{1,9}(?:x[0-9]{1,9})*)(?:\*([0-9]{1,9}))?", text)
    if not match:
        raise ConfigError(
            f"--chips is {text!r}: expected KIND:TOPOLOGY, for example v5p:4x4x8 or h100:64"
        )
    kind, shape, slices = match.groups()
    if kind not in CHIPS:
        closest = difflib.get_close_matches(kind, CHIPS, 1, cutoff=0)[0]
        raise ConfigError(
            f"--chips {text}: unknown chip {kind!r}. Known chips: {', '.join(CHIPS)}. "
            f"Did you mean {closest}?"
        )
    chip, sizes = CHIPS[kind], tuple(map(int, shape.split("x")))
    if math.prod(sizes) * int(slices or 1) > MOST_CHIPS:
        raise ConfigError(f"--chips {text:.40}: over {MOST_CHIPS:,} chips. Give fewer")
    if 0 in sizes or int(slices or 1) == 0:
        raise ConfigError(f"--chips {text}: no chips. Give 1 or more along each axis")
    if not chip.torus and (len(sizes) > 1 or slices):
        raise ConfigError(f"--chips {text}: {kind} takes a count, not a topology. Use {kind}:64")
    if chip.torus and len(sizes) != chip.torus:
        raise ConfigError(
            f"--chips {text}: {kind} slices have {chip.torus} axes, this has {len(sizes)}. "
            f"Use {kind}:{'x'.join(['4'] * chip.torus)}, for example"
        )
    if math.prod(sizes) > chip.domain and chip.torus:
        raise ConfigError(f"--chips {text}: a {kind} slice has at most {chip.domain} chips")
    return Slice(chip, sizes, int(slices or 1))
