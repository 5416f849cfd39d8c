"""`gpt3jax data`: prepare, merge and inspect training data."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from gpt3jax.commands.inputs import MOST_BATCHES, check_range
from gpt3jax.config import MOST_WINDOWS
from gpt3jax.data.corpora.documents import count_of, count_reasons
from gpt3jax.data.manifest import Manifest
from gpt3jax.data.prepare.pieces import Piece, finished
from gpt3jax.errors import ConfigError
from gpt3jax.run_dir import Run


def data_prepare(
    corpus: tuple[str, ...],
    out: Path,
    context: int = 256,
    vocabulary: int | None = None,
    tokenizer: Path | None = None,
    field: str | None = None,
    pairs: tuple[str, str] | None = None,
    validation_fraction: float = 0.01,
    workers: int | None = None,
    seed: int = 0,
    shard: str | None = None,
) -> None:
    """Train a tokenizer on text and write the text as shards of token windows.

    Examples:
      gpt3jax data prepare --corpus python-library --out data/python-library
      gpt3jax data prepare --corpus books/*.txt notes --out data/books --context 512
      gpt3jax data prepare --corpus web.jsonl --field content --out data/web --tokenizer data/books
      gpt3jax data prepare --corpus qa.jsonl --pairs prompt completion --out data/qa --tokenizer RUN
      gpt3jax data prepare --corpus 'web/*.jsonl' --out /shared/web --tokenizer T --shard 3/16

    Args:
      corpus: Files, folders and globs: .jsonl, .ndjson, .json and .parquet hold records, all other
        files text; hidden files are skipped. Or python-library; hf:NAME; or generated:FILE.py,
        whose function documents() yields each text.
      out: Folder to write; it is created once it is complete.
      context: Context length of the model, in tokens.
      vocabulary: Size of the tokenizer to train; default 2048.
      tokenizer: An existing tokenizer.model to use instead, or a run or data folder with one.
      field: Field of a record that holds the text; default `text`.
      pairs: Fields of a record that hold a prompt and its completion; the loss covers only the
        completion.
      validation_fraction: Fraction of the documents that are held out.
      workers: Number of processes; default: one per core.
      seed: Seed of the order of the text; it does not affect which documents are held out.
      shard: I/N: prepare only this data shard, I from 0 to N-1. Each of N processes, which share a
        file system, prepares one in any order; `data merge` then combines them.
    """
    from gpt3jax.data.prepare.prepare import prepare, request, tokenizer_file
    from gpt3jax.data.prepare.shards import parse_shard, prepare_shard
    from gpt3jax.data.tokenizer import Tokenizer
    from gpt3jax.runtime.progress import progress

    if vocabulary is not None and tokenizer is not None:
        own = Tokenizer.load(tokenizer_file(str(tokenizer))).vocabulary
        if own != vocabulary:
            raise ConfigError(
                f"--vocabulary is {vocabulary}, but --tokenizer {tokenizer} has {own} tokens: "
                "their number cannot be changed. Leave out one of the two"
            )
    settings: dict[str, Any] = {
        "context": context, "vocabulary": vocabulary, "tokenizer": tokenizer and str(tokenizer),
        "field": field, "pairs": pairs, "validation_fraction": validation_fraction,
        "workers": workers, "seed": seed,
    }  # fmt: skip
    if shard is None:
        with progress() as report:
            manifest = prepare(corpus, str(out), **settings, progress=report)
        _print_prepared(out, manifest)
    else:
        index = parse_shard(shard)
        with progress() as report:
            piece = prepare_shard(request(corpus, str(out), **settings), index, report)
        _print_shard(out, shard, piece)


def data_merge(path: Positional[Path], workers: int | None = None) -> None:
    """Combine the data shards of `data prepare --shard I/N` into a data folder.

    The hash of each shard is verified; damaged shards are listed.

    Examples:
      gpt3jax data merge /shared/web

    Args:
      path: The --out of the shards.
      workers: Number of processes; default: one per core.
    """
    if workers is not None:
        check_range(1, MOST_WINDOWS, workers=workers)
    from gpt3jax.data.prepare.shards import merge_shards
    from gpt3jax.runtime.progress import progress

    def log(line: str) -> None:
        print(line, file=sys.stderr)

    with progress() as report:
        manifest = merge_shards(str(path), log, workers, report)
    _print_prepared(path, manifest)


def _print_shard(out: Path, shard: str, piece: Piece | None) -> None:
    if piece is None:
        print(f"{out} exists already: all its shards are merged")
        return
    documents = sum(
        group.train.documents + group.validation.get("documents", 0) for group in piece.groups
    )
    done, count = finished(str(out))
    print(
        f"{out}: shard {shard} is finished, {documents:,} of "
        f"{count_of(piece.documents, 'document')}; {done} of {count_of(count, 'shard')} "
        f"{'are' if count > 1 else 'is'} finished. Then run: gpt3jax data merge {out}"
    )


def _print_prepared(out: Path, manifest: Manifest) -> None:
    train, validation, skipped = manifest.train, manifest.validation, Counter(manifest.skipped)
    kind, learned = ("pair", " to learn") if manifest.pairs else ("document", "")
    is_split = validation.windows and not validation.documents
    held_out = "the end of a document" if is_split else count_of(validation.documents, kind)
    dropped = train.dropped_tokens + validation.dropped_tokens
    replaced = train.invalid_utf8 + validation.invalid_utf8
    print(
        f"{out}: {count_of(train.documents, kind)}, {count_of(train.tokens, 'token')}{learned} "
        f"({train.bytes_per_token:.2f} bytes each) in {count_of(train.windows, 'window')} of "
        f"{manifest.context}; held out {held_out}, {count_of(validation.windows, 'window')}; "
        f"skipped {skipped.total():,}{f' ({count_reasons(skipped)})' if skipped else ''}"
        f"{f'; dropped {dropped:,} tokens that fill no window' if dropped else ''}"
        f"{f'; {replaced:,} not UTF-8, read as U+FFFD' if replaced else ''}"
    )


def data_show(
    path: Positional[Path], batch: int = 0, rows: int = 4, batch_sequences: int = 16, seed: int = 0
) -> None:
    """Print the text of a training batch of a run or of prepared data.

    Tokens without loss (prompts, padding) are between [[ and ]].

    Examples:
      gpt3jax data show runs/tiny --batch 100
      gpt3jax data show data/python-library --rows 2

    Args:
      path: A run, or a folder made by `data prepare`.
      batch: Index of the batch, from 0. For a run, what step BATCH + 1 read by its event log.
      rows: Number of windows to print.
      batch_sequences: Windows per batch; ignored for a run.
      seed: Seed of the order; ignored for a run.
    """
    check_range(0, MOST_BATCHES, batch=batch)
    check_range(1, MOST_WINDOWS, rows=rows, batch_sequences=batch_sequences)
    check_range(0, 2**32 - 1, seed=seed)
    from gpt3jax.config import Data, Source
    from gpt3jax.data import loader
    from gpt3jax.data.manifest import TOKENIZER, load_manifest
    from gpt3jax.data.pairs import shown
    from gpt3jax.data.tokenizer import Tokenizer
    from gpt3jax.train.history import windows_read

    run = Run(path)
    if run.exists():
        experiment = run.experiment()
        data, seed, context = experiment.data, experiment.seed, experiment.model.context
        sequences = windows_read(run, batch + 1)
        tokenizer = Tokenizer.load(run.tokenizer_file, run.tokenizer_hash)
        skips = [(skip.sequences, skip.windows) for skip in run.skips()]
    else:
        data = Data(sources=(Source(path.name, str(path)),))
        manifest, skips = load_manifest(str(path)), []
        context, tokenizer = manifest.context, Tokenizer.load(path / TOKENIZER, manifest.tokenizer)
        sequences = range(batch * batch_sequences, (batch + 1) * batch_sequences)
    order = loader.windows(data, seed, context, skips)
    for sequence in sequences[:rows]:
        place = order.locate(sequence)
        print(f"--- window {sequence} ({place.source}, epoch {place.epoch}, record {place.window})")
        print(shown(order[sequence], tokenizer))
