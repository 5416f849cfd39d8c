"""Load an experiment file: a Python file with a function `experiment() -> Experiment`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from gpt3jax.config import ConfigError, Experiment


def load_module(path: str | Path) -> ModuleType:
    """Run the file as Python runs a script: its own folder is on the import path.

    Raises:
      ConfigError: it is not there, or cannot be imported.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"there is no experiment file {path}. Files lie in experiments/")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    # Under a name of its own, so that it shadows no module; dataclasses look it up there.
    name = f"experiment_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file: an experiment ends in .py. Rename it")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    with _named(path):
        spec.loader.exec_module(module)
    return module


def load_experiment(path: str | Path) -> Experiment:
    """The experiment that a file defines.

    Raises:
      ConfigError: it defines none, or one that cannot work.
    """
    module = load_module(path)
    function = getattr(module, "experiment", None)
    if not callable(function):
        raise ConfigError(f"{path} has no function experiment(): nothing to run. Define one")
    with _named(Path(path)):
        made = function()
    if not isinstance(made, Experiment):
        raise ConfigError(
            f"{path}: experiment() returned {type(made).__name__}, not an Experiment. Return one"
        )
    return made


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn what an experiment file raises into a ConfigError that names file and line."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        where = f"{path}{_line_of(error, path)}"
        raise ConfigError(f"{where}: {type(error).__name__}: {error}. Mend the file") from error


def _line_of(error: Exception, path: Path) -> str:
    """`:LINE` where the file itself raised or broke, if it did."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f":{error.lineno}"
    traceback, line = error.__traceback__, ""
    while traceback:
        if traceback.tb_frame.f_code.co_filename == str(path):
            line = f":{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return line
