"""The paper's data recipe (Appendix A and C) from raw text to what `data prepare` reads.

Needs      pip install 'gpt3jax[recipe]'  (datatrove, scikit-learn)
Command    python experiments/data_recipe.py --corpus 'raw/*.jsonl' --reference good
               --tests mine.jsonl --out clean
           gpt3jax data prepare --corpus clean --out data/clean --tokenizer T [--shard I/N]
Cost       30 to 55 s for the corpus below on 2 CPU cores that other work shared, nearly all of
           it the start of processes for eight stages

    quality    a classifier, trained to tell --reference from --corpus, scores each document,
               which stays if pareto(9) > 1 - score            gpt3jax/recipe/quality.py
    fuzzy      of near duplicates one stays: MinHash over shingles of words, by datatrove
    clean      13 words in a row of a test go, with 200 characters on each side; what is left
               are pieces                                      gpt3jax/recipe/decontaminate.py

Corpora are named as for `data prepare`, tests as for `evaluate`. Each stage is dealt to --tasks
tasks, which datatrove runs here (--workers at once), on Slurm or on Ray. What has ended is not
done again: after a failure the same command goes on, and when all has ended it prints the
counts. Which of near duplicates stays depends on --tasks; all else on the texts alone.

As in the paper: the features, the classifier, alpha 9, fuzzy duplicates by MinHash, whole
documents, and all numbers of the decontamination. Otherwise:

- Spark's MinHashLSH has 10 hashes of the classifier's words, and compares candidates with a
  threshold that the paper does not say. datatrove takes candidates for duplicates as they are,
  and by single words would take any two long documents for the same. So here are shingles of 5
  words, 14 buckets of 8 hashes: documents that share 50 % of their shingles are found in 5 % of
  cases, 70 % in 56 %, 80 % in 92 %, 90 % in over 99 %. --shingle and --hashes change that.
- The paper looks for duplicates within each data set, and takes WebText's out of Common Crawl.
  Run this once for each; the second is not there.

What came of a corpus in which it is known what should go (tests/recipe/planted.py: Python's
language reference and docstrings, four of each of 40 passages with three words changed, 21
questions in 116 passages, and twenty times as much junk; Python 3.11.7, datatrove 0.10.1,
scikit-learn 1.9.1, 2026-11-23):

    read                             6,606    0 that are no text
    kept by quality                    168    6,438 dropped
    left of near duplicates            135    33 dropped
    clean                              142    18 cut into 31 pieces, 6 dropped
    13 words in a row: 189 in tests, 136 found, 8 too common

Of 6,240 documents of junk 20 stayed (score 0 is kept in one of 512) and of 366 others 148. By
`data overlap`, all 21 questions were in the corpus; after it one was, in more than 10 documents.

A mixture is weights in an experiment (Table 2.2; what they do not sum to 1 is scaled):

    Data(sources=(Source("common crawl", "data/cc", 0.60), Source("webtext2", "data/wt", 0.22),
                  Source("books1", "data/b1", 0.08), Source("books2", "data/b2", 0.08),
                  Source("wikipedia", "data/wiki", 0.03)))
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from gpt3jax.errors import ConfigError

try:
    from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    from gpt3jax.recipe import steps
except ImportError as error:
    sys.exit(f"error: {error.name} is not installed. pip install 'gpt3jax[recipe]'")


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", required=True, help="raw text")
    parser.add_argument("--reference", required=True, help="text to be like")
    parser.add_argument("--tests", nargs="+", required=True, help="tasks to cut out")
    parser.add_argument("--out", type=Path, required=True, help="folder of .jsonl; made whole")
    parser.add_argument("--field", default="text", help="of records, where the text is")
    parser.add_argument("--tasks", type=int, default=8, help="of each stage")
    parser.add_argument("--workers", type=int, default=2, help="tasks at once")
    parser.add_argument("--shingle", type=int, default=5, help="words")
    parser.add_argument("--hashes", type=int, nargs=2, default=(14, 8), help="buckets, and of each")
    parser.add_argument("--executor", choices=("local", "slurm", "ray"), default="local")
    parser.add_argument("--partition", default="", help="of Slurm")
    parser.add_argument("--time", default="24:00:00", help="of Slurm, for each task")
    parser.add_argument("--memory", type=int, default=2, help="of Slurm, GB for each task")
    return parser.parse_args(words)


def stages(asked: argparse.Namespace) -> dict[str, tuple[list, int]]:
    """Each stage's pipeline and number of tasks, in their order."""
    work, tests, tasks = Path(f"{asked.out}.work"), tuple(asked.tests), asked.tasks
    config = MinhashConfig(asked.shingle, *asked.hashes)
    model, grams = str(work / "quality.npy"), str(work / "grams")
    kept, unique, clean, signatures, pairs, removed = (
        str(work / name) for name in ("kept", "unique", "clean", "signatures", "pairs", "removed")
    )
    signature = MinhashDedupSignature(signatures, config, language=steps.Words())
    return {
        "train": (
            [steps.TrainQuality(asked.reference, asked.corpus, model, asked.field)], 1,
        ),
        "quality": (
            [steps.ReadCorpus(asked.corpus, asked.field), steps.KeepQuality(model), write(kept)],
            tasks,
        ),
        "signatures": ([read(kept), signature], tasks),
        "buckets": ([MinhashDedupBuckets(signatures, pairs, config=config)], asked.hashes[0]),
        "clusters": ([MinhashDedupCluster(pairs, removed, config)], 1),
        "fuzzy": (
            [read(kept), MinhashDedupFilter(removed), steps.CountGrams(tests, grams),
             write(unique)], tasks,
        ),
        "clean": ([read(unique), steps.CutGrams(tests, grams), write(clean)], tasks),
        "publish": ([steps.Publish(clean, str(asked.out))], 1),
    }  # fmt: skip


