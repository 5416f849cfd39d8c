"""Verifies a run: checks every hash of every checkpoint, or replays training steps."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax

from gpt3jax.checkpoint.checkpointer import Checkpointer
from gpt3jax.checkpoint.manifest import DamagedError
from gpt3jax.config import Mesh, Source
from gpt3jax.data.manifest import verify as verify_data
from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.errors import ConfigError, RunError
from gpt3jax.plan.choose import mesh_for
from gpt3jax.run_dir import Run
from gpt3jax.sharding.mesh import make_mesh
from gpt3jax.style import pluralize
from gpt3jax.train.monitor.replay import replay
from gpt3jax.train.resume import check_is_own
from gpt3jax.train.run_setup import identities
from gpt3jax.train.state import TrainState, abstract_state


@dataclass(frozen=True)
class Verdict:
    """The result of verifying one item."""

    what: str
    finding: str
    is_good: bool


def check_hashes(run: Run) -> list[Verdict]:
    """Checks the data, the tokenizer, and each leaf of each checkpoint."""
    experiment = run.experiment()
    checkpoints = Checkpointer(run.checkpoints)
    verdicts = [
        _verdict(f"data {source.name}", partial(_check_data, run, source))
        for source in experiment.data.sources
    ]
    verdicts.append(_verdict("tokenizer", partial(_check_tokenizer, run)))
    mesh = make_mesh(Mesh(data=1), jax.devices()[:1])
    abstract = abstract_state(experiment, mesh)
    steps = checkpoints.steps()
    for step in steps:
        check = partial(_check_checkpoint, run, checkpoints, step, abstract)
        verdicts.append(_verdict(f"checkpoint {step}", check))
    return verdicts if steps else [*verdicts, Verdict("checkpoints", "there is none yet", True)]


def _verdict(what: str, check: Callable[[], str]) -> Verdict:
    try:
        return Verdict(what, check(), True)
    except (ConfigError, RunError) as error:
        return Verdict(what, str(error), False)


def _check_data(run: Run, source: Source) -> str:
    manifest = verify_data(source.path)
    known = {each["name"]: each["manifest"] for each in run.identity()["data"]["sources"]}
    if known.get(source.name) != manifest.hash:
        raise DamagedError(f"{source.path} is not the data that the run started with")
    shards, windows = len(manifest.shards), manifest.train.windows
    return f"{pluralize(shards, 'shard')}, {pluralize(windows, 'window')}"


def _check_tokenizer(run: Run) -> str:
    tokenizer = Tokenizer.load(run.tokenizer_file, run.tokenizer_hash)
    return f"{tokenizer.vocabulary:,} tokens"


def _check_checkpoint(run: Run, checkpoints: Checkpointer, step: int, abstract: TrainState) -> str:
    manifest = checkpoints.manifest(step)
    check_is_own(manifest, step, identities(run))
    checkpoints.restore(step, abstract)
    values = sum(math.prod(leaf.shape) for leaf in manifest.leaves.values())
    return (
        f"{len(manifest.leaves)} leaves, {values:,} values, {len(manifest.files)} files: "
        f"{manifest.state}"
    )


def check_replay(run: Run, steps: str) -> list[Verdict]:
    """Replays steps A+1 to B, from the newest checkpoint at or before A, and compares them.

    Args:
      run: the run.
      steps: `A:B`.

    Raises:
      ConfigError: the steps are not steps of the run.
    """
    match = re.fullmatch(r"([0-9]{1,15}):([0-9]{1,15})", steps)
    first, last = map(int, match.groups()) if match else (0, 0)
    if first >= last:
        raise ConfigError(f"--replay is {steps!r}: expected two ascending steps. Write 100:110")
    checkpoints = Checkpointer(run.checkpoints)
    recorded = {record["step"] for record in run.metrics() if "loss" in record}
    recorded |= set(checkpoints.steps())
    newest = max([0, *recorded])
    if last > newest:
        raise ConfigError(
            f"--replay ends at {last}: the run is at step {newest}. Name completed steps"
        )
    if not recorded & set(range(first + 1, last + 1)):
        following = min(step for step in recorded if step > last)
        raise ConfigError(
            f"--replay {first}:{last}: nothing was logged or saved at these steps, so there is "
            f"nothing to compare. Use {first}:{following}"
        )
    start = max((step for step in checkpoints.steps() if step <= first), default=0)
    result = replay(run, checkpoints, start, first, last, lambda each: mesh_for(each)[0])
    verdicts = [Verdict(f"step {step}", what, False) for step, what in result.differences]
    verdicts += [Verdict("settings", note, True) for note in result.notes]
    origin = f"checkpoint {start}" if start else "the start"
    compared = f"{result.compared} logged values and states compared, from {origin} on"
    bad = len({step for step, _ in result.differences})
    if bad:
        compared += f": {pluralize(bad, 'step')} differ"
    return [*verdicts, Verdict(f"steps {first + 1} to {last}", compared, not bad)]
