"""What a sweep tries: the functions of an experiment file that say so, and what they give.

    def space(trial):            # of Optuna: trial.suggest_float, suggest_int, suggest_categorical
        rate = trial.suggest_float("peak_learning_rate", 1e-4, 1e-1, log=True)
        return {"schedule.peak-learning-rate": rate}

    def first():                 # may be left out: what is tried before anything else
        return [{"peak_learning_rate": 6e-4}]

The keys that `space` returns are flags of `gpt3jax train`, so that each trial is
one command, and one run.
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
"""Values of a trial, by the names that `space` gave them."""

OURS = {"run", "debug", "help", "coordinator", "processes", "process", "distributed"}
"""Flags of `gpt3jax train` that are not for a trial to choose."""


@dataclass(frozen=True)
class Space:
    """The space of an experiment file."""

    file: Path
    function: Callable[[optuna.Trial], dict[str, Any]]
    ranges: dict[str, BaseDistribution]
    """What was suggested in a trial at random: all there is, unless parts depend on others."""
    first: tuple[Params, ...]
    """Tried before anything else."""

    def words(self, trial: optuna.Trial) -> list[str]:
        """The overrides of a trial, as words of a command; its values are drawn here.

        Raises:
          ConfigError: the function fails, or what it returns are no overrides.
        """
        with named_errors(self.file):
            flags = self.function(trial)
        return as_words(flags, self.file)


def load(file: Path) -> Space:
    """The space that an experiment file defines, after one trial of it at random.

    Raises:
      ConfigError: it defines none, or one that cannot work.
    """
    module = load_module(file, "sweep")
    function = getattr(module, "space", None)
    if not callable(function):
        raise ConfigError(
            f"{file} has no function space(trial): nothing to vary. Define one, as "
            "experiments/sweep_learning_rate.py does"
        )
    with named_errors(file):
        first = tuple(getattr(module, "first", tuple)())
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trial = study.ask()
    made = Space(file, function, {}, ())
    made.words(trial)
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
    """Overrides as words of a command.

    >>> as_words({"model.n-layers": 4, "schedule.peak-learning-rate": 3e-4}, Path("x.py"))
    ['--model.n-layers', '4', '--schedule.peak-learning-rate', '0.0003']

    Raises:
      ConfigError: they are none.
    """
    if not isinstance(flags, dict):
        raise ConfigError(
            f"{file}: space() returned {type(flags).__name__}, not overrides. Return a dict, as "
            '{"schedule.peak-learning-rate": rate}'
        )
    words = []
    for name, value in flags.items():
        if not (isinstance(name, str) and re.fullmatch(r"[a-z][\w.-]*", name)) or name in OURS:
            raise ConfigError(
                f"{file}: space() returned an override {name!r}: it must be a field of the "
                "experiment, as `gpt3jax train` takes it without --. Rename it"
            )
        values = value if isinstance(value, list | tuple) else [value]
        words += [f"--{name}", *(str(each) for each in values)]
    return words


def _check_first(params: Any, ranges: dict[str, BaseDistribution], file: Path) -> None:
    if not isinstance(params, dict):
        raise ConfigError(
            f"{file}: first() holds {type(params).__name__}, not values. Return a list of dicts"
        )
    for name, value in params.items():
        if name not in ranges:
            raise ConfigError(
                f"{file}: first() names {name!r}, which space() does not suggest: it would change "
                f"nothing. Use {', '.join(ranges)}"
            )
        if not _holds(ranges[name], value):
            raise ConfigError(
                f"{file}: first() has {name} {value!r}, outside of {ranges[name]}. Widen the range"
            )


def _holds(values: BaseDistribution, value: Any) -> bool:
    if isinstance(values, CategoricalDistribution):
        return value in values.choices
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and values.low <= value <= values.high


def grid(ranges: dict[str, BaseDistribution], trials: int) -> list[Params]:
    """Points of a grid, at most so many: each range gets as many as that allows, evenly.

    Raises:
      ConfigError: the choices alone are more than the trials.
    """
    fixed = [r for r in ranges.values() if isinstance(r, CategoricalDistribution)]
    choices = int(np.prod([len(r.choices) for r in fixed])) if fixed else 1
    free = len(ranges) - len(fixed)
    each = int((trials / choices) ** (1 / free) + 1e-9) if free else 1
    if choices > trials or each < 1:
        raise ConfigError(
            f"--trials is {trials}, but the choices alone make a grid of {choices}. Raise it"
        )
    axes = [_points(values, each) for values in ranges.values()]
    return [dict(zip(ranges, point, strict=True)) for point in itertools.product(*axes)]


def _points(values: BaseDistribution, count: int) -> Sequence[Any]:
    """So many values of a range, both ends included; of a choice, all."""
    if isinstance(values, CategoricalDistribution):
        return values.choices
    assert isinstance(values, FloatDistribution | IntDistribution)
    low, high = float(values.low), float(values.high)
    even = np.geomspace(low, high, count) if values.log else np.linspace(low, high, count)
    if count == 1:
        even = np.array([(low * high) ** 0.5 if values.log else (low + high) / 2])
    if values.step is not None:
        even = low + np.round((even - low) / values.step) * values.step
    is_whole = isinstance(values, IntDistribution)
    # Rounding may put two on one spot, and one past an end.
    inside = (min(max(float(x), low), high) for x in even)
    return list(dict.fromkeys(int(x) if is_whole else x for x in inside))
