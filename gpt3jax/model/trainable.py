"""Which parameters are trained: leaves of the table, and layers of stacked ones, by pattern.

A pattern is a path, or the beginning of one up to a `/`; `*` stands for any
letters, and `layers[8:12]` for some layers, numbered as Python's slices are.
Importing this file does not import jax.
"""

from __future__ import annotations

import difflib
import fnmatch
import math
import re
from functools import lru_cache

from gpt3jax.config import Experiment, Model
from gpt3jax.errors import ConfigError
from gpt3jax.model.param_specs import named_specs, param_specs

Trained = dict[str, tuple[bool, ...]]
"""By path, each leaf of which something is trained; of a stacked one, which layers are."""

RANGE = re.compile(r"layers\[(-?\d{0,9}):(-?\d{0,9})\](/.*)?")


@lru_cache(maxsize=64)
def trained(experiment: Experiment) -> Trained:
    """What is trained.

    Raises:
      ConfigError: a pattern of `train.only` chooses nothing.
    """
    model = experiment.model
    default = "layers/lora" if model.lora_rank else "*"
    chosen: Trained = {}
    for pattern in experiment.train.only or (default,):
        found = _matched(pattern, model)
        if not found:
            raise ConfigError(_nothing(pattern, model))
        for path, layers in found.items():
            before = chosen.get(path, (False,) * len(layers))
            chosen[path] = tuple(map(any, zip(before, layers, strict=True)))
    return chosen


def trained_count(experiment: Experiment) -> int:
    """How many numbers are trained; as in `table.count`, without the padding of the vocabulary."""
    model, total = experiment.model, 0
    for path, spec in named_specs(param_specs(model)):
        layers = trained(experiment).get(path, (False,))
        total += math.prod(spec.shape) * sum(layers) // len(layers)
        if path == "token_embedding" and all(layers):
            total -= (model.padded_vocabulary - model.vocabulary) * model.d_model
    return total


def _matched(pattern: str, model: Model) -> Trained:
    """The leaves of a pattern."""
    layers = (True,) * model.n_layers
    if some := RANGE.fullmatch(pattern):
        begin, end = (int(each) if each not in ("", "-") else None for each in some.groups()[:2])
        inside = range(model.n_layers)[begin:end]
        layers = tuple(layer in inside for layer in range(model.n_layers))
        pattern = f"layers{some[3] or ''}"
    return {
        path: layers if path.startswith("layers/") else (True,)
        for path, _ in named_specs(param_specs(model))
        if any(layers)
        and (fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, f"{pattern}/*"))
    }


def _nothing(pattern: str, model: Model) -> str:
    paths = [path for path, _ in named_specs(param_specs(model))]
    parts = {"/".join(path.split("/")[:depth]) for path in paths for depth in (1, 2, 3)}
    near = difflib.get_close_matches(pattern, sorted(parts), 3, cutoff=0.0)
    return (
        f"--train.only has {pattern!r}, which is no parameter of this model, whose layers are "
        f"[0:{model.n_layers}]: nothing would be trained. Near it: {', '.join(near)}"
    )