def read(folder: str) -> JsonlReader:
    """What a stage wrote; documents keep their own names, not those of files."""
    return JsonlReader(folder, add_file_path=False)


def write(folder: str) -> JsonlWriter:
    """A file of each task, as `data prepare` reads them."""
    return JsonlWriter(folder, compression=None)


def executors(asked: argparse.Namespace) -> list:
    """One for each stage, which waits for the one before it."""
    made = []
    for name, (pipeline, tasks) in stages(asked).items():
        common = {
            "pipeline": pipeline, "tasks": tasks, "workers": min(asked.workers, tasks),
            "logging_dir": str(logs(asked.out) / name), "depends": made[-1] if made else None,
        }  # fmt: skip
        if asked.executor == "slurm":
            here = f"export PATH={Path(sys.executable).parent}:$PATH"
            slurm = {"time": asked.time, "partition": asked.partition, "job_name": name, "qos": "",
                     "mem_per_cpu_gb": asked.memory, "env_command": here}  # fmt: skip
            made.append(SlurmPipelineExecutor(**common, **slurm))
        elif asked.executor == "ray":
            made.append(RayPipelineExecutor(**common))
        else:
            made.append(LocalPipelineExecutor(**common))
    return made


def logs(out: Path) -> Path:
    """A folder for each stage: what its tasks said and counted, and which have ended."""
    return Path(f"{out}.work/logs")


def counts(out: Path, stage: str) -> Counter:
    """What the tasks of a stage counted, by `step: count`."""
    found = Counter()
    for file in sorted((logs(out) / stage / "stats").glob("*.json")):
        for step in json.loads(file.read_text()):
            for name, value in step["stats"].items():
                total = value["total"] if isinstance(value, dict) else value
                found[f"{step['name'].split(': ')[1]}: {name}"] += total
    return found


def table(out: Path) -> str:
    """What came of the documents, stage by stage."""
    quality, fuzzy, clean = (counts(out, stage) for stage in ("quality", "fuzzy", "clean"))
    kept, unique = quality["keep: forwarded"], clean["cut: documents"]
    cut, pieces, whole = (clean[f"cut: {name}"] for name in ("cut", "pieces", "dropped"))
    rows = [
        ("read", quality["corpus: read"], f"{quality['corpus: skipped']:,} that are no text"),
        ("kept by quality", kept, f"{quality['keep: dropped']:,} dropped"),
        ("left of near duplicates", unique, f"{kept - unique:,} dropped"),
        ("clean", clean["cut: untouched"] + pieces,
         f"{cut:,} cut into {pieces:,} pieces, {whole:,} dropped"),
    ]  # fmt: skip
    lines = [f"{what:<26}{number:>12,}    {aside}" for what, number, aside in rows]
    runs, found = fuzzy["count: runs of words in tests"], clean["cut: runs found"]
    common = clean["cut: runs in too many documents"]
    lines.append(f"13 words in a row: {runs:,} in tests, {found:,} found, {common:,} too common")
    return "\n".join(lines)


def check_same(asked: argparse.Namespace) -> None:
    """Refuse to go on with other settings than those that what is there was made with."""
    file, record = Path(f"{asked.out}.work/asked.json"), vars(asked) | {"out": str(asked.out)}
    decides = ("corpus", "reference", "tests", "field", "tasks", "shingle", "hashes")
    settings = json.loads(json.dumps({name: record[name] for name in decides}))
    if not file.exists():
        if asked.out.exists():
            raise ConfigError(f"{asked.out} exists: nothing is overwritten. Choose another --out")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings, indent=2) + "\n")
    for name, old in json.loads(file.read_text()).items():
        if settings[name] != old:
            raise ConfigError(
                f"{asked.out} was begun with --{name} {old}, now {settings[name]}: what is "
                f"there would not fit. Choose another --out, or delete {file.parent}"
            )


def main(words: list[str] | None = None) -> int:
    """Run what has not run yet; the counts, if all has."""
    asked = parse(words)
    try:
        check_same(asked)
        if not asked.out.exists():
            executors(asked)[-1].run()
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if asked.out.exists():
        print(table(asked.out))
    else:
        print(f"queued: {logs(asked.out)}. The same command prints the counts when all has ended")
    return 0


if __name__ == "__main__":
    sys.exit(main())
