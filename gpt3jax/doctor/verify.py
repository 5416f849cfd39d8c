"""Whether a run can be trusted: every hash of every checkpoint, and steps done again."""

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
    """What was looked at, and what is wrong with it."""

    what: str
    finding: str
    is_good: bool


def verify(path: Path, steps: str | None, *, as_json: bool = False) -> int:
    """Check a run, or do some of its steps again; prints what it finds.

    Args:
      path: the run.
      steps: `A:B` to do steps A+1 to B again; None to check all hashes.
      as_json: print the verdicts as JSON.

    Returns:
      The exit code: 0 where all is good.

    Raises:
      ConfigError: there is no such run, or no such steps.
    """
    run = open_run(path)
    verdicts = _replayed(run, *_span(steps)) if steps else _checked(run)
    bad = [verdict for verdict in verdicts if not verdict.is_good]
    if as_json:
        print(json.dumps([asdict(verdict) for verdict in verdicts], indent=2))
    else:
        table = Table(box=None, pad_edge=False, show_header=False)
        for verdict in verdicts:
            table.add_row("ok" if verdict.is_good else "BAD", verdict.what, verdict.finding)
        console = Console(highlight=False, markup=False, soft_wrap=True)
        if not console.is_terminal:
            console.width = 10_000  # One line for each verdict.
        console.print(table)
    return 1 if bad else 0


def _checked(run: Run) -> list[Verdict]:
    """The data, the tokenizer, and each checkpoint leaf by leaf."""
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
        _verdict(f"checkpoint {step}", lambda step=step: _check(run, checkpoints, step, abstract))
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
        raise DamagedError(f"{source.path} is not the data that the run began with")
    return (
        f"{pluralize(len(manifest.shards), 'shard')}, {pluralize(manifest.train.windows, 'window')}"
    )


def _check_tokenizer(run: Run) -> str:
    tokenizer = Tokenizer.load(run.tokenizer_file, run.tokenizer_hash)
    return f"{tokenizer.vocabulary:,} tokens"


def _check(run: Run, checkpoints: Checkpointer, step: int, abstract: TrainState) -> str:
    found = checkpoints.manifest(step)
    check_is_own(found, step, identities(run))
    checkpoints.restore(step, abstract)
    values = sum(math.prod(leaf.shape) for leaf in found.leaves.values())
    return f"{len(found.leaves)} leaves, {values:,} values, {len(found.files)} files: {found.state}"


def _span(steps: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]{1,15}):([0-9]{1,15})", steps)
    if not found or int(found[1]) >= int(found[2]):
        raise ConfigError(f"--replay is {steps!r}: it is two steps. Write it as 100:110")
    return int(found[1]), int(found[2])


def _replayed(run: Run, first: int, last: int) -> list[Verdict]:
    """Steps first+1 to last, done again from the newest checkpoint at or before `first`."""
    checkpoints = Checkpointer(run.checkpoints)
    recorded = {record["step"] for record in run.metrics() if "loss" in record}
    recorded |= set(checkpoints.steps())
    done = max([0, *recorded])
    if last > done:
        raise ConfigError(f"--replay ends at {last}: the run is at step {done}. Name steps it did")
    if not recorded & set(range(first + 1, last + 1)):
        following = min(step for step in recorded if step > last)
        raise ConfigError(
            f"--replay {first}:{last}: nothing was logged or saved of these steps, so that there "
            f"is nothing to compare. Use {first}:{following}"
        )
    begin = max((step for step in checkpoints.steps() if step <= first), default=0)
    found = replay(run, checkpoints, begin, first, last, lambda each: mesh_for(each)[0])
    verdicts = [Verdict(f"step {step}", what, False) for step, what in found.differences]
    verdicts += [Verdict("settings", note, True) for note in found.notes]
    compared = f"{found.compared} logged values and states compared, from {_origin(begin)} on"
    bad = len({step for step, _ in found.differences})
    if bad:
        compared += f": {pluralize(bad, 'step')} differ"
    return [*verdicts, Verdict(f"steps {first + 1} to {last}", compared, not bad)]


def _origin(step: int) -> str:
    return f"checkpoint {step}" if step else "the start"
