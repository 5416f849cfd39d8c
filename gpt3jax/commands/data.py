"""Commands about text and data."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

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
    """Turn text into a tokenizer and shards of token windows.

    Examples:
      gpt3jax data prepare --corpus python-library --out data/python-library
      gpt3jax data prepare --corpus books/*.txt notes --out data/books --context 512
      gpt3jax data prepare --corpus web.jsonl --field content --out data/web --tokenizer data/books
      gpt3jax data prepare --corpus qa.jsonl --pairs prompt completion --out data/qa --tokenizer RUN
      gpt3jax data prepare --corpus 'web/*.jsonl' --out /shared/web --tokenizer T --shard 3/16

    Args:
      corpus: Files, folders and globs: .jsonl, .ndjson, .json and .parquet are records, all others
        text; hidden files are left out. Or python-library; hf:NAME; or generated:FILE.py, whose
        function documents() yields each text.
      out: Folder to write; it appears when all of it is there.
      context: Tokens a model will see at once.
      vocabulary: Size of the tokenizer to train; 2048 if not given.
      tokenizer: An existing tokenizer.model to use instead, or a run or data folder with one.
      field: Of records, where the text is; `text` if not given.
      pairs: Of such records, where a prompt is, and its completion: only that is learned.
      validation_fraction: Share of the documents held out, whole.
      workers: Processes; all cores if not given.
      seed: Of the order of the text; which documents are held out does not depend on it.
      shard: I/N: only this share of the files, I from 0 to N-1; each of N processes, on machines
        that see one file system, makes one, in any order, and then `data merge` makes the folder.
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
    asked = {
        "context": context, "vocabulary": vocabulary, "tokenizer": tokenizer and str(tokenizer),
        "field": field, "pairs": pairs, "validation_fraction": validation_fraction,
        "workers": workers, "seed": seed,
    }  # fmt: skip
    which = parse_shard(shard) if shard is not None else None
    with progress() as report:
        if which:
            made = prepare_shard(request(corpus, str(out), **asked), which, report)
        else:
            made = prepare(corpus, str(out), **asked, progress=report)
    if which:
        _print_shard(out, shard, made)
    else:
        _print_prepared(out, made)


def data_merge(path: Positional[Path], workers: int | None = None) -> None:
    """Make a data folder of its shards, once all of `data prepare --shard I/N` are there.

    Every byte of every shard is compared with what was written; a line says which cannot be used.

    Examples:
      gpt3jax data merge /shared/web

    Args:
      path: The --out that the shards were given.
      workers: Processes; all cores if not given.
    """
    if workers is not None:
        check_range(1, MOST_WINDOWS, workers=workers)
    from gpt3jax.data.prepare.merge import merge_shards
    from gpt3jax.runtime.progress import progress

    def tell(line: str) -> None:
        print(line, file=sys.stderr)

    with progress() as report:
        manifest = merge_shards(str(path), tell, workers, report)
    _print_prepared(path, manifest)


def _print_shard(out: Path, shard: str, piece: Piece | None) -> None:
    if piece is None:
        print(f"{out} is there already, of all its shards")
        return
    documents = sum(
        group.train.documents + group.validation.get("documents", 0) for group in piece.groups
    )
    there, count = finished(str(out))
    print(
        f"{out}: shard {shard} is there, {documents:,} of {count_of(piece.documents, 'document')}; "
        f"{there} of {count_of(count, 'shard')} {'are' if count > 1 else 'is'}. When all are: "
        f"gpt3jax data merge {out}"
    )


def _print_prepared(out: Path, manifest: Manifest) -> None:
    train, validation, skipped = manifest.train, manifest.validation, Counter(manifest.skipped)
    kind, learned = ("pair", " to learn") if manifest.pairs else ("document", "")
    whole = validation.documents or not validation.windows
    held_out = count_of(validation.documents, kind) if whole else "the end of a document"
    dropped = train.dropped_tokens + validation.dropped_tokens
    replaced = train.invalid_utf8 + validation.invalid_utf8
    print(
        f"{out}: {count_of(train.documents, kind)}, {count_of(train.tokens, 'token')}{learned} "
        f"({train.bytes_per_token:.2f} bytes each) in {count_of(train.windows, 'window')} of "
        f"{manifest.context}; held out {held_out}, {count_of(validation.windows, 'window')}; "
        f"skipped {skipped.total():,}{f' ({count_reasons(skipped)})' if skipped else ''}"
        f"{f'; dropped {dropped:,} tokens that fill no window' if dropped else ''}"
        f"{f'; {replaced:,} not UTF-8, read with U+FFFD' if replaced else ''}"
    )


def data_show(
    path: Positional[Path], batch: int = 0, rows: int = 4, batch_sequences: int = 16, seed: int = 0
) -> None:
    """Decode exactly what a model sees at a batch: of a run, or of prepared data.

    What is read but not learned (prompts, padding) is between [[ and ]].

    Examples:
      gpt3jax data show runs/tiny --batch 100
      gpt3jax data show data/python-library --rows 2

    Args:
      path: A run, or a folder that `data prepare` made.
      batch: Which batch, from 0. Of a run, as its record has it: what step BATCH + 1 read.
      rows: How many of its windows to print.
      batch_sequences: Windows in a batch; of a run, the run's own are taken.
      seed: Of the order; of a run, the run's own is taken.
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


def data_overlap(
    path: Positional[Path],
    task: tuple[str, ...],
    results: Path | None = None,
    words: Path | None = None,
    examples: int | None = None,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Was the test in the training text? N words in a row, as the paper looked for them.

    Examples:
      gpt3jax data overlap data/books --task mine.jsonl
      gpt3jax data overlap runs/tiny --task arithmetic --results out/results.json

    Args:
      path: A run, or a folder that `data prepare` made.
      task: Tasks, as `evaluate` names them.
      results: An evaluation of these tasks: its scores on clean and dirty examples apart.
      words: A word list for the scrambles; the training text's own if not given.
      examples: As the evaluation had it.
      seed: As the evaluation had it.
      json: Print all figures, and what was found of each dirty example.
    """
    check_range(1, 10**7, examples=1 if examples is None else examples)
    check_range(0, 2**32 - 1, seed=seed)
    from gpt3jax.evals.contamination import find_overlap

    find_overlap(path, task, examples, seed, results, words, json)
