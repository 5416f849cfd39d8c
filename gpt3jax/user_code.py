"""Python files that a person wrote: experiments, tasks, generators of text.

Each has one function, whose name says what the file is for. It is code, and runs
with the rights of whoever loads it: look into one that somebody else made
before you do.
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
    """Run the file as Python runs a script: its own folder is on the import path.

    Args:
      path: the file.
      what: it is, for messages.

    Raises:
      ConfigError: it is not there, or cannot be imported.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise ConfigError(f"there is no {what} file {path}. Files lie in experiments/")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    if (shipped := str(Path(__file__).parents[1] / "experiments")) not in sys.path:
        sys.path.append(shipped)  # Last: a file elsewhere may build on them, and shadow them.
    # Under a name of its own, so that it shadows no module; dataclasses look it up there.
    name = f"{what}_{path.stem}"
    loader = SourceFileLoader(name, str(path))
    spec = importlib.util.spec_from_loader(name, loader)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    with naming(path):
        # Not by the loader: it would take compiled code of the same second and size for this.
        exec(loader.source_to_code(path.read_bytes(), str(path)), vars(module))
    return module


def call(path: str | Path, name: str) -> Any:
    """What the function of this name in a file gives: `experiment`, `task`, `documents`.

    Raises:
      ConfigError: the file cannot be loaded or has no such function, or it fails.
    """
    function = getattr(load_module(path, name), name, None)
    if not callable(function):
        raise ConfigError(f"{path} has no function {name}(): nothing to run. Define one")
    with naming(Path(path)):
        return function()


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


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn what the code of a file raises into a ConfigError that names file and line."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit, too: it would end us without a word.
        where = f"{path}{_line_of(error, path)}"
        if isinstance(error, ConfigError):
            raise ConfigError(f"{where}: {error}") from error
        try:
            said = f": {error}".removesuffix(": ")
        except Exception:  # Its own way to say what it is may be broken.
            said = ""
        raise ConfigError(f"{where}: {type(error).__name__}{said}. Mend the file") from error


def _line_of(error: BaseException, path: Path) -> str:
    """`:LINE` where the file itself raised or broke, if it did."""
    if isinstance(error, SyntaxError) and error.filename == str(path) and error.lineno:
        return f":{error.lineno}"
    traceback, line = error.__traceback__, ""
    while traceback:
        if traceback.tb_frame.f_code.co_filename == str(path):
            line = f":{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return line
