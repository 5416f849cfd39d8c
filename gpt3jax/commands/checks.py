"""What a command refuses by itself: numbers out of range."""

from __future__ import annotations

from gpt3jax.config import ConfigError

MOST_BATCHES = 10**12


def check_range(least: float, most: float, **values: float) -> None:
    """Refuse the first of these flags that lies outside."""
    for name, value in values.items():
        if not least <= value <= most:
            raise ConfigError(
                f"--{name.replace('_', '-')} is {value}: it is from {least} to {most:,}. Change it"
            )
