"""The complete configuration of one training run."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from gpt3jax import serde
from gpt3jax.config.data import Data
from gpt3jax.config.model import Model
from gpt3jax.config.optimizer import AdamW, Muon, Optimizer
from gpt3jax.config.schedule import Schedule
from gpt3jax.config.train import MOST_WINDOWS, Evaluate, Mesh, Train
from gpt3jax.errors import ConfigError, check, check_choice

RUNTIME = {
    "": ("name", "mesh", "evaluate"),
    "model": ("dtype", "scan_layers", "remat"),
    "train": (
        "tokens", "steps", "microbatch", "log_every", "save_every", "keep", "noise_scale",
        "patience",
    ),
}  # fmt: skip
"""Fields by record that only affect how a run is computed, logged or stopped."""
SINCE_0_2 = {
    "": {"inherit": "parameters"},
    "schedule": {"decay": "cosine", "decay_fraction": 1},
    "optimizer": {"moments": "float32"},
    "optimizer.adamw": {"moments": "float32"},
}
"""Values of the fields of later versions that do what version 0.2 did."""
OPTIONAL = {
    **SINCE_0_2,
    "": {"init_from": "", **SINCE_0_2[""]},
    "model": {"activation": "gelu_tanh", "mup_base": None},
    "train": {"only": ()},
}
"""Values of fields with which a run is the same as one from before there were these fields."""
LORA = ("lora_rank", "lora_matrices", "lora_alpha")


def drop(record: dict[str, Any], values: dict[str, dict[str, Any]]) -> None:
    """Remove from a nested record the fields that have these values, by dotted group."""
    for group, fields in values.items():
        owner = record
        for part in filter(None, group.split(".")):
            owner = owner.get(part, {})
        for name, value in fields.items():
            if name in owner and owner[name] == value:
                del owner[name]


@dataclass(frozen=True)
class Experiment:
    """The complete configuration of one training run."""

    name: str
    model: Model
    data: Data
    schedule: Schedule
    train: Train
    optimizer: Optimizer = field(default_factory=AdamW)
    mesh: Mesh = field(default_factory=Mesh)
    evaluate: Evaluate = field(default_factory=Evaluate)
    seed: int = 0
    init_from: str = ""
    """Initialize from a run, RUN (its newest checkpoint) or RUN@STEP; empty: from the seed."""
    inherit: Literal["parameters", "state"] = "parameters"
    """What `init_from` takes over: the parameters, or also the moments, the step and the position
    in the data, to continue with another schedule."""

    def __post_init__(self) -> None:
        batch, context = self.train.batch_tokens, self.model.context
        check(
            re.fullmatch(r"\w[\w.,=+-]{0,99}", self.name) is not None,
            f"--name is {self.name!r}: it names the run directory. Use letters, digits and _.,=+-",
        )
        check(
            batch % context == 0,
            f"--train.batch-tokens is {batch}, not a multiple of the context {context}: a batch "
            f"consists of windows. Use {max(1, round(batch / context)) * context}",
        )
        check(
            self.batch_sequences <= MOST_WINDOWS,
            f"--train.batch-tokens is {batch}, {self.batch_sequences:,} windows of {context}: "
            f"at most {MOST_WINDOWS:,} are supported. Lower it",
        )
        check(
            self.batch_sequences % self.microbatch == 0,
            f"--train.microbatch is {self.microbatch}, but the batch has {self.batch_sequences} "
            "windows: it must divide them. Use a divisor",
        )
        check(
            not isinstance(self.optimizer, Muon)
            or (self.model.mup_base is None and self.model.lora_rank == 0),
            "the optimizer is Muon, and the model has muP or LoRA: their rates and factors are "
            "made for AdamW. Use AdamW",
        )
        check_choice("--inherit", self.inherit, ("parameters", "state"))
        check(
            bool(self.init_from) or self.inherit == "parameters",
            "--inherit state needs a run to continue: none is named. Give --init-from RUN@STEP",
        )
        check(0 <= self.seed < 2**32, f"--seed is {self.seed}: not in 0 to 2^32 - 1. Change it")

    @property
    def batch_sequences(self) -> int:
        """Windows in a full batch."""
        return self.train.batch_tokens // self.model.context

    @property
    def microbatch(self) -> int:
        """Windows per forward pass over the mesh."""
        return self.train.microbatch or self.batch_sequences

    def to_json(self) -> str:
        """The resolved experiment as JSON, as stored in experiment.json."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @staticmethod
    def from_json(text: str) -> Experiment:
        """Parse the output of `to_json`.

        Raises:
          ConfigError: the text is not an experiment of this version.
        """
        try:
            return serde.build(Experiment, serde.parse(text))
        except ValueError as error:
            raise ConfigError(f"this is not an experiment: {error}. Fix it") from error

    def identity(self) -> dict[str, Any]:
        """The fields that determine the numbers of a run; a checkpoint only resumes if they match.

        Fields that only affect how the run is computed, logged or stopped may change on resume.
        Fields that are turned off are excluded, as in runs from before these fields existed.
        """
        fields = dataclasses.asdict(self)
        drop(fields, OPTIONAL)
        for group, names in RUNTIME.items():
            for name in names:
                del (fields[group] if group else fields)[name]
        for name in () if self.model.lora_rank else LORA:
            del fields["model"][name]
        for source in fields["data"]["sources"]:
            del source["path"]
        return fields
