"""Shards of a data folder, verified and joined."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from gpt3jax.data.corpora.open import Corpus
from gpt3jax.data.manifest import TOKENIZER, Manifest, load_manifest, verify
from gpt3jax.data.prepare.census import Census
from gpt3jax.data.prepare.encode import Encoded, Job
from gpt3jax.data.prepare.pieces import (
    PLAN,
    Piece,
    Plan,
    read_piece,
    read_plan,
    shard_name,
    tokens_name,
    work_folder,
)
from gpt3jax.data.prepare.prepare import Progress, difference, finish, tracked
from gpt3jax.data.prepare.worker_pool import processes
from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.errors import ConfigError
from gpt3jax.runtime.atomic_folder import atomic_folder, is_free


def merge_shards(
    out: str,
    tell: Callable[[str], None],
    workers: int | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Make a data folder of its shards, or find that it is there already.

    Nothing is merged until every shard is there, of one plan, and every byte is what
    was written. Files are linked, not moved, so that an attempt that is killed leaves
    the shards as they are; they go when the folder is there.

    Args:
      out: the folder, as the shards were given it.
      tell: called with a line about each shard that cannot be merged.
      workers: processes that read the shards again; None for one per core.
      progress: called with the name of a stage and the share of it that is done.

    Raises:
      ConfigError: there are no shards, one cannot be merged, or no run could use them.
    """
    work = work_folder(out)
    if not is_free(out):
        manifest = verify(out)
        if (work / PLAN).is_file():
            plan = read_plan(out)
            if why := difference(manifest, plan.settings | {"tokenizer": plan.tokenizer}):
                raise ConfigError(
                    f"{out} was made differently from {work}: {why}. Delete one of them"
                )
            shutil.rmtree(work)  # A merge was killed before it came to this.
        return manifest
    plan = read_plan(out)
    report = progress or (lambda stage, share: None)
    with atomic_folder(Path(out), is_only=True) as folder:
        with processes(max(1, min(workers or os.cpu_count() or 1, plan.shards))) as run:
            looking = run(partial(_look, work, plan), range(plan.shards))
            found = list(tracked(report, "verifying", looking, plan.shards))
        _join(folder, work, plan, _all_whole(found, plan, out, tell))
    shutil.rmtree(work)
    return load_manifest(out)


def _look(work: Path, plan: Plan, index: int) -> Piece | str:
    """A shard, or in words why it cannot be merged."""
    name = shard_name(plan, index)
    if is_free(work / name):
        begun = any(work.glob(f"{name}.partial-*"))
        return "is missing: " + ("begun, not finished" if begun else "never begun")
    try:
        return read_piece(work, plan, index)
    except (OSError, ValueError) as error:
        return f"is damaged: {error}. Delete {work / name}"


def _all_whole(
    found: Sequence[Piece | str], plan: Plan, out: str, tell: Callable[[str], None]
) -> list[Piece]:
    """The pieces, if all are there and found one corpus."""
    first = next((piece for piece in found if isinstance(piece, Piece)), None)
    faults = {}
    for index, piece in enumerate(found):
        if isinstance(piece, str):
            faults[index] = piece
        elif piece.corpus != first.corpus:
            faults[index] = (
                f"found another corpus: {piece.documents} documents, not {first.documents}. "
                f"Delete {work_folder(out) / shard_name(plan, index)}"
            )
    for index, why in faults.items():
        tell(f"shard {index}/{plan.shards} {why}")
    if faults:
        numbers = ",".join(map(str, faults))
        raise ConfigError(
            f"{out} is not merged: of {plan.shards} shards {len(faults)} cannot be used "
            f"({numbers if len(numbers) < 80 else numbers[:80] + '...'}). Make them: the same "
            "command with --shard I/N again"
        )
    return list(found)


def _join(folder: Path, work: Path, plan: Plan, pieces: Sequence[Piece]) -> None:
    """Everything between an empty folder and its manifest, from the files of the shards."""
    groups: dict[int, Encoded] = {}
    for index, piece in enumerate(pieces):
        source = work / shard_name(plan, index)
        for group in piece.groups:
            for name in (tokens_name(group.number), *(shard.name for shard in group.train.shards)):
                _link(source / name, folder / name)
            groups[group.number] = Encoded(
                group.train,
                Counter(group.validation),
                folder / tokens_name(group.number),
                Counter(group.skipped),
            )
    tokenizer = Tokenizer.load(work / shard_name(plan, 0) / TOKENIZER, plan.tokenizer)
    tokenizer.save(folder / TOKENIZER)
    census = Census(documents=pieces[0].documents, skipped=Counter(pieces[0].skipped))
    reader = Corpus(plan.corpus, plan.pairs or (plan.field,), ())
    job = Job(reader, folder, plan.context, pieces[0].held_out)
    finish(job, plan.settings, tokenizer, census, [groups[n] for n in range(plan.groups)])


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # Buckets that are mounted have no links.
        shutil.copyfile(source, target)
