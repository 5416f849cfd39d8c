"""Whole runs of `gpt3jax train`: whether bits repeat, how soon they start, what they learn."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from record import GPT3JAX, ROOT, Results, logged, run
from record import start as started

from gpt3jax.checkpoint.manifest import MANIFEST_FILE, read_manifest

DEMO = str(ROOT / "experiments/tiny.py")
STEPS, KILLED_AFTER = 200, 120
WAIT = 300
"""Seconds in which a run must log what is waited for."""


def bits(options: argparse.Namespace, results: Results) -> None:
    """Repeats runs, each with an empty compilation cache, so that XLA chooses kernels anew."""
    steps = 20 if options.toy else STEPS
    with prepared() as folder:
        base = [f"--init-from={folder}/bfloat16-1", "--model.lora-rank=4"]
        variants = {
            "bfloat16": [],
            "float8": ["--model.dtype=float8"],
            "lora": [*base, "--train.only", "layers/lora"],
        }
        for name, words in variants.items():
            words = [f"--train.steps={steps}", f"--train.save-every={steps // 2}",
                     "--train.log-every=4", *words]  # fmt: skip
            first, again = (_state(folder, f"{name}-{number}", words, number) for number in (1, 2))
            killed = _killed(folder, f"{name}-4", words, KILLED_AFTER * steps // STEPS)
            replay = [*GPT3JAX, "verify", f"{name}-4", "--replay", f"{steps // 2}:{steps}"]
            completed = run([*replay, "--json"], folder, **_cache(folder, 9))
            results.add(
                name,
                steps=steps,
                first=first,
                again_with_own_cache=again,
                # Were they not equal, kernels or atomics might be the reason.
                with_the_same_cache=_state(folder, f"{name}-3", words, 1) if first != again else "",
                killed_and_resumed=killed,
                kernels_kept=len(list((folder / f"{name}-1" / "autotune").glob("*"))),
                replay=_json(completed.stdout) or completed.stderr[-800:],
                replay_code=completed.returncode,
            )


def start(options: argparse.Namespace, results: Results) -> None:
    """Seconds from the command to the first step that is logged, and to the end of the run."""
    with prepared() as folder:
        words = ["--train.steps=2", "--train.log-every=1"]
        for name in ("empty cache", "filled cache", "filled cache, again"):
            began = time.perf_counter()
            path = folder / name.replace(" ", "-").replace(",", "")
            process = started(
                [*GPT3JAX, "train", DEMO, f"--run={path}", *words], folder, **_cache(folder, 1)
            )
            _await_step(process, path, 1)
            first = time.perf_counter() - began
            process.wait()
            programs = len(list((folder / "cache-1").rglob("*-cache")))
            total = time.perf_counter() - began
            results.add(
                name, first_step_s=first, total_s=total, programs=programs, phases=_phases(path)
            )


def curves(options: argparse.Namespace, results: Results) -> None:
    """Validation losses of the demo, nats per token, by step."""
    with prepared() as folder:
        for dtype in ("float32", "bfloat16", "float8"):
            words = [f"--model.dtype={dtype}", "--evaluate.every=100"]
            words += ["--train.steps=2"] if options.toy else []
            began = time.perf_counter()
            completed = run([*GPT3JAX, "train", DEMO, f"--run={dtype}", *words], folder)
            losses = {each["step"]: each["val_loss"] for each in logged(folder / dtype)
                      if "val_loss" in each}  # fmt: skip
            seconds = time.perf_counter() - began
            results.add(dtype, val_loss=losses, seconds=seconds, last=completed.stdout[-300:])


def ladder(options: argparse.Namespace, results: Results) -> None:
    """Trains the sizes of experiments/ladder.py; the law of the others predicts the largest."""
    sys.path.insert(0, str(ROOT / "experiments"))
    import ladder as experiment

    file = str(ROOT / "experiments/ladder.py")
    corpus = str(ROOT / "gpt3jax") if options.toy else sysconfig.get_path("purelib")
    short = ["--train.tokens=131072", "--schedule.decay-tokens=131072", "--evaluate.windows=8",
             "--schedule.warmup-tokens=8192"]  # fmt: skip
    toy = short if options.toy else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shape = ["--context", str(experiment.CONTEXT), "--vocabulary", str(experiment.VOCABULARY)]
        began = time.perf_counter()
        out = ["--out", "data/python-packages"]
        _prepare(folder, ["--corpus", f"{corpus}/**/*.py", *shape, *out])
        results.add("data", seconds=time.perf_counter() - began)
        finished = []
        for size in list(experiment.SIZES)[: 2 if options.toy else None]:
            finished.append(f"ladder/{size}")
            words = [f"--run={finished[-1]}", *experiment.overrides(size), *toy]
            began = time.perf_counter()
            completed = run([*GPT3JAX, "train", file, *words], folder)
            metrics = logged(folder / finished[-1])
            results.add(
                str(size),
                val_loss={each["step"]: each["val_loss"] for each in metrics if "val_loss" in each},
                seconds=time.perf_counter() - began,
                error=completed.stderr[-800:] if completed.returncode else "",
            )
        report = run([*GPT3JAX, "report", "--scaling-law", *finished, "--json"], folder)
        laws = folder / "ladder/scaling-law/scaling_law.json"
        results.add("law", law=_json(laws.read_text()) if laws.exists() else report.stderr[-800:])


@contextmanager
def prepared() -> Iterator[Path]:
    """A temporary folder with the demo's data."""
    with tempfile.TemporaryDirectory() as folder:
        words = "--corpus python-library --context 256 --vocabulary 2048 --out data/python-library"
        _prepare(Path(folder), words.split())
        yield Path(folder)


def _prepare(folder: Path, words: list[str]) -> None:
    completed = run([*GPT3JAX, "data", "prepare", *words], folder)
    if completed.returncode:
        sys.exit(completed.stderr)


def _cache(folder: Path, number: int) -> dict[str, str]:
    """A compilation cache of its own, and the same home for all runs, which has their key."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(folder / f"cache-{number}"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES": "none",
        "XDG_CACHE_HOME": str(folder / "home"),
    }


def _state(folder: Path, name: str, words: list[str], cache: int) -> str:
    """The hash of the last state of a run; its error, if it failed."""
    command = [*GPT3JAX, "train", DEMO, f"--run={name}", *words]
    completed = run(command, folder, **_cache(folder, cache))
    return _last_state(folder / name) if completed.returncode == 0 else completed.stderr[-800:]


def _killed(folder: Path, name: str, words: list[str], step: int) -> str:
    """As `_state`, of a run that is killed after `step` and resumed with another cache."""
    command = [*GPT3JAX, "train", DEMO, f"--run={name}", *words]
    process = started(command, folder, **_cache(folder, 1))
    _await_step(process, folder / name, step)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return _state(folder, name, words, 4)


def _await_step(process: Any, path: Path, step: int) -> None:
    deadline = time.monotonic() + WAIT
    while not any(each.get("step", 0) >= step for each in logged(path)):
        if process.poll() is not None or time.monotonic() > deadline:
            return
        time.sleep(0.02)


def _last_state(path: Path) -> str:
    steps = sorted(
        (path / "checkpoints").glob(f"*/{MANIFEST_FILE}"), key=lambda p: int(p.parent.name)
    )
    return read_manifest(steps[-1].parent).state


def _phases(path: Path) -> dict[str, float]:
    """Seconds of each phase of a run, from its event log."""
    events = [json.loads(line) for line in (path / "ledger.jsonl").read_text().splitlines()]
    return next(each["seconds"] for each in reversed(events) if each["event"] == "clock")


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
