"""Errors that take one line, and the checks of values that raise them."""

from __future__ import annotations

import math
from typing import Any

LARGEST, FLOAT32 = 10**18, 3e38
"""No whole number is larger, and no other."""


class ConfigError(Exception):
    """A value that cannot work. The message is `WHAT: WHY. FIX`.

    Not a ValueError, which tyro would take for its own and reword.
    """


class RunError(Exception):
    """What went wrong and is nobody's mistake: a full disk, a damaged file, a diverged run.

    Told in one line, as ConfigError is; the exit code is 1.
    """


def check(ok: bool, message: str) -> None:
    """Refuse what is not so.

    Raises:
      ConfigError: with this message.
    """
    if not ok:
        raise ConfigError(message)


def truncate(text: str, length: int) -> str:
    """A text of at most so many characters: of a longer one, what it begins and ends with."""
    half = (length - 3) // 2
    return text if len(text) <= length else f"{text[:half]}...{text[-half:]}"


def check_numbers(config: Any, group: str, **minimum: float) -> None:
    """Refuse fields that are not finite or lie below their minimum."""
    for name, least in minimum.items():
        value = getattr(config, name)
        flag = f"--{group}.{name.replace('_', '-')}"
        # A whole number may be too large to be made a float.
        is_finite = isinstance(value, int) or math.isfinite(value)
        check(is_finite, f"{flag} is {value}: it must be a finite number. Give one")
        is_whole = isinstance(value, int) or config.__annotations__[name] != "int"
        check(is_whole, f"{flag} is {value}: it counts something. Give a whole number")
        check(value >= least, f"{flag} is {value}: it must be at least {least}. Raise it")
        most = LARGEST if isinstance(value, int) else FLOAT32
        check(value <= most, f"{flag} is {value}: no machine does that much. Lower it")


def check_choice(flag: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is none of the choices."""
    check(value in choices, f"{flag} is {value!r}: it is one of {', '.join(choices)}. Choose one")
