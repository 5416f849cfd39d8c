"""Prepare one shard of a data folder (`--shard I/N`), coordinated only by a file system.

The groups of parts are those of a single process (prepare.py); shard I has the
groups I, I+N, ... The held-out documents are known once all groups are counted,
so a shard counts its own groups first, then all others that are not counted yet,
and then encodes its own. Shards never wait for each other: a queue may start
them in any order, in sequence or concurrently. Files are written under temporary
names and renamed, and their bytes depend on the plan only, so duplicate and
repeated attempts are harmless. pieces.py describes the files.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gpt3jax import serde
from gpt3jax.data.corpora.open import Corpus, Part
from gpt3jax.data.manifest import TOKENIZER, sha256
from gpt3jax.data.prepare.census import BUCKETS, Census, merge, take_census, warn_of_special
from gpt3jax.data.prepare.encode import Encoded, encode_group
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
    work_folder,
)
from gpt3jax.data.prepare.prepare import Progress, Request, difference, find_same, make_job, tracked
from gpt3jax.data.prepare.worker_pool import processes
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
    req: Request, shard: tuple[int, int], progress: Progress | None = None
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
    plan = Plan(count, len(groups), req.tokenizer.hash, **req.settings)
    work = _begin(req.out, plan)
    target = work / shard_name(plan, index)
    if is_free(target):
        try:
            with atomic_folder(target) as folder:
                _encode(req, plan, index, folder, groups, progress or (lambda stage, share: None))
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
    if why := difference(read_plan(out), dataclasses.asdict(plan)):
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
    for number, result in zip(own, results, strict=True):
        _check_counts(counted[number], result, groups[number], job.has_pairs)
    records = tuple(map(_group, own, results))
    piece = Piece(plan.hash, census.documents, dict(census.skipped), job.held_out, records)
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
    counted: tuple[int, int], result: Encoded, group: Sequence[Part], has_pairs: bool
) -> None:
    """Refuse a group whose text has changed since its census."""
    documents = result.train.documents + result.validation["documents"] + result.skipped.total()
    size = result.train.bytes + result.validation["bytes"]
    if documents != counted[0] or (size != counted[1] and not has_pairs):
        raise ConfigError(
            f"the corpus has changed: {group[0].key} and {len(group) - 1} parts with it had "
            f"{counted[0]} documents, {counted[1]} bytes, now {documents}, {size}. Delete the "
            "folder of the shards, and make them again"
        )


def _group(number: int, result: Encoded) -> Group:
    digest = sha256(result.validation_tokens)
    return Group(number, result.train, dict(result.validation), digest, dict(result.skipped))
