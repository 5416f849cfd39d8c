"""Prepare one shard of a data folder (`--shard I/N`), and merge the shards.

Only a file system coordinates the shards. The groups of parts are those of a
single process (prepare.py); shard I has the groups I, I+N, ... The held-out
documents are known once all groups are counted, so a shard counts its own groups
first, then all others that are not counted yet, and then encodes its own. Shards
never wait for each other: a queue may start them in any order, in sequence or
concurrently. Files are written under temporary names and renamed, and their bytes
depend on the plan only, so duplicate and repeated attempts are harmless.
pieces.py describes the files.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gpt3jax import serde
from gpt3jax.data.corpora.open import Corpus, Part
from gpt3jax.data.manifest import TOKENIZER, Manifest, load_manifest, verify
from gpt3jax.data.prepare.census import BUCKETS, Census, merge, take_census, warn_of_special
from gpt3jax.data.prepare.encode import Job, encode_group
from gpt3jax.data.prepare.pieces import (
    MOST,
    PLAN,
    RECORD,
    Group,
    Piece,
    Plan,
    read_piece,
    read_plan,
    shard_name,
    tokens_name,
    work_folder,
)
from gpt3jax.data.prepare.prepare import (
    Progress,
    Request,
    difference,
    find_same,
    finish,
    make_job,
    tracked,
)
from gpt3jax.data.prepare.worker_pool import processes
from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.errors import ConfigError
from gpt3jax.runtime.atomic_folder import atomic_folder, is_free
from gpt3jax.serde import Count


def parse_shard(text: str) -> tuple[int, int]:
    """Parse `3/16` to (3, 16), the index of a shard and the number of shards.

    Raises:
      ConfigError: the text is not of this form.
    """
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII)
    if not match:
        raise ConfigError(f"--shard is {text!r}: it must be I/N, from 0/16 to 15/16. Change it")
    index, count = map(int, match.groups())
    if not 1 <= count <= MOST:
        raise ConfigError(f"--shard is {text}: there are from 1 to {MOST:,} shards. Change N")
    if index >= count:
        raise ConfigError(
            f"--shard is {text}: shards count from 0, so the last is {count - 1}/{count}. "
            f"Change I (of a Slurm array: --array 0-{count - 1})"
        )
    return index, count


def prepare_shard(
    req: Request, shard: tuple[int, int], progress: Progress = lambda stage, share: None
) -> Piece | None:
    """Prepare one shard of a data folder, or verify it if it exists.

    Args:
      req: the request, the same for all shards, with a tokenizer.
      shard: its index, and the number of shards.
      progress: called with the name of a stage and its completed fraction.

    Returns:
      The record of the shard, or None if the shards are already merged.

    Raises:
      ConfigError: the request is invalid or differs from that of the other shards, or the
        corpus has changed.
    """
    index, count = shard
    if req.tokenizer is None:
        raise ConfigError(
            "--shard requires --tokenizer: all shards use the same. Train one on a part of the "
            "text, gpt3jax data prepare --corpus PART --out data/part, and name data/part"
        )
    if not is_free(req.out):
        find_same(req)
        return None
    groups = req.groups
    plan = Plan(
        shards=count, groups=len(groups), tokenizer=req.tokenizer.hash, **req.settings.values
    )
    work = _begin(req.out, plan)
    target = work / shard_name(plan, index)
    if is_free(target):
        try:
            with atomic_folder(target) as folder:
                _encode(req, plan, index, folder, groups, progress)
        except OSError:
            if is_free(target):
                raise  # Otherwise another process wrote the same bytes first.
    try:
        return read_piece(work, plan, index)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{target} is damaged: {error}. Delete it, and make the shard again"
        ) from error


def _begin(out: str, plan: Plan) -> Path:
    """The work folder of a plan; raises ConfigError if it has another plan."""
    work = work_folder(out)
    if is_free(work):
        try:
            with atomic_folder(work) as folder:
                (folder / PLAN).write_text(json.dumps(dataclasses.asdict(plan), indent=2) + "\n")
        except OSError:
            if is_free(work):
                raise  # Otherwise another shard wrote the plan first.
    # The tokenizer first: its name says more than its vocabulary.
    if why := difference(read_plan(out), {"tokenizer": plan.tokenizer, **vars(plan)}):
        raise ConfigError(
            f"{work} was started differently: {why}. All shards take the same settings: change "
            "them, choose another --out, or delete that folder"
        )
    return work


def _encode(
    req: Request,
    plan: Plan,
    index: int,
    folder: Path,
    groups: Sequence[tuple[Part, ...]],
    progress: Progress,
) -> None:
    """Write all files of a shard into its folder, the record last."""
    assert req.tokenizer is not None
    own = range(index, len(groups), plan.shards)
    # Own groups first, then those of the next shards, so that shards count different groups.
    neighbours = [(index + i) % plan.shards for i in range(plan.shards)]
    order = [n for shard in neighbours for n in range(shard, len(groups), plan.shards)]
    counted = {}

    def record_sizes(censuses: Iterator[Census]) -> Iterator[Census]:
        for number, census in zip(order, censuses, strict=True):
            counted[number] = (census.documents, int(census.bytes.sum()))
            yield census

    with processes(max(1, min(req.workers, len(groups)))) as run:
        count = partial(_count, folder.parent, plan.hash, req.reader, req.tokenizer.special)
        reading = run(count, [(number, groups[number]) for number in order])
        tracked_reading = tracked(progress, "reading", reading, len(groups))
        census = merge(record_sizes(tracked_reading), req.corpus)
        req.tokenizer.save(folder / TOKENIZER)
        warn_of_special(census.special)
        job = make_job(req, folder, census)
        encoding = run(partial(encode_group, job), [(number, groups[number]) for number in own])
        results = list(tracked(progress, "encoding", encoding, len(own)))
    for result in results:
        number = result.number
        _check_counts(counted[number], result, groups[number], job.has_pairs)
    piece = Piece(plan.hash, census.documents, dict(census.skipped), job.held_out, tuple(results))
    (folder / RECORD).write_text(json.dumps(dataclasses.asdict(piece)) + "\n")


def _count(
    work: Path,
    plan: str,
    corpus: Corpus,
    special: Sequence[str],
    numbered: tuple[int, tuple[Part, ...]],
) -> Census:
    """The census of a group, read from its file or taken and stored there."""
    number, group = numbered
    file = work / f"census-{number:05d}.json"
    try:
        record = serde.build(dict[str, Any], serde.read(file))
        if record["plan"] == plan:
            return _parse_census(record)
    except (OSError, ValueError, KeyError):
        pass  # It does not exist or is damaged: take it again.
    census = take_census(corpus, special, group)
    filled = np.flatnonzero(census.bytes)
    record = {
        "plan": plan,
        "documents": census.documents,
        "bytes": {str(bucket): int(census.bytes[bucket]) for bucket in filled},
        "detail": census.detail,
        "skipped": census.skipped,
        "special": census.special,
    }
    own = file.with_name(f"{file.name}.partial-{socket.gethostname()}-{os.getpid()}")
    own.write_text(json.dumps(record) + "\n")
    own.replace(file)
    return census


def _parse_census(record: dict[str, Any]) -> Census:
    census = Census(
        documents=serde.build(Count, record["documents"]),
        skipped=Counter(serde.build(dict[str, Count], record["skipped"])),
        detail=serde.build(str, record["detail"]),
        special=Counter(serde.build(dict[str, Count], record["special"])),
    )
    sizes = serde.build(dict[str, Count], record["bytes"])
    buckets = list(map(int, sizes))
    if buckets and not 0 <= min(buckets) <= max(buckets) < BUCKETS:
        raise ValueError("a bucket is out of range")
    census.bytes[buckets] = list(sizes.values())
    return census


def _check_counts(
    counted: tuple[int, int], result: Group, group: Sequence[Part], has_pairs: bool
) -> None:
    """Refuse a group whose text has changed since its census."""
    held_out = Counter(result.validation)
    skipped = sum(result.skipped.values())
    documents = result.train.documents + held_out["documents"] + skipped
    size = result.train.bytes + held_out["bytes"]
    if documents != counted[0] or (size != counted[1] and not has_pairs):
        raise ConfigError(
            f"the corpus has changed: {group[0].key} and {len(group) - 1} parts with it had "
            f"{counted[0]} documents, {counted[1]} bytes, now {documents}, {size}. Delete the "
            "folder of the shards, and make them again"
        )


def merge_shards(
    out: str,
    warn: Callable[[str], None],
    workers: int | None = None,
    progress: Progress = lambda stage, share: None,
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
            if why := difference(manifest, plan.values | {"tokenizer": plan.tokenizer}):
                raise ConfigError(
                    f"{out} was made differently from {work}: {why}. Delete one of them"
                )
            shutil.rmtree(work)  # Left by a merge that was killed.
        return manifest
    plan = read_plan(out)
    with atomic_folder(Path(out), is_only=True) as folder:
        with processes(max(1, min(workers or os.cpu_count() or 1, plan.shards))) as run:
            checks = run(partial(_check_shard, work, plan), range(plan.shards))
            results = list(tracked(progress, "verifying", checks, plan.shards))
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
    groups: dict[int, Group] = {}
    for index, piece in enumerate(pieces):
        source = work / shard_name(plan, index)
        for group in piece.groups:
            for name in (tokens_name(group.number), *(shard.name for shard in group.train.shards)):
                _link(source / name, folder / name)
            groups[group.number] = group
    tokenizer = Tokenizer.load(work / shard_name(plan, 0) / TOKENIZER, plan.tokenizer)
    tokenizer.save(folder / TOKENIZER)
    census = Census(documents=pieces[0].documents, skipped=Counter(pieces[0].skipped))
    reader = Corpus(plan.corpus, plan.pairs or (plan.field,), ())
    job = Job(reader, folder, plan.context, pieces[0].held_out)
    finish(job, plan, tokenizer, census, [groups[n] for n in range(plan.groups)])


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # Mounted buckets do not support links.
        shutil.copyfile(source, target)
