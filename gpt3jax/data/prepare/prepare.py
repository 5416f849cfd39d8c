"""Text to windows: `prepare` writes the data folder that training reads.

    corpus -> census (counts, sample, held-out buckets) -> tokenizer -> shards -> manifest

Documents, each followed by end-of-text, are concatenated and cut into windows of
context+1 tokens. A window begins with the last token of the previous one, so
that every token is a target exactly once. Parts of the corpus are assigned to
shards in advance, and one process writes each shard from start to end, so the
bytes do not depend on the number of processes or machines (shards.py).
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from gpt3jax.data.corpora.documents import count_of, count_reasons, hash_key
from gpt3jax.data.corpora.open import Corpus, Part, check_fields_used, open_corpus
from gpt3jax.data.manifest import (
    MANIFEST,
    TOKENIZER,
    Manifest,
    Settings,
    Split,
    load_manifest,
    verify,
)
from gpt3jax.data.prepare.census import Census, merge, take_census, warn_of_special
from gpt3jax.data.prepare.encode import Job, encode_group, window_dtype, write_validation
from gpt3jax.data.prepare.pieces import Group
from gpt3jax.data.prepare.worker_pool import processes
from gpt3jax.data.tokenizer import Tokenizer, train_tokenizer
from gpt3jax.errors import ConfigError
from gpt3jax.runtime.atomic_folder import atomic_folder, is_free
from gpt3jax.serde import short_hash

SHARD_BYTES = 4 << 20
"""Approximate text in a shard; more if there would be over `SHARDS` of them."""
SHARDS = 256
"""Maximum number of shards: a reader has all of them open."""

VOCABULARY = 2048
"""Default for tokenizers that are trained."""
LARGEST = 10_000_000
"""Maximum context and vocabulary."""

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Request:
    """A validated request to prepare a data folder."""

    corpus: Corpus
    out: str
    tokenizer: Tokenizer | None
    """None: one is trained."""
    settings: Settings
    workers: int

    @property
    def reader(self) -> Corpus:
        """The corpus without its parts, which is cheap to send to workers."""
        return dataclasses.replace(self.corpus, parts=(), skipped=())

    @property
    def groups(self) -> list[tuple[Part, ...]]:
        """The parts, shuffled by the seed and grouped to shards of about equal size."""
        return _group_parts(self.corpus.parts, self.settings.seed)


def request(
    corpus_spec: str | Sequence[str],
    out: str,
    *,
    context: int,
    vocabulary: int | None = None,
    tokenizer: str | None = None,
    field: str | None = None,
    pairs: tuple[str, str] | None = None,
    validation_fraction: float = 0.01,
    workers: int | None = None,
    seed: int = 0,
) -> Request:
    """Validate a request to prepare a data folder.

    Args:
      corpus_spec: see `open_corpus`.
      out: the data folder; it is created atomically.
      context: of the model; windows have one token more.
      vocabulary: of the tokenizer to train (default: `VOCABULARY`); ignored if one is given.
      tokenizer: a tokenizer file to use, or a run or data folder that has one.
      field: of the text in JSON, Parquet and Hugging Face records (default: `text`).
      pairs: the fields of a prompt and its completion instead; the loss covers only the
        completion. Pairs are never cut, and those longer than the context are skipped.
      validation_fraction: share of the text to hold out, in complete documents. They are
        chosen by a hash of their keys, independently of seed and other settings.
      workers: number of processes; None for one per core.
      seed: shuffles the parts of the corpus among the shards.

    Raises:
      ConfigError: the request is invalid.
    """
    workers = os.cpu_count() or 1 if workers is None else workers
    size = VOCABULARY if vocabulary is None else vocabulary
    _check(out, context, size, validation_fraction, workers)
    if pairs and not tokenizer:
        raise ConfigError(
            "--pairs requires --tokenizer: pairs fine-tune a model that has one. Name its run"
        )
    given = Tokenizer.load(tokenizer_file(tokenizer)) if tokenizer else None
    if pairs and field is not None:
        raise ConfigError("--field excludes --pairs, which names the fields. Leave out one")
    fields = pairs or (() if field is None else (field,))
    corpus = open_corpus(corpus_spec, *fields)
    if fields:
        check_fields_used(corpus)
    settings = Settings(
        corpus=corpus.name,
        field=field or "text",
        pairs=tuple(pairs or ()),
        corpus_hash=short_hash([[part.key, part.bytes] for part in corpus.parts]),
        context=context,
        vocabulary=given.vocabulary if given else size,
        tokenizer_trained=given is None,
        validation_fraction=float(validation_fraction),
        seed=seed,
    )
    return Request(corpus, out, given, settings, workers)


def prepare(
    corpus_spec: str | Sequence[str],
    out: str,
    *,
    progress: Progress = lambda stage, share: None,
    **settings: Any,
) -> Manifest:
    """Prepare a data folder, or verify it if it exists with the same settings.

    Args:
      corpus_spec: see `open_corpus`.
      out: the data folder; it is created atomically.
      progress: called with the name of a stage and its completed fraction.
      settings: the other arguments of `request`.

    Raises:
      ConfigError: the request is invalid, or `out` exists with other content.
    """
    req = request(corpus_spec, out, **settings)
    if not is_free(out):
        return verify(find_same(req).folder)
    with atomic_folder(Path(out), is_only=True) as folder:
        _write(req, folder, progress)
    return load_manifest(out)


def _check(
    out: str, context: int, vocabulary: int, validation_fraction: float, workers: int
) -> None:
    if not out.isprintable():
        raise ConfigError(
            f"--out is {out!r}: the name must be printable, on one line. Choose another"
        )
    if context < 1:
        raise ConfigError(f"--context is {context}: a window has at least 1 token. Raise it")
    for flag, value in (("--context", context), ("--vocabulary", vocabulary)):
        if value > LARGEST:
            raise ConfigError(f"{flag} is {value}: at most {LARGEST:,} is supported. Lower it")
    if not 0 <= validation_fraction < 1:
        raise ConfigError(
            f"--validation-fraction is {validation_fraction}: it must be at least 0 and below 1. "
            "Change it"
        )
    if workers < 1:
        raise ConfigError(f"--workers is {workers}: at least 1 is needed. Raise or omit it")


def tokenizer_file(path: str) -> Path:
    """The tokenizer file at a path, which may be a run or data folder."""
    return Path(path, TOKENIZER) if os.path.isdir(path) else Path(path)


def find_same(req: Request) -> Manifest:
    """The manifest of an existing folder with the same settings.

    Raises:
      ConfigError: the folder has other content.
    """
    if not os.path.lexists(os.path.join(req.out, MANIFEST)):
        raise ConfigError(
            f"{req.out} exists and is not prepared data: nothing is overwritten. "
            "Choose another --out"
        )
    manifest = load_manifest(req.out)
    given = {"tokenizer": req.tokenizer.hash} if req.tokenizer else {}
    if why := difference(manifest, req.settings.values | given):
        raise ConfigError(
            f"{req.out} has data that was made differently: {why}. Choose another --out, or "
            "delete that folder"
        )
    return manifest


def difference(record: Any, settings: dict[str, Any]) -> str | None:
    """A description of the first setting that differs, or None."""
    for name, value in settings.items():
        if (old := getattr(record, name)) != value:
            changed = "the corpus has changed"
            return changed if name == "corpus_hash" else f"{name} {old}, now {value}"
    return None


def tracked(progress: Progress, stage: str, results: Iterable, count: int) -> Iterator:
    """Yield the results, and report the completed fraction after each."""
    for done, result in enumerate(results, 1):
        progress(stage, done / count)
        yield result


def _write(req: Request, folder: Path, progress: Progress) -> None:
    """Fill an empty folder, and write its manifest."""
    corpus, groups, given = req.corpus, req.groups, req.tokenizer
    with processes(max(1, min(req.workers, len(groups)))) as run:
        special = given.special if given else None
        reading = run(partial(take_census, req.reader, special), groups)
        census = merge(tracked(progress, "reading", reading, len(groups)), corpus)
        tokenizer = given or _train_tokenizer(census, req.settings.vocabulary, progress)
        tokenizer.save(folder / TOKENIZER)
        warn_of_special(census.special)
        job = make_job(req, folder, census)
        encoding = run(partial(encode_group, job), enumerate(groups))
        results = list(tracked(progress, "encoding", encoding, len(groups)))
    finish(job, req.settings, tokenizer, census, results)


def make_job(req: Request, folder: Path, census: Census) -> Job:
    """The encoding job: after the census, the held-out documents are known."""
    fraction = req.settings.validation_fraction
    tail = 0.0 if req.settings.pairs else census.tail(fraction)  # A pair is never cut.
    return Job(req.reader, folder, req.settings.context, census.held_out(fraction), tail)


def finish(
    job: Job, settings: Settings, tokenizer: Tokenizer, census: Census, results: Sequence[Group]
) -> None:
    """Number the shards of all groups consecutively, and write the manifest.

    Args:
      job: its folder has the tokenizer and the files of each group.
      settings: for the manifest.
      tokenizer: of the folder.
      census: its documents and skipped records.
      results: of all groups, in order.

    Raises:
      ConfigError: there is no training window, or no validation window.
    """
    train = _number("train", job.folder, [result.train for result in results])
    validation = _number("validation", job.folder, [write_validation(job, tokenizer, results)])
    skipped = sum((Counter(result.skipped) for result in results), census.skipped)
    _check_windows(train, validation, settings, census.documents, skipped)
    Manifest(
        folder=job.folder,
        **settings.values,
        tokenizer=tokenizer.hash,
        end_of_text=tokenizer.end_of_text,
        dtype=cast(Any, window_dtype(tokenizer, job.has_pairs).str),
        skipped=dict(sorted(skipped.items())),
        train=train,
        validation=validation,
    ).write()


def _group_parts(parts: tuple[Part, ...], seed: int) -> list[tuple[Part, ...]]:
    target = max(SHARD_BYTES, sum(part.bytes for part in parts) // SHARDS)
    groups, group, size = [], [], 0
    for part in sorted(parts, key=lambda part: (hash_key(f"{seed}:{part.key}"), part.key)):
        group.append(part)
        size += part.bytes
        if size >= target:
            groups.append(tuple(group))
            group, size = [], 0
    return groups + ([tuple(group)] if group else [])


def _train_tokenizer(census: Census, vocabulary: int, progress: Progress) -> Tokenizer:
    progress("training the tokenizer", 0.0)
    tokenizer = Tokenizer(train_tokenizer((text for _, text in census.sample), vocabulary))
    progress("training the tokenizer", 1.0)
    return tokenizer


def _number(name: str, folder: Path, pieces: list[Split]) -> Split:
    """Join splits to one; rename its shards to `name-00000-of-00004.array_record` and so on."""
    unnumbered = [shard for piece in pieces for shard in piece.shards]
    shards = []
    for i, shard in enumerate(unnumbered):
        final = f"{name}-{i:05d}-of-{len(unnumbered):05d}.array_record"
        os.rename(folder / shard.name, folder / final)
        shards.append(dataclasses.replace(shard, name=final))
    totals = {
        field.name: sum(getattr(piece, field.name) for piece in pieces)
        for field in dataclasses.fields(Split)
        if field.name != "shards"
    }
    return Split(**totals, shards=tuple(shards))


def _check_windows(
    train: Split, validation: Split, settings: Settings, documents: int, skipped: Counter
) -> None:
    """Refuse data without a training window, or with an empty validation split."""
    context, fraction = settings.context, settings.validation_fraction
    if settings.pairs and train.windows == 0:
        none = "hold out none: --validation-fraction 0, " if validation.documents else ""
        raise ConfigError(
            f"no pair is left to train on (skipped: {count_reasons(skipped) or 'none'}; held out: "
            f"{validation.documents}): a pair and its end-of-text must fit {context + 1} tokens. "
            f"Add pairs, {none}or raise --context with the model's"
        )
    # The first window begins with an extra end-of-text, so it takes `context` tokens of text.
    if train.windows == 0:
        none = ", or hold out none: --validation-fraction 0" if validation.tokens >= context else ""
        raise ConfigError(
            f"the text gives no training window: of {count_of(documents, 'document')}, "
            f"{train.tokens} tokens are for training and {validation.tokens} held out, and a "
            f"window takes {context}. Add text, or lower --context{none}"
        )
    if fraction and validation.windows == 0:
        raise ConfigError(
            f"no validation window: the held-out text has {validation.tokens} tokens and a window "
            f"takes {context}. Raise --validation-fraction, or set it to 0 for none"
        )
