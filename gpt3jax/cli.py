"""The command line: parses arguments, runs a command and prints errors as one line.

Exit codes: 0 success, 1 failure, 2 invalid input, 128 + n stopped by signal n after saving a
checkpoint.
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
"""Maximum length of an error message, in characters."""


def usage() -> str:
    """The text of `gpt3jax --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  gpt3jax {name:<{width}}  {_summary(f)}" for name, f in COMMANDS.items()]
    return "\n".join(
        [
            f"gpt3jax {__version__}: train, understand and trust a GPT-3.",
            "",
            *lines,
            "",
            "Each command takes --help. Errors print as one line; --debug prints a traceback.",
        ]
    )


def parse(name: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Parse the arguments of a command with tyro, after loading its experiment file, if any."""
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
        if name != "experiment" or fields  # Hide an optional experiment that is not given.
    ]
    call.__doc__ = function.__doc__
    call.__signature__ = inspect.Signature(shown)  # pyright: ignore[reportFunctionMemberAccess]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return tyro.cli(call, args=rest, prog=prog)


def _refuse_empty_paths(words: Sequence[str], parameters: Mapping[str, inspect.Parameter]) -> None:
    """Reject empty paths, e.g. from an unset variable: Path("") is the current folder."""
    names = [name for name, parameter in parameters.items() if "Path" in str(parameter)]
    for flag, word in itertools.pairwise(words):
        if flag.removeprefix("--").replace("-", "_") in names and not word:
            raise ConfigError(f"{flag} is empty: it must be a path. Give one, or . (this folder)")


def _for_tyro(parameter: inspect.Parameter, fields: dict[str, Any]) -> inspect.Parameter:
    """The parameter for tyro: an experiment's fields have no prefix and its values as defaults."""
    kind = inspect.Parameter.KEYWORD_ONLY
    if parameter.name in ("hosts", "changes"):
        annotation = Annotated[parameter.annotation, tyro.conf.arg(name="")]
        return parameter.replace(annotation=annotation, kind=kind)
    if parameter.name in fields:
        # Booleans are `--model.scan-layers True`, a form that sweeps and resumed commands can set.
        default = fields[parameter.name]
        annotation = Annotated[
            type(default), tyro.conf.arg(name=""), FlagConversionOff, AvoidSubcommands
        ]
        return parameter.replace(annotation=annotation, default=default, kind=kind)
    return parameter.replace(kind=kind)


def _summary(function: Callable[..., Any]) -> str:
    return (inspect.getdoc(function) or "").splitlines()[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # File names may not be UTF-8.
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if words[0] == "--version":
        print(f"gpt3jax {__version__}")
        return 0
    if not debug:
        _silence_tracebacks()
    try:
        return _dispatch(words)
    except BrokenPipeError:
        # The reader has exited (`| head`). Without this, Python reports an error at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if debug:
            raise
        error = _explain_platform(error)
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1


def _silence_tracebacks() -> None:
    """Print warnings as one line and no tracebacks from threads, whose errors are also raised."""
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

        closest = difflib.get_close_matches(name, COMMANDS, 1, cutoff=0)
        raise ConfigError(f"there is no command {name!r}. Did you mean `gpt3jax {closest[0]}`?")
    values = parse(name, words[size:])
    enable_compilation_cache()
    return COMMANDS[name](**values) or 0


def _explain_platform(error: Exception) -> Exception:
    """Replace jax's error for an unavailable JAX_PLATFORMS, which may not mention the variable."""
    platforms, frames = os.environ.get("JAX_PLATFORMS"), traceback.extract_tb(error.__traceback__)
    if not platforms or not frames or os.path.basename(frames[-1].filename) != "xla_bridge.py":
        return error
    why = (
        str(error).partition(" (set JAX_PLATFORMS")[0].rstrip(".")
        or "no plugin for it is installed"
    )
    return ConfigError(
        f"JAX_PLATFORMS is {platforms!r}, which jax cannot use here: {why}. Unset JAX_PLATFORMS, "
        "or install jax for it, e.g. jax[cuda13] or jax[tpu]"
    )


def one_line(error: Exception) -> str:
    """An error as one printable line; a library's error is prefixed with its type."""
    text = " ".join(str(error).split())
    # Text from files must not control the terminal.
    text = "".join(each if each.isprintable() else "\ufffd" for each in text)
    if isinstance(error, ConfigError | RunError):
        return truncate(text, LINE)
    hint = " (--debug prints a traceback)"
    return truncate(f"{type(error).__name__}: {text}", LINE - len(hint)) + hint
