"""Load the user's Python files: experiments, tasks and text generators.

Each defines one function with a fixed name. The code runs with the rights of
the current user: read a file from somebody else before you load it.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from gpt3jax.config import Experiment
from gpt3jax.errors import ConfigError


def load_module(path: str | Path, what: str = "experiment") -> ModuleType:
    """Import a file by path, with its own folder on the import path, as for a script.

    Args:
      path: the file.
      what: the kind of file, for error messages.

    Raises:
      ConfigError: the file does not exist, or its import fails.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise ConfigError(f"there is no {what} file {path}. Files lie in experiments/")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    if (shipped := str(Path(__file__).parents[1] / "experiments")) not in sys.path:
        sys.path.append(shipped)  # Last, so that a user's file may import and shadow these.
    # The name must not shadow another module; dataclasses need it in sys.modules.
    name = f"{what}_{path.stem}"
    loader = SourceFileLoader(name, str(path))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None  # The loader implements get_filename and is_package.
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    with named_errors(path):
        # exec_module could use stale bytecode of a file with the same mtime and size.
        exec(loader.source_to_code(path.read_bytes(), str(path)), vars(module))
    return module


def call(path: str | Path, name: str) -> Any:
    """Call the function `name` (`experiment`, `task`, `documents`) of a file.

    Raises:
      ConfigError: the file cannot be loaded or has no such function, or the call fails.
    """
    function = getattr(load_module(path, name), name, None)
    if not callable(function):
        raise ConfigError(f"{path} has no function {name}(): nothing to run. Define one")
    with named_errors(Path(path)):
        return function()


def load_experiment(path: str | Path) -> Experiment:
    """The experiment that a file defines.

    Raises:
      ConfigError: it defines none, or one that is invalid.
    """
    experiment = call(path, "experiment")
    if not isinstance(experiment, Experiment):
        kind = type(experiment).__name__
        raise ConfigError(f"{path}: experiment() returned {kind}, not an Experiment. Return one")
    with named_errors(Path(path)):
        # The round trip checks the types; a resume must be able to read the stored JSON.
        return Experiment.from_json(experiment.to_json())


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Convert exceptions from a file's code to a ConfigError that names file and line."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # Including SystemExit, which would exit without a message.
        where = f"{path}{_line_of(error, path)}"
        if isinstance(error, ConfigError):
            raise ConfigError(f"{where}: {error}") from error
        try:
            message = f": {error}".removesuffix(": ")
        except Exception:  # Its __str__ may raise.
            message = ""
        raise ConfigError(f"{where}: {type(error).__name__}{message}. Correct the file") from error


def _line_of(error: BaseException, path: Path) -> str:
    """`:LINE` of the innermost frame in the file, or of its syntax error; otherwise ""."""
    if isinstance(error, SyntaxError) and error.filename == str(path) and error.lineno:
        return f":{error.lineno}"
    traceback, line = error.__traceback__, ""
    while traceback:
        if traceback.tb_frame.f_code.co_filename == str(path):
            line = f":{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return line
