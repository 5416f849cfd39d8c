"""Selection of the trained parameters by patterns over paths and layers.

A pattern is a path, or a prefix of one that ends at a `/`. `*` matches any characters, and
`layers[8:12]` selects layers as a Python slice does. Importing this file does not import jax.
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
"""The trained leaves by path. A stacked leaf has one flag per layer, others have one flag."""

RANGE = re.compile(r"layers\[(-?\d{0,9}):(-?\d{0,9})\](/.*)?")


@lru_cache(maxsize=64)
def trained(experiment: Experiment) -> Trained:
    """The parameters that `train.only` selects; by default all, or with LoRA its factors.

    Raises:
      ConfigError: a pattern matches no parameter.
    """
    model = experiment.model
    default = "layers/lora" if model.lora_rank else "*"
    chosen: Trained = {}
    for pattern in experiment.train.only or (default,):
        matched = _matched(pattern, model)
        if not matched:
            raise ConfigError(_no_match(pattern, model))
        for path, layers in matched.items():
            before = chosen.get(path, (False,) * len(layers))
            chosen[path] = tuple(map(any, zip(before, layers, strict=True)))
    return chosen


def trained_count(experiment: Experiment) -> int:
    """Number of trained parameters; like `count_params`, without the vocabulary's padding."""
    model, total = experiment.model, 0
    for path, spec in named_specs(param_specs(model)):
        layers = trained(experiment).get(path, (False,))
        total += math.prod(spec.shape) * sum(layers) // len(layers)
        if path == "token_embedding" and all(layers):
            total -= (model.padded_vocabulary - model.vocabulary) * model.d_model
    return total


def state_bytes(experiment: Experiment) -> int:
    """Bytes of the train state: float32 parameters, and the optimizer's for trained ones."""
    optimizer, chosen = experiment.optimizer, trained(experiment)
    return sum(
        math.prod(spec.shape) * (4 + (optimizer.state_bytes(path) if path in chosen else 0))
        for path, spec in named_specs(param_specs(experiment.model))
    )


def _matched(pattern: str, model: Model) -> Trained:
    """The leaves that match a pattern."""
    layers = (True,) * model.n_layers
    if match := RANGE.fullmatch(pattern):
        begin, end = (int(each) if each not in ("", "-") else None for each in match.groups()[:2])
        selected = range(model.n_layers)[begin:end]
        layers = tuple(layer in selected for layer in range(model.n_layers))
        pattern = f"layers{match[3] or ''}"
    return {
        path: layers if path.startswith("layers/") else (True,)
        for path, _ in named_specs(param_specs(model))
        if any(layers)
        and (fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, f"{pattern}/*"))
    }


def _no_match(pattern: str, model: Model) -> str:
    paths = [path for path, _ in named_specs(param_specs(model))]
    parts = {"/".join(path.split("/")[:depth]) for path in paths for depth in (1, 2, 3)}
    similar = difflib.get_close_matches(pattern, sorted(parts), 3, cutoff=0.0)
    return (
        f"--train.only {pattern!r} matches no parameter of this model (layers are "
        f"[0:{model.n_layers}]): nothing would be trained. Similar names: {', '.join(similar)}"
    )
