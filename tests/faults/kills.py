"""Kill training again and again, and compare what comes out with a run that nobody killed.

    python tests/faults/kills.py --kills 200

Of a run that was killed, each logged loss, each batch, and the hash of the last
state must be those of the other run, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE), str(HERE.parent)]

from compiler_flags import FAST  # noqa: E402
from victim import STAGES  # noqa: E402

from gpt3jax.checkpoint import manifest  # noqa: E402
from gpt3jax.run_dir import Run  # noqa: E402
from gpt3jax.train.monitor import event_log  # noqa: E402

ENVIRONMENT = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": FAST,
    "PYTHONPATH": str(ROOT),
}
EXACT = ("loss", "grad_norm", "learning_rate", "sequences", "val_loss")
EXPERIMENT = """
from gpt3jax.config import Data, Evaluate, Experiment, Mesh, Model, Schedule, Source, Train


def experiment():
    return Experiment(
        name="faults",
        model=Model(n_layers=2, d_model=32, n_heads=4, d_head=8, vocabulary=300, context=48,
                    band=12, scan_layers=False),
        data=Data(sources=(Source("words", {data!r}),)),
        schedule=Schedule(peak_learning_rate=1e-2, warmup_tokens=2000, decay_tokens=100_000),
        train=Train(batch_tokens=8 * 48, microbatch=4, ramp_from_tokens=4 * 48, ramp_tokens=4000,
                    steps=40, log_every=1, save_every=6, keep=2),
        mesh=Mesh(data=1),
        evaluate=Evaluate(every=10, windows=16, sample_tokens=2),
    )
