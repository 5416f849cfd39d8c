"""The search space of a sweep, defined by functions in an experiment file.

    def space(trial):            # an Optuna trial: suggest_float, suggest_int, suggest_categorical
        rate = trial.suggest_float("peak_learning_rate", 1e-4, 1e-1, log=True)
        return {"schedule.peak-learning-rate": rate}

    def first():                 # optional: parameters to try before any others
        return [{"peak_learning_rate": 6e-4}]

The keys of the dict that `space` returns are flags of `gpt3jax train`, so that each trial is one
command and one run.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from gpt3jax.errors import ConfigError
from gpt3jax.user_code import load_module, named_errors

Params = dict[str, Any]
"""Parameters of a trial, by the names used in `space`."""

RESERVED = {"run", "debug", "help", "coordinator", "processes", "process", "distributed"}
"""Flags of `gpt3jax train` that a trial must not set."""


@dataclass(frozen=True)
class Space:
    """The space of an experiment file."""

    file: Path
    function: Callable[..., Any]
    ranges: dict[str, BaseDistribution]
    """Distributions suggested in one random trial; incomplete if some are conditional."""
    first: tuple[Params, ...]
    """Parameters of the first trials."""

    def words(self, trial: optuna.Trial) -> list[str]:
        """Samples the parameters of a trial and returns its overrides as command-line arguments.

        Raises:
          ConfigError: the function fails or does not return overrides.
        """
        with named_errors(self.file):
            flags = self.function(trial)
        return as_words(flags, self.file)


def load(file: Path) -> Space:
    """Loads the space of an experiment file and checks it with one random trial.

    Raises:
      ConfigError: the file defines no space, or an invalid one.
    """
    module = load_module(file, "sweep")
    function = getattr(module, "space", None)
    if not callable(function):
        raise ConfigError(
            f"{file} has no function space(trial): there is nothing to vary. Define one, as in "
            "experiments/sweep_learning_rate.py"
        )
    with named_errors(file):
        first = tuple(getattr(module, "first", tuple)())
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trial = study.ask()
    Space(file, function, {}, ()).words(trial)
    ranges = trial.distributions
    if not ranges:
        raise ConfigError(
            f"{file}: space() suggests nothing: all trials would be the same. Call "
            "trial.suggest_float, suggest_int or suggest_categorical"
        )
    for params in first:
        _check_first(params, ranges, file)
    return Space(file, function, ranges, first)


def as_words(flags: Any, file: Path) -> list[str]:
    """Formats overrides as command-line arguments.

    >>> as_words({"model.n-layers": 4, "schedule.peak-learning-rate": 3e-4}, Path("x.py"))
    ['--model.n-layers', '4', '--schedule.peak-learning-rate', '0.0003']

    Raises:
      ConfigError: `flags` is not a dict of overrides.
    """
    if not isinstance(flags, dict):
        raise ConfigError(
            f"{file}: space() returned {type(flags).__name__}, not overrides. Return a dict, "
            'for example {"schedule.peak-learning-rate": rate}'
        )
    words = []
    for name, value in flags.items():
        if not (isinstance(name, str) and re.fullmatch(r"[a-z][\w.-]*", name)) or name in RESERVED:
            raise ConfigError(
                f"{file}: space() returned an override {name!r}: it must be a flag of `gpt3jax "
                "train` for a field of the experiment, without --. Rename it"
            )
        values = value if isinstance(value, list | tuple) else [value]
        words += [f"--{name}", *(str(each) for each in values)]
    return words


def _check_first(params: Any, ranges: dict[str, BaseDistribution], file: Path) -> None:
    if not isinstance(params, dict):
        raise ConfigError(
            f"{file}: first() contains {type(params).__name__}, not a dict. Return a list of dicts"
        )
    for name, value in params.items():
        if name not in ranges:
            raise ConfigError(
                f"{file}: first() names {name!r}, which space() does not suggest: it would change "
                f"nothing. Use {', '.join(ranges)}"
            )
        if not _contains(ranges[name], value):
            raise ConfigError(
                f"{file}: first() has {name} {value!r}, outside of {ranges[name]}. Widen the range"
            )


def _contains(values: BaseDistribution, value: Any) -> bool:
    if isinstance(values, CategoricalDistribution):
        return value in values.choices
    assert isinstance(values, FloatDistribution | IntDistribution)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and values.low <= value <= values.high


def grid(ranges: dict[str, BaseDistribution], trials: int) -> list[Params]:
    """Returns at most `trials` points of a grid, with equally many values along each range.

    Raises:
      ConfigError: the categorical choices alone need more trials.
    """
    categorical = [r for r in ranges.values() if isinstance(r, CategoricalDistribution)]
    choices = int(np.prod([len(r.choices) for r in categorical])) if categorical else 1
    n_ranges = len(ranges) - len(categorical)
    per_range = int((trials / choices) ** (1 / n_ranges) + 1e-9) if n_ranges else 1
    if choices > trials or per_range < 1:
        raise ConfigError(
            f"--trials is {trials}, but the choices alone make a grid of {choices}. Raise it"
        )
    axes = [_points(values, per_range) for values in ranges.values()]
    return [dict(zip(ranges, point, strict=True)) for point in itertools.product(*axes)]


def _points(values: BaseDistribution, count: int) -> Sequence[Any]:
    """`count` evenly spaced values of a range including both ends, or all choices."""
    if isinstance(values, CategoricalDistribution):
        return values.choices
    assert isinstance(values, FloatDistribution | IntDistribution)
    low, high = float(values.low), float(values.high)
    points = np.geomspace(low, high, count) if values.log else np.linspace(low, high, count)
    if count == 1:
        points = np.array([(low * high) ** 0.5 if values.log else (low + high) / 2])
    if values.step is not None:
        points = low + np.round((points - low) / values.step) * values.step
    is_int = isinstance(values, IntDistribution)
    # Rounding may produce duplicates and values beyond an end.
    inside = (min(max(float(x), low), high) for x in points)
    return list(dict.fromkeys(int(x) if is_int else x for x in inside))
