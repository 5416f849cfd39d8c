"""Reading prompts and checking ranges of numeric flags."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from gpt3jax.errors import ConfigError

MOST_BATCHES = 10**12
LONGEST_PROMPT = 1 << 20


def check_range(least: float, most: float, **values: float) -> None:
    """Raise ConfigError for the first of these flags that is out of range."""
    for name, value in values.items():
        if not least <= value <= most:
            raise ConfigError(
                f"--{name.replace('_', '-')} is {value}: it must be from {least} to {most:,}. "
                "Change it"
            )


def read_prompt(prompt: str | None, file: Path | None = None) -> str:
    """The prompt: as given, from a file, or from piped standard input; empty by default."""
    is_piped = prompt is None and sys.stdin is not None and not os.isatty(0)
    if not file and not is_piped and prompt != "-":
        return prompt or ""
    what = f"--prompt-file {file}" if file else "the prompt on standard input"
    try:
        with open(file or 0, encoding="utf-8", closefd=bool(file)) as stream:
            text = stream.read(LONGEST_PROMPT + 1)  # A device may never end.
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{what} cannot be read: {error}. Give a file of UTF-8 text") from error
    if len(text) > LONGEST_PROMPT:
        raise ConfigError(
            f"{what} is too long: the limit is {LONGEST_PROMPT:,} characters. Give its end"
        )
    return text
