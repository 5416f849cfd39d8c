"""The training data."""

from __future__ import annotations

from dataclasses import dataclass

from gpt3jax.errors import LARGEST, check


@dataclass(frozen=True)
class Source:
    """A prepared data set and its share of the training windows."""

    name: str
    path: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        check(
            0 < self.weight <= LARGEST,
            f"data source {self.name!r} has weight {self.weight}: it must be positive and finite. "
            "Change it, or remove the source",
        )


@dataclass(frozen=True)
class Data:
    """The training data: prepared data sets, mixed by weight (weights need not sum to 1)."""

    sources: tuple[Source, ...]
    """Empty only in imported runs, which cannot be trained."""

    def __post_init__(self) -> None:
        names = [source.name for source in self.sources]
        check(len(set(names)) == len(names), f"data sources {names} repeat a name. Rename one")
