"""Verifies a run: checks every hash of every checkpoint, or replays training steps."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
from rich.console import Console
from rich.table import Table

from gpt3jax.checkpoint.checkpointer import Checkpointer
from gpt3jax.checkpoint.manifest import DamagedError
from gpt3jax.config import Mesh, Source
from gpt3jax.data.manifest import verify as verify_data
from gpt3jax.data.tokenizer import Tokenizer
from gpt3jax.errors import ConfigError, RunError
from gpt3jax.plan.choose import mesh_for
from gpt3jax.run_dir import Run, open_run
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


def verify(path: Path, steps: str | None, *, as_json: bool = False) -> int:
    """Checks the hashes of a run or replays some of its steps, and prints the results.

    Args:
      path: the run directory.
      steps: `A:B` to replay steps A+1 to B; None to check all hashes.
      as_json: prints the verdicts as JSON.

    Returns:
      The exit code: 0 if everything is good, else 1.

    Raises:
      ConfigError: the run does not exist, or the steps are not steps of the run.
    """
    run = open_run(path)
    verdicts = _replay(run, *_parse_steps(steps)) if steps else _check_hashes(run)
    bad = [verdict for verdict in verdicts if not verdict.is_good]
    if as_json:
        print(json.dumps([asdict(verdict) for verdict in verdicts], indent=2))
    else:
        table = Table(box=None, pad_edge=False, show_header=False)
        for verdict in verdicts:
            table.add_row("ok" if verdict.is_good else "BAD", verdict.what, verdict.finding)
        console = Console(highlight=False, markup=False, soft_wrap=True)
        if not console.is_terminal:
            console.width = 10_000  # Prints each verdict on one line.
        console.print(table)
    return 1 if bad else 0


def _check_hashes(run: Run) -> list[Verdict]:
    """Checks the data, the tokenizer, and each leaf of each checkpoint."""
    experiment = run.experiment()
    checkpoints = Checkpointer(run.checkpoints)
    verdicts = [
        _verdict(f"data {source.name}", lambda source=source: _check_data(run, source))
        for source in experiment.data.sources
    ]
    verdicts.append(_verdict("tokenizer", lambda: _check_tokenizer(run)))
    mesh = make_mesh(Mesh(data=1), jax.devices()[:1])
    abstract = abstract_state(experiment, mesh)
    steps = checkpoints.steps()
    verdicts += [
        _verdict(
            f"checkpoint {step}",
            lambda step=step: _check_checkpoint(run, checkpoints, step, abstract),
        )
        for step in steps
    ]
    if not steps:
        verdicts.append(Verdict("checkpoints", "there is none yet", True))
    return verdicts


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
    return (
        f"{pluralize(len(manifest.shards), 'shard')}, {pluralize(manifest.train.windows, 'window')}"
    )


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


def _parse_steps(steps: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,15}):([0-9]{1,15})", steps)
    if not match or int(match[1]) >= int(match[2]):
        raise ConfigError(f"--replay is {steps!r}: expected two ascending steps. Write 100:110")
    return int(match[1]), int(match[2])


def _replay(run: Run, first: int, last: int) -> list[Verdict]:
    """Replays steps first+1 to last, from the newest checkpoint at or before `first`."""
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
    compared = f"{result.compared} logged values and states compared, from {_origin(start)} on"
    bad = len({step for step, _ in result.differences})
    if bad:
        compared += f": {pluralize(bad, 'step')} differ"
    return [*verdicts, Verdict(f"steps {first + 1} to {last}", compared, not bad)]


def _origin(step: int) -> str:
    return f"checkpoint {step}" if step else "the start"
