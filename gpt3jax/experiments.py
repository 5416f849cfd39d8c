"""Load an experiment file: a Python file with a function `experiment() -> Experiment`."""

from __future__ import annotations

from pathlib import Path

from gpt3jax.code import call, naming
from gpt3jax.config import ConfigError, Experiment


def load_experiment(path: str | Path) -> Experiment:
    """The experiment that a file defines.

    Raises:
      ConfigError: it defines none, or one that cannot work.
    """
    made = call(path, "experiment")
    if not isinstance(made, Experiment):
        raise ConfigError(
            f"{path}: experiment() returned {type(made).__name__}, not an Experiment. Return one"
        )
    with naming(Path(path)):
        # What a run stores: it must be of the declared types, or no resume could read it.
        return Experiment.from_json(made.to_json())
