"""What commands read and refuse by themselves: prompts, and numbers out of range."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from gpt3jax.errors import ConfigError

MOST_BATCHES = 10**12
LONGEST_PROMPT = 1 << 20


def check_range(least: float, most: float, **values: float) -> None:
    """Refuse the first of these flags that lies outside."""
    for name, value in values.items():
        if not least <= value <= most:
            raise ConfigError(
                f"--{name.replace('_', '-')} is {value}: it is from {least} to {most:,}. Change it"
            )


def read_prompt(prompt: str | None, file: Path | None = None) -> str:
    """The prompt as given, of a file, or piped to the command; where there is none, empty."""
    is_piped = prompt is None and sys.stdin is not None and not os.isatty(0)
    if not file and not is_piped and prompt != "-":
        return prompt or ""
    what = f"--prompt-file {file}" if file else "the prompt on standard input"
    try:
        with open(file or 0, encoding="utf-8", closefd=bool(file)) as stream:
            text = stream.read(LONGEST_PROMPT + 1)  # A device has no end.
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{what} cannot be read: {error}. Give a file of UTF-8 text") from error
    if len(text) > LONGEST_PROMPT:
        raise ConfigError(
            f"{what} is too long: over {LONGEST_PROMPT:,} letters no model reads. Give its end"
        )
    return text
