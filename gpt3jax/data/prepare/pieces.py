"""The files of separately prepared shards, before they are merged to a data folder.

OUT.shards/plan.json                settings of all shards, written by the first one to start
OUT.shards/census-00012.json        census of one group of parts, by the first to count it
OUT.shards/shard-00003-of-00016/    the encoded groups 3, 19, 35, ...; created atomically
OUT                                 the merged folder, byte for byte as from one process
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

from gpt3jax import serde
from gpt3jax.data.manifest import TOKENIZER, Settings, Split, sha256
from gpt3jax.errors import ConfigError
from gpt3jax.serde import Count, short_hash

PLAN = "plan.json"
RECORD = "shard.json"
MOST = 99_999
"""Maximum number of shards: their names have five digits."""


@dataclass(frozen=True, kw_only=True)
class Plan(Settings):
    """What all shards share."""

    shards: Count
    groups: Count
    tokenizer: str
    """Hash of the tokenizer."""

    @property
    def hash(self) -> str:
        """Identifies the plan; every file of a shard records it."""
        return short_hash(dataclasses.asdict(self))


@dataclass(frozen=True)
class Group:
    """An encoded group of parts.

    The validation tokens of all groups become one shard: each group has few, and separate shards
    would drop many of them at their ends.
    """

    number: Count
    train: Split
    """With one shard, or none."""
    validation: dict[str, Count]
    """Counts of the fields of `Split`."""
    validation_sha256: str
    """Of the file of validation tokens (`tokens_name`)."""
    skipped: dict[str, Count]
    """Number of skipped pairs, by reason."""


@dataclass(frozen=True)
class Piece:
    """The record of a shard: its groups, and the census of the complete corpus."""

    plan: str
    documents: Count
    skipped: dict[str, Count]
    held_out: Count
    groups: tuple[Group, ...]

    @property
    def corpus(self) -> tuple:
        """The census, which must be the same for all shards."""
        return self.documents, self.skipped, self.held_out


def work_folder(out: str | os.PathLike[str]) -> Path:
    """The folder of the shards of a data folder."""
    return Path(f"{Path(out)}.shards")


def shard_name(plan: Plan, index: int) -> str:
    """The name of a shard's folder."""
    return f"shard-{index:05d}-of-{plan.shards:05d}"


def tokens_name(number: int) -> str:
    """The name of the file of a group's validation tokens."""
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
            raise ValueError(f"it has {plan.shards} shards of {plan.groups} groups")
        return plan
    except FileNotFoundError:
        raise ConfigError(
            f"{out} has no shards: {file} does not exist. Make them: "
            f"gpt3jax data prepare --corpus FILES --out {out} --tokenizer T --shard I/N, for each I"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{file} is damaged: {error}. Delete {file.parent}, and make the shards again"
        ) from error


def finished(out: str) -> tuple[int, int]:
    """The number of complete shards of a data folder, and of all."""
    plan, work = read_plan(out), work_folder(out)
    count = sum((work / shard_name(plan, i) / RECORD).is_file() for i in range(plan.shards))
    return count, plan.shards


def read_piece(work: Path, plan: Plan, index: int) -> Piece:
    """The record of a shard, after checking its files against it.

    Raises:
      OSError: a file is missing.
      ValueError: a file does not match the record, or the record belongs to another shard.
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
