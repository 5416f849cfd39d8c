"""The paper's data recipe (Appendices A and C), from raw text to the input of `data prepare`.

Needs      pip install 'gpt3jax[recipe]'  (datatrove, scikit-learn)
Command    python experiments/data_recipe.py --corpus 'raw/*.jsonl' --reference good
               --tests mine.jsonl --out clean
           gpt3jax data prepare --corpus clean --out data/clean --tokenizer T [--shard I/N]
Cost       30 to 55 s for the corpus below on 2 shared CPU cores, mostly the start of processes
           for eight stages

    quality    a classifier, trained to distinguish --reference from --corpus, scores each
               document, which is kept if pareto(9) > 1 - score   gpt3jax/recipe/quality.py
    fuzzy      near duplicates are removed but for one: MinHash over shingles of words, by
               datatrove
    clean      13-grams of tests are removed with 200 characters on each side, which cuts
               documents into pieces                              gpt3jax/recipe/decontaminate.py

Corpora are named as for `data prepare`, tests as for `evaluate`. Each stage has --tasks tasks,
which datatrove runs locally (--workers at once), on Slurm or on Ray. Finished tasks are not
repeated: after a failure, run the same command again; after the last stage it prints the counts.
The choice among near duplicates depends on --tasks, everything else on the texts only.

As in the paper: the features, the classifier, alpha 9, fuzzy deduplication of documents by
MinHash, and all parameters of the decontamination. Differences:

- Spark's MinHashLSH has 10 hashes of the classifier's words, and compares candidates with a
  threshold that the paper does not state. datatrove does not compare candidates, and with single
  words would treat any two long documents as duplicates. Therefore shingles have 5 words, in 14
  buckets of 8 hashes: documents that share 50 % of their shingles are found in 5 % of cases, 70 %
  in 56 %, 80 % in 92 %, 90 % in over 99 %. --shingle and --hashes change that.
- The paper deduplicates each data set, and removes WebText from Common Crawl. Run this once for
  each data set; the removal of one data set from another is not implemented.

Result for a corpus with known duplicates, tests and junk (tests/recipe/planted.py: Python's
language reference and docstrings, four copies of each of 40 passages with three words changed, 21
questions in 116 passages, and twenty times as much junk; Python 3.11.7, datatrove 0.10.1,
scikit-learn 1.9.1, 2026-11-23):

    read                             6,606    0 skipped
    kept by quality                    168    6,438 dropped
    without near duplicates            135    33 dropped
    clean                              142    18 cut into 31 pieces, 6 dropped
    13-grams: 189 in tests, 136 found, 8 too common

20 of 6,240 junk documents were kept (one of 512 is kept at score 0), and 148 of 366 others. By
`data overlap`, all 21 questions were in the corpus, and one is in the result, in more than 10
documents.

A mixture is weights in an experiment (Table 2.2; they are normalised):

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


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", required=True, help="raw text")
    parser.add_argument("--reference", required=True, help="text of high quality")
    parser.add_argument("--tests", nargs="+", required=True, help="tasks to remove")
    parser.add_argument("--out", type=Path, required=True, help="folder of .jsonl files to create")
    parser.add_argument("--field", default="text", help="field of the text in records")
    parser.add_argument("--tasks", type=int, default=8, help="number of tasks of each stage")
    parser.add_argument("--workers", type=int, default=2, help="number of concurrent tasks")
    parser.add_argument("--shingle", type=int, default=5, help="words of a shingle")
    parser.add_argument(
        "--hashes", type=int, nargs=2, default=(14, 8), help="buckets, and hashes of each"
    )
    parser.add_argument("--executor", choices=("local", "slurm", "ray"), default="local")
    parser.add_argument("--partition", default="", help="Slurm partition")
    parser.add_argument("--time", default="24:00:00", help="Slurm time limit of each task")
    parser.add_argument("--memory", type=int, default=2, help="Slurm memory of each task, GB")
    return parser.parse_args(argv)


def stages(args: argparse.Namespace) -> dict[str, tuple[list, int]]:
    """Pipeline and number of tasks of each stage, in order."""
    work, tests, tasks = Path(f"{args.out}.work"), tuple(args.tests), args.tasks
    config = MinhashConfig(args.shingle, *args.hashes)
    model, grams = str(work / "quality.npy"), str(work / "grams")
    kept, unique, clean, signatures, pairs, removed = (
        str(work / name) for name in ("kept", "unique", "clean", "signatures", "pairs", "removed")
    )
    signature = MinhashDedupSignature(signatures, config, language=steps.Words())
    return {
        "train": (
            [steps.TrainQuality(args.reference, args.corpus, model, args.field)], 1,
        ),
        "quality": (
            [steps.ReadCorpus(args.corpus, args.field), steps.KeepQuality(model), write(kept)],
            tasks,
        ),
        "signatures": ([read(kept), signature], tasks),
        "buckets": ([MinhashDedupBuckets(signatures, pairs, config=config)], args.hashes[0]),
        "clusters": ([MinhashDedupCluster(pairs, removed, config)], 1),
        "fuzzy": (
            [read(kept), MinhashDedupFilter(removed), steps.CountGrams(tests, grams),
             write(unique)], tasks,
        ),
        "clean": ([read(unique), steps.CutGrams(tests, grams), write(clean)], tasks),
        "publish": ([steps.Publish(clean, str(args.out))], 1),
    }  # fmt: skip


def read(folder: str) -> JsonlReader:
    """Read the output of a stage, without replacing the ids of documents by file paths."""
    return JsonlReader(folder, add_file_path=False)


def write(folder: str) -> JsonlWriter:
    """Write a file per task, in the format of `data prepare`."""
    return JsonlWriter(folder, compression=None)


def executors(args: argparse.Namespace) -> list:
    """An executor per stage, each depending on the previous one."""
    chain = []
    for name, (pipeline, tasks) in stages(args).items():
        common = {
            "pipeline": pipeline, "tasks": tasks, "workers": min(args.workers, tasks),
            "logging_dir": str(logs(args.out) / name), "depends": chain[-1] if chain else None,
        }  # fmt: skip
        if args.executor == "slurm":
            set_path = f"export PATH={Path(sys.executable).parent}:$PATH"
            slurm = {"time": args.time, "partition": args.partition, "job_name": name, "qos": "",
                     "mem_per_cpu_gb": args.memory, "env_command": set_path}  # fmt: skip
            chain.append(SlurmPipelineExecutor(**common, **slurm))
        elif args.executor == "ray":
            chain.append(RayPipelineExecutor(**common))
        else:
            chain.append(LocalPipelineExecutor(**common))
    return chain


def logs(out: Path) -> Path:
    """The folder with logs, statistics and completion markers of each stage."""
    return Path(f"{out}.work/logs")


def counts(out: Path, stage: str) -> Counter:
    """The sums of a stage's statistics over its tasks, by `step: statistic`."""
    totals = Counter()
    for file in sorted((logs(out) / stage / "stats").glob("*.json")):
        for step in json.loads(file.read_text()):
            for name, value in step["stats"].items():
                total = value["total"] if isinstance(value, dict) else value
                totals[f"{step['name'].split(': ')[1]}: {name}"] += total
    return totals


