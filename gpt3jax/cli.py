"""The command line: words to a command and its arguments, and errors to one line.

Exit codes: 0 done, 1 failure, 2 a user's mistake, 128 + n stopped by signal n
after saving.
"""

from __future__ import annotations

import inspect
import io
import itertools
import logging
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import tyro
from tyro.conf import AvoidSubcommands, FlagConversionOff

from gpt3jax import __version__
from gpt3jax.commands import COMMANDS
from gpt3jax.errors import ConfigError, RunError, truncate
from gpt3jax.runtime.compilation_cache import enable_compilation_cache

LINE = 300
"""Characters that are shown of an error, at most."""


def usage() -> str:
    """What there is to type."""
    width = max(map(len, COMMANDS))
    lines = [f"  gpt3jax {name:<{width}}  {_summary(f)}" for name, f in COMMANDS.items()]
    return "\n".join(
        [
            f"gpt3jax {__version__}: train, understand and trust a GPT-3.",
            "",
            *lines,
            "",
            "Each takes --help. Errors take one line; --debug shows where they come from.",
        ]
    )


def parse(name: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The arguments of a command, by tyro; those that take an experiment read its file first."""
    function = COMMANDS[name]
    prog = f"gpt3jax {name}"
    parameters = inspect.signature(function, eval_str=True).parameters
    fields: dict[str, Any] = {}
    rest = list(arguments)
    if "experiment" in parameters:
        file = next((word for word in rest if word.endswith(".py")), None)
        is_optional = parameters["experiment"].default is None
        if file is None and not is_optional:
            words = "FILE.py" if "what" not in parameters else "train|decode|data|save FILE.py"
            if "--help" in rest or "-h" in rest:
                print(f"usage: {prog} {words} [options]\n\n{inspect.getdoc(function)}")
                raise SystemExit(0)
            raise ConfigError(f"{prog} needs an experiment file. Usage: {prog} {words} [options]")
        if file is not None:
            from gpt3jax.user_code import load_experiment

            rest.remove(file)
            fields["experiment"] = load_experiment(file)
        prog += f" {file or '[FILE.py]'}"

    _refuse_empty_paths(rest, parameters)

    def call(**values: Any) -> dict[str, Any]:
        return values

    shown = [
        _for_tyro(parameter, fields)
        for name, parameter in parameters.items()
        if name != "experiment" or fields  # One that may be left out, and is.
    ]
    call.__doc__ = function.__doc__
    call.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return tyro.cli(call, args=rest, prog=prog)


def _refuse_empty_paths(words: Sequence[str], parameters: Mapping[str, inspect.Parameter]) -> None:
    """A name that is empty, as of a variable that is not set, would be the folder we are in."""
    names = [name for name, parameter in parameters.items() if "Path" in str(parameter)]
    for flag, word in itertools.pairwise(words):
        if flag.removeprefix("--").replace("-", "_") in names and not word:
            raise ConfigError(f"{flag} is empty: it names a file or folder. Name one, or . (here)")


def _for_tyro(parameter: inspect.Parameter, fields: dict[str, Any]) -> inspect.Parameter:
    """A parameter as tyro should see it: the experiment's fields without a prefix, and filled."""
    kind = inspect.Parameter.KEYWORD_ONLY
    if parameter.name in ("hosts", "changes"):
        annotation = Annotated[parameter.annotation, tyro.conf.arg(name="")]
        return parameter.replace(annotation=annotation, kind=kind)
    if parameter.name in fields:
        # Booleans as `--model.scan-layers True`, which sweeps and resumed commands can set.
        made = fields[parameter.name]
        annotation = Annotated[
            type(made), tyro.conf.arg(name=""), FlagConversionOff, AvoidSubcommands
        ]
        return parameter.replace(annotation=annotation, default=made, kind=kind)
    return parameter.replace(kind=kind)


def _summary(function: Callable[..., Any]) -> str:
    return (inspect.getdoc(function) or "").splitlines()[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # Names of files need not be UTF-8.
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if words[0] == "--version":
        print(f"gpt3jax {__version__}")
        return 0
    if not debug:
        _speak_plainly()
    try:
        return _dispatch(words)
    except BrokenPipeError:
        # The reader has gone (`| head`): no more to say. Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if debug:
            raise
        error = _of_platform(error)
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1


def _speak_plainly() -> None:
    """Warnings in a line; and no pages from libraries' threads: what failed reaches us, too."""
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    sys.excepthook = sys.unraisablehook = threading.excepthook = lambda *_: None
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)


def _dispatch(words: list[str]) -> int:
    if words[0] == "data" and words[1:2] in ([], ["--help"], ["-h"]):
        print(usage())
        return 0
    size = 2 if words[0] == "data" else 1
    name = " ".join(words[:size])
    if name not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(name, COMMANDS, 1, cutoff=0)
        raise ConfigError(f"there is no command {name!r}. Did you mean `gpt3jax {near[0]}`?")
    values = parse(name, words[size:])
    enable_compilation_cache()
    return COMMANDS[name](**values) or 0


def _of_platform(error: Exception) -> Exception:
    """The same, but where jax does not find what JAX_PLATFORMS asks for: it may not say so."""
    asked, frames = os.environ.get("JAX_PLATFORMS"), traceback.extract_tb(error.__traceback__)
    if not asked or not frames or os.path.basename(frames[-1].filename) != "xla_bridge.py":
        return error
    why = (
        str(error).partition(" (set JAX_PLATFORMS")[0].rstrip(".")
        or "no plugin for it is installed"
    )
    return ConfigError(
        f"JAX_PLATFORMS is {asked!r}, which jax cannot use here: {why}. Unset JAX_PLATFORMS, or "
        "install jax for it, as jax[cuda13] or jax[tpu]"
    )


def one_line(error: Exception) -> str:
    """An error as one line, fit for a terminal; a library's is shown with its kind."""
    text = " ".join(str(error).split())
    # What a file holds must not steer the terminal.
    text = "".join(each if each.isprintable() else "\ufffd" for each in text)
    if isinstance(error, ConfigError | RunError):
        return truncate(text, LINE)
    hint = " (--debug shows where)"
    return truncate(f"{type(error).__name__}: {text}", LINE - len(hint)) + hint
