"""Errors that print as one line, and the value checks that raise them."""

from __future__ import annotations

import math
from typing import Any

LARGEST, FLOAT32 = 10**18, 3e38
"""Upper bounds for integers and for floats."""


class ConfigError(Exception):
    """An invalid value given by the user; exit code 2. The message is `WHAT: WHY. FIX`.

    Not a ValueError, because tyro would catch and reword it.
    """


class RunError(Exception):
    """A failure the user did not cause: a full disk, a damaged file, a diverged run; exit code 1.

    It prints as one line, like ConfigError.
    """


def check(ok: bool, message: str) -> None:
    """Raise ConfigError with this message unless `ok`."""
    if not ok:
        raise ConfigError(message)


def truncate(text: str, length: int) -> str:
    """Shorten a text to at most `length` characters by cutting out its middle."""
    half = (length - 3) // 2
    return text if len(text) <= length else f"{text[:half]}...{text[-half:]}"


def check_numbers(config: Any, group: str, **minimum: float) -> None:
    """Check that the named fields are finite and at least their minimum.

    Raises:
      ConfigError: a field is not; the message names its flag.
    """
    for name, least in minimum.items():
        value = getattr(config, name)
        flag = f"--{group}.{name.replace('_', '-')}"
        # math.isfinite overflows on integers that do not fit a float.
        is_finite = isinstance(value, int) or math.isfinite(value)
        check(is_finite, f"{flag} is {value}: it must be a finite number. Give one")
        has_type = isinstance(value, int) or config.__annotations__[name] != "int"
        check(has_type, f"{flag} is {value}: it must be an integer. Give one")
        check(value >= least, f"{flag} is {value}: it must be at least {least}. Raise it")
        most = LARGEST if isinstance(value, int) else FLOAT32
        check(value <= most, f"{flag} is {value}: it must be at most {most:g}. Lower it")


def check_choice(flag: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ConfigError unless the value is one of the choices."""
    check(
        value in choices, f"{flag} is {value!r}: it must be one of {', '.join(choices)}. Choose one"
    )
