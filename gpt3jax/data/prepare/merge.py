"""Verify and merge the separately prepared shards of a data folder."""

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
    warn: Callable[[str], None],
    workers: int | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Merge shards to a data folder, or verify the folder if it exists.

    All shards must exist, belong to one plan, and match their checksums. Files
    are linked rather than moved, so that an interrupted merge leaves the shards
    intact; they are deleted once the folder is complete.

    Args:
      out: the data folder; the `--out` of the shards.
      warn: called with a line about each shard that cannot be merged.
      workers: processes that verify the shards; None for one per core.
      progress: called with the name of a stage and its completed fraction.

    Raises:
      ConfigError: there are no shards, one cannot be merged, or the data is too small.
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
            shutil.rmtree(work)  # Left by a merge that was killed.
        return manifest
    plan = read_plan(out)
    report = progress or (lambda stage, share: None)
    with atomic_folder(Path(out), is_only=True) as folder:
        with processes(max(1, min(workers or os.cpu_count() or 1, plan.shards))) as run:
            checks = run(partial(_check_shard, work, plan), range(plan.shards))
            results = list(tracked(report, "verifying", checks, plan.shards))
        _join(folder, work, plan, _require_all(results, plan, out, warn))
    shutil.rmtree(work)
    return load_manifest(out)


def _check_shard(work: Path, plan: Plan, index: int) -> Piece | str:
    """The record of a shard, or the reason why it cannot be merged."""
    name = shard_name(plan, index)
    if is_free(work / name):
        is_started = any(work.glob(f"{name}.partial-*"))
        return "is missing: " + ("started but not finished" if is_started else "never started")
    try:
        return read_piece(work, plan, index)
    except (OSError, ValueError) as error:
        return f"is damaged: {error}. Delete {work / name}"


def _require_all(
    results: Sequence[Piece | str], plan: Plan, out: str, warn: Callable[[str], None]
) -> list[Piece]:
    """The records of all shards; refuses missing and damaged shards and different corpora."""
    pieces: list[Piece] = []
    faults = {}
    for index, result in enumerate(results):
        if isinstance(result, str):
            faults[index] = result
        elif pieces and result.corpus != pieces[0].corpus:
            faults[index] = (
                f"found another corpus: {result.documents} documents, not {pieces[0].documents}. "
                f"Delete {work_folder(out) / shard_name(plan, index)}"
            )
        else:
            pieces.append(result)
    for index, why in faults.items():
        warn(f"shard {index}/{plan.shards} {why}")
    if faults:
        numbers = ",".join(map(str, faults))
        raise ConfigError(
            f"{out} is not merged: of {plan.shards} shards {len(faults)} cannot be used "
            f"({numbers if len(numbers) < 80 else numbers[:80] + '...'}). Make them: the same "
            "command with --shard I/N again"
        )
    return pieces


def _join(folder: Path, work: Path, plan: Plan, pieces: Sequence[Piece]) -> None:
    """Fill an empty folder from the files of the shards, and write its manifest."""
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
    except OSError:  # Mounted buckets do not support links.
        shutil.copyfile(source, target)
