"""The commands: one function each, as `gpt3jax NAME` calls it.

Their arguments are the flags, their docstrings the help (cli.py reads both).
jax and everything heavy is imported inside, so that help and refusals are
immediate.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from gpt3jax.config import MOST_WINDOWS, ConfigError, Experiment
from gpt3jax.interchange.commands import export, import_
from gpt3jax.run import Changes
from gpt3jax.sharding.cluster import Hosts

DEFAULT_CORPUS = "python-library"
MOST_BATCHES = 10**12
MOST_SAMPLES = 4096
"""Written together: more would not fit."""
LONGEST_PROMPT = 1 << 20


def data_prepare(
    corpus: str = DEFAULT_CORPUS,
    out: Path = Path("data/python-library"),
    context: int = 256,
    vocabulary: int = 2048,
    tokenizer: Path | None = None,
    field: str = "text",
    validation_fraction: float = 0.01,
    workers: int | None = None,
    seed: int = 0,
) -> None:
    """Turn text into a tokenizer and shards of token windows.

    Examples:
      gpt3jax data prepare --corpus python-library --out data/python-library
      gpt3jax data prepare --corpus 'books/*.txt' --out data/books --context 512 --vocabulary 8192
      gpt3jax data prepare --corpus web.jsonl --field content --tokenizer data/books/tokenizer.model

    Args:
      corpus: python-library, a file, folder or glob of text, a .jsonl or .parquet file, or hf:NAME.
      out: Folder to write; it appears when all of it is there.
      context: Tokens a model will see at once.
      vocabulary: Size of the tokenizer to train.
      tokenizer: An existing tokenizer.model to use instead.
      field: Of .jsonl and .parquet records, where the text is.
      validation_fraction: Share of the documents held out, whole.
      workers: Processes; all cores if not given.
      seed: Of which documents are held out.
    """
    from gpt3jax.data.prepare import prepare
    from gpt3jax.progress import progress

    with progress() as report:
        manifest = prepare(
            corpus, str(out), context=context, vocabulary=vocabulary,
            tokenizer=tokenizer and str(tokenizer), field=field,
            validation_fraction=validation_fraction, workers=workers, seed=seed, progress=report,
        )  # fmt: skip
    train, validation = manifest.train, manifest.validation
    skipped = sum(manifest.skipped.values())
    print(
        f"{out}: {train.documents:,} documents, {train.tokens:,} tokens "
        f"({train.bytes_per_token:.2f} bytes each) in {train.windows:,} windows of {context}; "
        f"held out {validation.documents:,} documents, {validation.windows:,} windows; "
        f"skipped {skipped:,}"
    )


def data_show(
    path: Positional[Path], batch: int = 0, rows: int = 4, batch_sequences: int = 16, seed: int = 0
) -> None:
    """Decode exactly what a model sees at a batch: of a run, or of prepared data.

    Examples:
      gpt3jax data show runs/tiny --batch 100
      gpt3jax data show data/python-library --rows 2

    Args:
      path: A run, or a folder that `data prepare` made.
      batch: Which batch, from 0.
      rows: How many of its windows to print.
      batch_sequences: Windows in a batch; of a run, the run's own are taken.
      seed: Of the order; of a run, the run's own is taken.
    """
    _check_range(0, MOST_BATCHES, batch=batch)
    _check_range(1, MOST_WINDOWS, rows=rows, batch_sequences=batch_sequences)
    _check_range(0, 2**32 - 1, seed=seed)
    from gpt3jax.config import Data, Source
    from gpt3jax.data import loader
    from gpt3jax.data.manifest import TOKENIZER, load_manifest
    from gpt3jax.data.tokenizer import Tokenizer
    from gpt3jax.run import Run
    from gpt3jax.train.schedule import batch_range

    run = Run(path)
    if run.exists():
        experiment = run.experiment()
        data, seed, context = experiment.data, experiment.seed, experiment.model.context
        tokenizer = Tokenizer.load(run.tokenizer_file, run.tokenizer_hash)
        skips = [(skip.sequences, skip.windows) for skip in run.skips()]
        sequences = batch_range(batch, experiment)
    else:
        data = Data(sources=(Source(path.name, str(path)),))
        manifest, skips = load_manifest(str(path)), []
        context, tokenizer = manifest.context, Tokenizer.load(path / TOKENIZER, manifest.tokenizer)
        sequences = range(batch * batch_sequences, (batch + 1) * batch_sequences)
    order = loader.windows(data, seed, context, skips)
    for sequence in sequences[:rows]:
        place = order.locate(sequence)
        print(f"--- window {sequence} ({place.source}, epoch {place.epoch}, record {place.window})")
        print(tokenizer.decode(order[sequence].tolist()))


def generate(
    run: Positional[Path],
    prompt: str | None = None,
    prompt_file: Path | None = None,
    new_tokens: int = 200,
    samples: int = 1,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    stop: tuple[str, ...] = (),
    seed: int = 0,
    beams: int = 0,
    step: int | None = None,
    json: bool = False,
) -> None:
    """Continue a prompt, token by token.

    Examples:
      gpt3jax generate runs/tiny --prompt 'def main('
      gpt3jax generate runs/tiny --prompt 'class ' --samples 4 --top-p 0.9 --seed 7
      gpt3jax generate runs/tiny --prompt 'import ' --beams 4 --new-tokens 20

    Args:
      run: The run to write with.
      prompt: Text to continue; empty starts a new document.
      prompt_file: A file with the text to continue.
      new_tokens: At most this many; fewer at the end of a document or a stop string.
      samples: How many continuations.
      temperature: Below 1 is bolder in what is likely; 0 always takes the likeliest token.
      top_k: Draw from the k likeliest tokens; 0 from all.
      top_p: Draw from the fewest tokens whose probability adds up to this.
      stop: End before any of these strings.
      seed: The same seed writes the same text.
      beams: Beam search of this width instead of drawing (the paper: 4, length penalty 0.6).
      step: The checkpoint; the newest if not given.
      json: One JSON object with the prompt and the texts.
    """
    _check_range(0, 2**32 - 1, seed=seed)
    _check_range(1, MOST_SAMPLES, samples=samples)
    if prompt is not None and prompt_file is not None:
        raise ConfigError("--prompt and --prompt-file are both given: which is it? Drop one")
    if prompt_file:
        try:
            with prompt_file.open(encoding="utf-8") as file:
                prompt = file.read(LONGEST_PROMPT + 1)  # A device has no end.
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--prompt-file cannot be read: {error}. Check it") from error
        if len(prompt) > LONGEST_PROMPT:
            raise ConfigError(
                f"--prompt-file {prompt_file} is too long: over {LONGEST_PROMPT:,} letters no "
                "model reads. Give its end"
            )
    from gpt3jax.write import write

    write(
        run, prompt or "", new_tokens=new_tokens, samples=samples, temperature=temperature,
        top_k=top_k, top_p=top_p, stop=stop, seed=seed, beams=beams, step=step, as_json=json,
    )  # fmt: skip


def report(runs: Positional[tuple[Path, ...]], out: Path | None = None, json: bool = False) -> None:
    """Draw and compare the curves of runs: one HTML page, and each figure as PNG.

    Examples:
      gpt3jax report runs/tiny
      gpt3jax report runs/a runs/b --out comparison

    Args:
      runs: One run or more.
      out: Folder to write; RUN/report of the first run if not given.
      json: Print the table as JSON.
    """
    from gpt3jax.report import write_report

    write_report(runs, out, as_json=json)


def bench(
    what: Positional[Literal["train", "decode", "data", "save"]],
    experiment: Experiment,
    repeats: int = 5,
    json: bool = False,
) -> None:
    """Measure training, generation, the data pipeline or saving at the shape of an experiment.

    Examples:
      gpt3jax bench train experiments/tiny.py
      gpt3jax bench decode experiments/tiny.py --model.n-layers 8 --json

    Args:
      what: train: whole steps on random tokens. decode: cached generation of one sample, random
        weights. data: the loader alone, which needs the experiment's prepared data. save: a
        checkpoint, and its hashes.
      experiment: The experiment.
      repeats: Timed repetitions; the median is reported.
      json: Print the figures as JSON.
    """
    if what in ("train", "save"):
        from gpt3jax.memory import keep_freed_memory

        keep_freed_memory()
    from gpt3jax.bench import bench as run_bench

    run_bench(what, experiment, repeats, as_json=json)


def plan(
    experiment: Experiment,
    chips: str | None = None,
    budget: float | None = None,
    keep: tuple[Literal["data", "fsdp", "tensor", "remat", "microbatch"], ...] = (),
    compile: bool = False,
    finalists: int = 1,
    price: float | None = None,
    json: bool = False,
) -> None:
    """Does it fit, how fast, how many days, what does it cost, how is it launched?

    Examples:
      gpt3jax plan experiments/gpt3_175b.py --chips v5p:8x8x16
      gpt3jax plan experiments/gpt3_6b7.py --chips v5e:16x16*4 --compile
      gpt3jax plan experiments/gpt3_13b.py --chips h100:64 --price 2.79 --json
      gpt3jax plan experiments/gpt3_1b3.py --budget 10000

    Args:
      experiment: The experiment; each field can be overridden.
      chips: KIND:TOPOLOGY or KIND:COUNT, and *N for N slices.
      budget: Dollars: what is the best model for them, on each chip?
      keep: Parts of the layout that stay as the experiment has them; the others are searched.
      compile: Compile the best layout's step with the TPU compiler (extra tpu; minutes).
      finalists: Compile so many of the best, rather than one.
      price: Dollars per chip and hour, instead of the list price.
      json: Print all figures as JSON.
    """
    _check_range(1, 10**15, budget=1 if budget is None else budget)
    _check_range(0.001, 10**6, price=1 if price is None else price)
    from gpt3jax.plan import planner, show, slices

    if budget is not None:
        show.show_budget(experiment, budget, as_json=json)
        return
    if chips is None:
        raise ConfigError("plan needs --chips, as v5p:8x8x16 or h100:64, or --budget DOLLARS")
    if finalists < 1:
        raise ConfigError(f"--finalists is {finalists}: at least the best is compiled. Raise it")
    found = planner.plan(experiment, slices.parse(chips), keep)
    compiled = []
    if compile:
        from gpt3jax.train.ahead import compile_step

        compiled = [(each, compile_step(each)) for each in found.shortlist(finalists)]
    show.show(found, price, compiled, as_json=json)


def train(
    experiment: Experiment,
    run: Path | None = None,
    hosts: Hosts = Hosts(),  # noqa: B008 (frozen)
    stuck_after: float = 600.0,
    changes: Changes = Changes(),  # noqa: B008 (frozen)
) -> int:
    """Start a run, or resume the one that is there. Alone, or the same command on every host.

    Examples:
      gpt3jax train experiments/tiny.py
      gpt3jax train experiments/tiny.py --run runs/wide --model.d-model 384 --model.n-heads 12
      gpt3jax train experiments/tiny.py --coordinator 10.0.0.1:9911 --processes 2 --process 0
      gpt3jax train experiments/tiny.py --rewind-to 400 --skip 50
      gpt3jax train experiments/tiny.py --schedule.peak-learning-rate 1e-3 --allow-change schedule

    Args:
      experiment: The experiment; each field can be overridden.
      run: Folder of the run, seen by all hosts; runs/NAME if not given.
      hosts: How to find the other processes; a cluster is detected.
      stuck_after: Of several processes: seconds without progress after which one says where it
        is, and ends; 0: never.
      changes: To a run that is there; each is recorded in its ledger.
    """
    began = time.time()
    _check_range(0, 10**9, stuck_after=stuck_after)
    _check_range(0, MOST_BATCHES, skip=changes.skip, rewind_to=changes.rewind_to or 0)
    from gpt3jax.sharding.cluster import is_likely, join
    from gpt3jax.train.folder import check_writable, data_identity

    path = run or Path("runs") / experiment.name
    if not is_likely(hosts):
        # What data and disk forbid is said before jax is imported.
        check_writable(path)
        data_identity(experiment)
    from gpt3jax.memory import keep_freed_memory

    keep_freed_memory()
    join(hosts)
    from gpt3jax.write import train_and_tell

    return train_and_tell(experiment, path, stuck_after, changes, began)


def doctor(
    experiment: Experiment | None = None, run: Path | None = None, json: bool = False
) -> int:
    """Check what a run needs before it starts: one line each, and what cures a failure.

    Examples:
      gpt3jax doctor
      gpt3jax doctor experiments/tiny.py --run runs/tiny
      gpt3jax doctor experiments/gpt3_1b3.py --train.microbatch 8 --json

    Args:
      experiment: The experiment, for its disk, memory and data; not needed for the rest.
      run: Folder of the run, there or not; runs/NAME if not given.
      json: Print the checks as JSON.
    """
    from gpt3jax.doctor import diagnose

    return diagnose(experiment, run, as_json=json)


def verify(run: Positional[Path], replay: str | None = None, json: bool = False) -> int:
    """Check every hash of a run, or do steps again and compare their bits.

    Examples:
      gpt3jax verify runs/tiny
      gpt3jax verify runs/tiny --replay 400:410

    Args:
      run: The run.
      replay: A:B does steps A+1 to B again, from a checkpoint at or before A, and compares what
        was logged of them: another result on the same machine is a silent fault of one of them.
      json: Print the verdicts as JSON.
    """
    from gpt3jax.verify import verify as run_verify

    return run_verify(run, replay, as_json=json)


def _check_range(least: float, most: float, **values: float) -> None:
    """Refuse the first of these flags that lies outside."""
    for name, value in values.items():
        if not least <= value <= most:
            raise ConfigError(
                f"--{name.replace('_', '-')} is {value}: it is from {least} to {most:,}. Change it"
            )


COMMANDS: dict[str, Callable[..., Any]] = {
    "data prepare": data_prepare,
    "data show": data_show,
    "plan": plan,
    "doctor": doctor,
    "train": train,
    "generate": generate,
    "report": report,
    "verify": verify,
    "export": export,
    "import": import_,
    "bench": bench,
}