def table(out: Path) -> str:
    """The numbers of documents after each stage."""
    quality, fuzzy, clean = (counts(out, stage) for stage in ("quality", "fuzzy", "clean"))
    kept, unique = quality["keep: forwarded"], clean["cut: documents"]
    cut, pieces, dropped = (clean[f"cut: {name}"] for name in ("cut", "pieces", "dropped"))
    rows = [
        ("read", quality["corpus: read"], f"{quality['corpus: skipped']:,} skipped"),
        ("kept by quality", kept, f"{quality['keep: dropped']:,} dropped"),
        ("without near duplicates", unique, f"{kept - unique:,} dropped"),
        ("clean", clean["cut: untouched"] + pieces,
         f"{cut:,} cut into {pieces:,} pieces, {dropped:,} dropped"),
    ]  # fmt: skip
    lines = [f"{stage:<26}{number:>12,}    {detail}" for stage, number, detail in rows]
    in_tests, found = fuzzy["count: runs of words in tests"], clean["cut: runs found"]
    common = clean["cut: runs in too many documents"]
    lines.append(f"13-grams: {in_tests:,} in tests, {found:,} found, {common:,} too common")
    return "\n".join(lines)


def check_same(args: argparse.Namespace) -> None:
    """Refuse to resume with other settings."""
    file, record = Path(f"{args.out}.work/asked.json"), vars(args) | {"out": str(args.out)}
    names = ("corpus", "reference", "tests", "field", "tasks", "shingle", "hashes")
    settings = json.loads(json.dumps({name: record[name] for name in names}))
    if not file.exists():
        if args.out.exists():
            raise ConfigError(f"{args.out} exists: nothing is overwritten. Choose another --out")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings, indent=2) + "\n")
    for name, old in json.loads(file.read_text()).items():
        if settings[name] != old:
            raise ConfigError(
                f"{args.out} was started with --{name} {old}, now {settings[name]}: results "
                f"would be inconsistent. Choose another --out, or delete {file.parent}"
            )


def main(argv: list[str] | None = None) -> int:
    """Run the remaining stages, and print the counts after the last one."""
    args = parse(argv)
    try:
        check_same(args)
        if not args.out.exists():
            executors(args)[-1].run()
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.out.exists():
        print(table(args.out))
    else:
        print(f"queued: {logs(args.out)}. The same command prints the counts when all have ended")
    return 0


if __name__ == "__main__":
    sys.exit(main())