"""


@dataclass(frozen=True)
class Kill:
    """One session of training that was killed, or ended."""

    where: str
    """A stage and which time it is reached, or seconds after the start."""
    step: int
    """The newest checkpoint before; 0: none."""
    code: int
    """Exit code; -9 where it was killed."""
    whole: int
    """Checkpoints that are whole after it."""
    seconds: float


def session(file: Path, run: Path, where: str = "none") -> subprocess.Popen:
    """Start training, or go on; it will die at `where` if that is a stage."""
    stage = where if ":" in where else "none"
    victim = [sys.executable, str(HERE / "victim.py"), stage]
    words = ["train", str(file), "--run", str(run)]
    return subprocess.Popen(
        [*victim, *words], env=ENVIRONMENT | {"SEEN": str(run) + ".seen"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def kill(file: Path, run: Path, where: str) -> tuple[Kill, str]:
    """Run a session until it has died, or is done; also what it printed."""
    newest, began = max(whole(run), default=0), time.monotonic()
    process = session(file, run, where)
    try:
        limit = 120 if ":" in where else float(where)
        out, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
    seconds = time.monotonic() - began
    return Kill(where, newest, process.returncode, len(whole(run)), seconds), out


def whole(run: Path) -> list[int]:
    """The steps of checkpoints whose files are all there and unchanged."""
    found = []
    for folder in (run / "checkpoints").glob("[1-9]*"):
        if folder.name.isdecimal():
            try:
                manifest.check_files(folder, manifest.read_manifest(folder))
                found.append(int(folder.name))
            except manifest.DamagedError:
                continue
    return sorted(found)


def outcome(run: Path) -> dict[str, object]:
    """All that must not depend on how often a run was killed."""
    records = {
        record["step"]: [record.get(name) for name in EXACT] for record in Run(run).metrics()
    }
    seen = {}
    for line in Path(str(run) + ".seen").read_text().splitlines():
        batch = json.loads(line)
        seen[batch["step"]] = (batch["sequences"], batch["hash"])
    saves = [event for event in event_log.read(Run(run).ledger_file) if event["event"] == "save"]
    last = max(whole(run))
    return {
        "records": records,
        "batches": {step: seen[step] for step in sorted(seen)},
        "states": {event["step"]: event["state"] for event in saves},
        "last": (last, manifest.read_manifest(run / "checkpoints" / str(last)).state),
    }


def differences(expected: dict, found: dict) -> list[str]:
    """What is another in a run that was killed; states only where both have saved."""
    told = [name for name in ("records", "batches", "last") if expected[name] != found[name]]
    shared = expected["states"].keys() & found["states"].keys()
    if any(expected["states"][step] != found["states"][step] for step in shared):
        told.append("states")
    return told


def finish(file: Path, run: Path) -> None:
    """Let a run come to its end."""
    process = session(file, run)
    out, _ = process.communicate(timeout=300)
    if process.returncode:
        raise AssertionError(f"the relaunch ended with {process.returncode}:\n{out}")


def moments(count: int, typical: float, draw: random.Random) -> Iterator[str]:
    """Where to kill: at each stage in turn, and as often at moments of a session's length."""
    stages = [f"{stage}:{nth}" for nth in (1, 2) for stage in STAGES]
    for index in range(count):
        if index % 2 == 0 and index // 2 < len(stages):
            yield stages[index // 2]
        else:
            yield f"{draw.uniform(0.05, typical):.2f}"


def survive(file: Path, folder: Path, wheres: Iterable[str]) -> Iterator[tuple[Kill, list[str]]]:
    """Kill a run at each of these; when one is done, go on with another. Yields each kill, and
    what was wrong after it."""
    reference = folder / "whole"
    expected = outcome(reference)
    number, had = 0, 0
    run = folder / "killed-0"
    for where in wheres:
        killed, out = kill(file, run, where)
        wrong = []
        if killed.whole < min(had, 1):
            wrong.append("no whole checkpoint is left")
        had = killed.whole
        if killed.code not in (-9, 0):
            wrong.append(f"exit code {killed.code}: {out[-300:]}")
        if killed.code == 0:
            wrong += differences(expected, outcome(run))
            number, had = number + 1, 0
            run = folder / f"killed-{number}"
        yield killed, wrong
    finish(file, run)
    yield Kill("to the end", had, 0, len(whole(run)), 0.0), differences(expected, outcome(run))


def make_data(folder: Path) -> Path:
    """An experiment file, and the data that it names."""
    draw = random.Random(0)
    words = ["the", "cat", "dog", "sat", "on", "mat", "and", "ran", "to", "red", "sky", "sun"]
    corpus = folder / "corpus"
    corpus.mkdir()
    for number in range(60):
        lines = [" ".join(draw.choices(words, k=8)) + "." for _ in range(60)]
        (corpus / f"{number:02}.txt").write_text("\n".join(lines) + "\n")
    from gpt3jax.data.prepare.prepare import prepare

    data = str(folder / "data")
    prepare(str(corpus), data, context=48, vocabulary=300, validation_fraction=0.1, workers=1)
    file = folder / "experiment.py"
    file.write_text(EXPERIMENT.format(data=data))
    return file


def main() -> int:
    """Kill, compare, and print a table; 1 if anything was another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="gpt3jax-faults-"))
    file = make_data(folder)
    began = time.monotonic()
    finish(file, folder / "whole")
    typical = time.monotonic() - began
    wheres = moments(arguments.kills, typical, random.Random(arguments.seed))
    bad = killed = 0
    print(f"{'':>4}  {'killed at':<12} {'from step':>9} {'exit':>5} {'whole':>6}  wrong")
    for index, (each, wrong) in enumerate(survive(file, folder, wheres), 1):
        killed, bad = killed + (each.code == -9), bad + bool(wrong)
        where = each.where if ":" in each.where or " " in each.where else f"{each.where} s"
        told = "; ".join(wrong) or "-"
        print(f"{index:>4}  {where:<12} {each.step:>9} {each.code:>5} {each.whole:>6}  {told}")
    print(f"{killed} sessions killed, {bad} times something was wrong")
    if not bad:
        shutil.rmtree(folder)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
