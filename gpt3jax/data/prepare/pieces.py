"""What shards of a data folder are on disk, until they are merged.

OUT.shards/plan.json                what all have in common; the first to begin writes it
OUT.shards/census-00012.json        what one group of files holds, counted by whoever came first
OUT.shards/shard-00003-of-00016/    the groups 3, 19, 35, ... encoded; it appears whole
OUT                                 all of them, merged: the bytes that one process would write
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt3jax import serde
from gpt3jax.data.manifest import TOKENIZER, Split, sha256
from gpt3jax.errors import ConfigError
from gpt3jax.serde import Count, short_hash

PLAN = "plan.json"
RECORD = "shard.json"
MOST = 99_999
"""Shards; names have five digits."""


@dataclass(frozen=True)
class Plan:
    """What all shards have in common."""

    shards: Count
    groups: Count
    tokenizer: str
    """Hash of the tokenizer."""
    corpus: str
    field: str
    pairs: tuple[str, ...]
    corpus_hash: str
    context: Count
    vocabulary: Count
    tokenizer_trained: bool
    validation_fraction: float
    seed: int

    @property
    def settings(self) -> dict[str, Any]:
        """As the manifest has them."""
        own = ("shards", "groups", "tokenizer")
        return {name: value for name, value in vars(self).items() if name not in own}

    @property
    def hash(self) -> str:
        """Identifies it: every file of a shard says for which plan it was made."""
        return short_hash(dataclasses.asdict(self))


@dataclass(frozen=True)
class Group:
    """What became of one group of files."""

    number: Count
    train: Split
    validation: dict[str, Count]
    validation_sha256: str
    """Of the file of its validation tokens."""
    skipped: dict[str, Count]


@dataclass(frozen=True)
class Piece:
    """The record of a shard: its groups, and what it found the whole corpus to be."""

    plan: str
    documents: Count
    skipped: dict[str, Count]
    held_out: Count
    groups: tuple[Group, ...]

    @property
    def corpus(self) -> tuple:
        """What all shards must have found alike."""
        return self.documents, self.skipped, self.held_out


def work_folder(out: str | os.PathLike[str]) -> Path:
    """Where the shards of a data folder lie until they are merged."""
    return Path(f"{Path(out)}.shards")


def shard_name(plan: Plan, index: int) -> str:
    """The folder of one shard."""
    return f"shard-{index:05d}-of-{plan.shards:05d}"


def tokens_name(number: int) -> str:
    """The file of a group's validation tokens."""
    return f"validation-{number}.tokens"


def read_plan(out: str) -> Plan:
    """The plan of the shards of a data folder.

    Raises:
      ConfigError: there are no shards.
    """
    file = work_folder(out) / PLAN
    try:
        plan = serde.build(Plan, serde.read(file))
        if not (1 <= plan.shards <= MOST and plan.groups <= MOST):
            raise ValueError(f"{plan.shards} shards of {plan.groups} groups are none")
        return plan
    except FileNotFoundError:
        raise ConfigError(
            f"{out} has no shards: {file} is not there. Make them: "
            f"gpt3jax data prepare --corpus FILES --out {out} --tokenizer T --shard I/N, for each I"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{file} is damaged: {error}. Delete {file.parent}, and make the shards again"
        ) from error


def finished(out: str) -> tuple[int, int]:
    """How many shards of a data folder are there, of how many."""
    plan, work = read_plan(out), work_folder(out)
    there = sum((work / shard_name(plan, i) / RECORD).is_file() for i in range(plan.shards))
    return there, plan.shards


def read_piece(work: Path, plan: Plan, index: int) -> Piece:
    """The record of a shard, its files compared with it.

    Raises:
      OSError: a file is not there.
      ValueError: one is not what the record says, or the record not of this shard.
    """
    folder = work / shard_name(plan, index)
    piece = serde.build(Piece, serde.read(folder / RECORD))
    if piece.plan != plan.hash:
        raise ValueError("it was made for another plan")
    if [group.number for group in piece.groups] != [*range(index, plan.groups, plan.shards)]:
        raise ValueError("its groups are not those of this shard")
    if not sha256(folder / TOKENIZER).startswith(plan.tokenizer):
        raise ValueError(f"{TOKENIZER} is not what was written")
    for group in piece.groups:
        if {shard.name for shard in group.train.shards} - {f"train-{group.number}"}:
            raise ValueError(f"group {group.number} names a file that is not its own")
        expected = {tokens_name(group.number): group.validation_sha256}
        expected |= {shard.name: shard.sha256 for shard in group.train.shards}
        for name, digest in expected.items():
            if sha256(folder / name) != digest:
                raise ValueError(f"{name} is not what was written")
    return piece
