"""Text to windows: `prepare` makes the folder that training reads.

    corpus -> census (counts, sample, what to hold out) -> tokenizer -> shards -> manifest

Documents, each followed by end-of-text, are joined into a stream and cut into
windows of context+1 tokens. A window begins with the last token of the one
before, so every token is predicted exactly once. Parts of the corpus are dealt
to shards before any work begins and a shard is written from start to end by one
process, so the bytes do not depend on how many processes there are, or on how
many machines (shards.py).
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gpt3jax.data.corpora.documents import count_of, count_reasons, hash_key
from gpt3jax.data.corpora.open import Corpus, Part, check_fields_used, open_corpus
from gpt3jax.data.manifest import MANIFEST, TOKENIZER, Manifest, Split, load_manifest, verify
from gpt3jax.data.prepare.census import Census, merge, take_census, warn_of_special
from gpt3jax.data.prepare.encode import Encoded, Job, encode_group, window_dtype, write_validation
from gpt3jax.data.prepare.worker_pool import processes
from gpt3jax.data.tokenizer import Tokenizer, train_tokenizer
from gpt3jax.errors import ConfigError
from gpt3jax.runtime.atomic_folder import atomic_folder, is_free
from gpt3jax.serde import short_hash

SHARD_BYTES = 4 << 20
"""Text in a shard, about, until there are `SHARDS` of them."""
SHARDS = 256
"""Shards at most: a reader keeps every one open."""

VOCABULARY = 2048
"""Of a tokenizer that is trained, if nothing else is asked for."""
LARGEST = 10_000_000
"""Context or vocabulary."""

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Request:
    """What is to be made, looked through and found possible."""

    corpus: Corpus
    out: str
    tokenizer: Tokenizer | None
    """The one that was given; none: it is to be trained."""
    settings: dict[str, Any]
    """As the manifest will have them."""
    workers: int

    @property
    def reader(self) -> Corpus:
        """The corpus without its parts: jobs carry their own, all with each would be much."""
        return dataclasses.replace(self.corpus, parts=(), skipped=())

    @property
    def groups(self) -> list[tuple[Part, ...]]:
        """The parts, in an order drawn by the seed, dealt to files of about equal size."""
        return _deal(self.corpus.parts, self.settings["seed"])


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
    """Look through what is asked for.

    Args:
      corpus_spec: see `corpus.open_corpus`.
      out: the folder; it appears whole, when all is done.
      context: tokens that a model sees at once; windows have one more.
      vocabulary: of the tokenizer to train, `VOCABULARY` if not given; of one that is given, its
        own.
      tokenizer: a SentencePiece model file to use, or a run or data folder that has one.
      field: where JSON, Parquet and Hugging Face records keep the text; `text` if not given.
      pairs: where they keep a prompt and its completion instead: the completion is learned, the
        prompt only read; both stay whole, and those longer than the context are left out.
      validation_fraction: share of the text held out, by whole documents, drawn by
        a hash of their keys: other seeds and settings hold out the same ones.
      workers: processes; None for one per core.
      seed: shuffles the parts of the corpus among the shards.

    Raises:
      ConfigError: it cannot work.
    """
    workers = os.cpu_count() or 1 if workers is None else workers
    size = VOCABULARY if vocabulary is None else vocabulary
    _check(out, context, size, validation_fraction, workers)
    if pairs and not tokenizer:
        raise ConfigError(
            "--pairs goes with --tokenizer: pairs teach a model that has one. Name its run"
        )
    given = Tokenizer.load(tokenizer_file(tokenizer)) if tokenizer else None
    if pairs and field is not None:
        raise ConfigError("--field goes without --pairs: these name the fields. Leave out one")
    fields = pairs or (() if field is None else (field,))
    corpus = open_corpus(corpus_spec, *fields)
    if fields:
        check_fields_used(corpus)
    settings = {
        "corpus": corpus.name,
        "field": field or "text",
        "pairs": tuple(pairs or ()),
        "corpus_hash": short_hash([[part.key, part.bytes] for part in corpus.parts]),
        "context": context,
        "vocabulary": given.vocabulary if given else size,
        "tokenizer_trained": given is None,
        "validation_fraction": float(validation_fraction),
        "seed": seed,
    }
    return Request(corpus, out, given, settings, workers)


def prepare(
    corpus_spec: str | Sequence[str],
    out: str,
    *,
    progress: Progress | None = None,
    **asked: Any,
) -> Manifest:
    """Make a data folder, or find that it is there already.

    Args:
      corpus_spec: see `corpus.open_corpus`.
      out: the folder; it appears whole, when all is done.
      progress: called with the name of a stage and the share of it that is done.
      asked: the rest of what `request` takes.

    Raises:
      ConfigError: the request cannot work, or `out` holds something else.
    """
    made = request(corpus_spec, out, **asked)
    if not is_free(out):
        return verify(find_same(made).folder)
    with atomic_folder(Path(out), is_only=True) as folder:
        _write(made, folder, progress or (lambda stage, share: None))
    return load_manifest(out)


def _check(
    out: str, context: int, vocabulary: int, validation_fraction: float, workers: int
) -> None:
    if not out.isprintable():
        raise ConfigError(
            f"--out is {out!r}: shards take a name that is text, on one line. Choose another"
        )
    if context < 1:
        raise ConfigError(f"--context is {context}: a window has at least 1 token. Raise it")
    for flag, value in (("--context", context), ("--vocabulary", vocabulary)):
        if value > LARGEST:
            raise ConfigError(f"{flag} is {value}: over {LARGEST:,} no model has. Lower it")
    if not 0 <= validation_fraction < 1:
        raise ConfigError(
            f"--validation-fraction is {validation_fraction}: it is a share from 0 to below 1. "
            "Change it"
        )
    if workers < 1:
        raise ConfigError(f"--workers is {workers}: it takes at least 1. Raise it, or leave it out")


def tokenizer_file(path: str) -> Path:
    """The file, or that of a run or data folder."""
    return Path(path, TOKENIZER) if os.path.isdir(path) else Path(path)


def find_same(made: Request) -> Manifest:
    """The manifest of a finished folder with the same settings; anything else is refused.

    Raises:
      ConfigError: the folder holds something else.
    """
    if not os.path.lexists(os.path.join(made.out, MANIFEST)):
        raise ConfigError(
            f"{made.out} exists and is not prepared data: nothing is overwritten. "
            "Choose another --out"
        )
    manifest = load_manifest(made.out)
    given = {"tokenizer": made.tokenizer.hash} if made.tokenizer else {}
    if why := difference(manifest, made.settings | given):
        raise ConfigError(
            f"{made.out} holds data that was made differently: {why}. Choose another --out, or "
            "delete that folder"
        )
    return manifest


def difference(record: Any, settings: dict[str, Any]) -> str | None:
    """The first setting that a record has otherwise, in words."""
    for name, value in settings.items():
        if (old := getattr(record, name)) != value:
            changed = "the corpus has changed"
            return changed if name == "corpus_hash" else f"{name} {old}, now {value}"
    return None


def tracked(progress: Progress, stage: str, results: Iterable, count: int) -> Iterator:
    """The results, each reported as it comes."""
    for done, result in enumerate(results, 1):
        progress(stage, done / count)
        yield result


def _write(made: Request, folder: Path, progress: Progress) -> None:
    """Everything between an empty folder and its manifest."""
    corpus, groups, given = made.corpus, made.groups, made.tokenizer
    with processes(max(1, min(made.workers, len(groups)))) as run:
        special = given.special if given else None
        reading = run(partial(take_census, made.reader, special), groups)
        census = merge(tracked(progress, "reading", reading, len(groups)), corpus)
        tokenizer = given or _train(census, made.settings["vocabulary"], progress)
        tokenizer.save(folder / TOKENIZER)
        warn_of_special(census.special)
        job = make_job(made, folder, census)
        encoding = run(partial(encode_group, job), enumerate(groups))
        results = list(tracked(progress, "encoding", encoding, len(groups)))
    finish(job, made.settings, tokenizer, census, results)


def make_job(made: Request, folder: Path, census: Census) -> Job:
    """What is to be encoded, now that it is known what to hold out."""
    fraction, pairs = made.settings["validation_fraction"], made.settings["pairs"]
    tail = 0.0 if pairs else census.tail(fraction)  # A pair is never cut.
    return Job(made.reader, folder, made.settings["context"], census.held_out(fraction), tail)


def finish(
    job: Job,
    settings: dict[str, Any],
    tokenizer: Tokenizer,
    census: Census,
    results: Sequence[Encoded],
) -> None:
    """Make a folder of what all groups became: shards numbered through, and the manifest.

    Args:
      job: the folder, which has the tokenizer and each group's files.
      settings: as the manifest has them.
      tokenizer: the folder's.
      census: how many documents there are, and what was left out when they were counted.
      results: of all groups, in their order.

    Raises:
      ConfigError: no run could use it.
    """
    train = _number("train", job.folder, [result.train for result in results])
    validation = _number("validation", job.folder, [write_validation(job, tokenizer, results)])
    skipped = sum((result.skipped for result in results), census.skipped)
    _check_windows(train, validation, settings, census.documents, skipped)
    Manifest(
        folder=job.folder,
        **settings,
        tokenizer=tokenizer.hash,
        end_of_text=tokenizer.end_of_text,
        dtype=window_dtype(tokenizer, job.has_pairs).str,
        skipped=dict(sorted(skipped.items())),
        train=train,
        validation=validation,
    ).write()


def _deal(parts: tuple[Part, ...], seed: int) -> list[tuple[Part, ...]]:
    target = max(SHARD_BYTES, sum(part.bytes for part in parts) // SHARDS)
    groups, group, size = [], [], 0
    for part in sorted(parts, key=lambda part: (hash_key(f"{seed}:{part.key}"), part.key)):
        group.append(part)
        size += part.bytes
        if size >= target:
            groups.append(tuple(group))
            group, size = [], 0
    return groups + ([tuple(group)] if group else [])


def _train(census: Census, vocabulary: int, progress: Progress) -> Tokenizer:
    progress("training the tokenizer", 0.0)
    tokenizer = Tokenizer(train_tokenizer((text for _, text in census.sample), vocabulary))
    progress("training the tokenizer", 1.0)
    return tokenizer


def _number(name: str, folder: Path, pieces: list[Split]) -> Split:
    """One split of many, its shards named `name-00000-of-00004.array_record` and so on."""
    found = [shard for piece in pieces for shard in piece.shards]
    shards = []
    for i, shard in enumerate(found):
        final = f"{name}-{i:05d}-of-{len(found):05d}.array_record"
        os.rename(folder / shard.name, folder / final)
        shards.append(dataclasses.replace(shard, name=final))
    totals = {
        field.name: sum(getattr(piece, field.name) for piece in pieces)
        for field in dataclasses.fields(Split)
        if field.name != "shards"
    }
    return Split(**totals, shards=tuple(shards))


def _check_windows(
    train: Split, validation: Split, settings: dict, documents: int, skipped: Counter
) -> None:
    """Refuse data that no run could use."""
    context, fraction = settings["context"], settings["validation_fraction"]
    if settings["pairs"] and train.windows == 0:
        none = "hold out none: --validation-fraction 0, " if validation.documents else ""
        raise ConfigError(
            f"no pair is left to train on (skipped: {count_reasons(skipped) or 'none'}; held out: "
            f"{validation.documents}): a pair and its end fit {context + 1} tokens whole. Add "
            f"pairs, {none}or raise --context with the model's"
        )
    # The first token of all has end-of-text before it, so a window takes no token more.
    if train.windows == 0:
        none = ", or hold out none: --validation-fraction 0" if validation.tokens >= context else ""
        raise ConfigError(
            f"the text gives no training window: of {count_of(documents, 'document')}, "
            f"{train.tokens} tokens are to train on and {validation.tokens} held out, and a window "
            f"takes {context}. Add text, or lower --context{none}"
        )
    if fraction and validation.windows == 0:
        raise ConfigError(
            f"no validation window: the held-out text has {validation.tokens} tokens and a window "
            f"takes {context}. Raise --validation-fraction, or set it to 0 for none"
        )
